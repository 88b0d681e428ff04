"""CONSUME: kombu's Redis transport for workers: takes many messages at once, under leases. After: pool.

Any stock Celery producer can feed it, because lists, frames and priorities are kombu's own. Only taking messages
(leases/reserver.py) and keeping them (leases/leases.py) differ. A message that cannot be read goes to the dead-letter
list; in kombu's own transport it would end the event loop.

To use it in any Celery app: ``import pipeq_worker`` where the app is configured, then
``broker_url = "pipeq+redis://..."``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from queue import Empty
from types import SimpleNamespace
from typing import Any, cast

import redis
from celery.signals import worker_init, worker_shutdown
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from pipeq.contract import keys, redis_url, shown
from pipeq.contract.bare import first_id
from pipeq.contract.errors import ErrorCode, PipeqError
from redis.backoff import ExponentialBackoff
from redis.exceptions import OutOfMemoryError
from redis.retry import Retry

from pipeq_worker.broker.suspects import Suspects
from pipeq_worker.delivery.dead_letter import LETTER_CHARS, MOST, dead_letter
from pipeq_worker.leases import celery_internals
from pipeq_worker.leases.frame import UNLIMITED_BYTES, Limits, Unreadable, broadcast, read
from pipeq_worker.leases.leases import LEASE_S, SWEEP_S, TIMEOUT_S, Leases
from pipeq_worker.leases.line import Link
from pipeq_worker.leases.redis_arguments import over
from pipeq_worker.leases.reserved import Reserved, Wanted
from pipeq_worker.leases.reserver import STALLED_S, Reserver, Terms
from pipeq_worker.leases.server import Server, place
from pipeq_worker.observe.failures import failures
from pipeq_worker.observe.outage import outage

logger = logging.getLogger(__name__)

#: The name of this transport in kombu, registered when ``pipeq_worker`` is imported.
NAME = "pipeq"

#: Number of messages that are passed to Celery at most in one turn of its event loop.
MESSAGES_PER_TURN = 64
#: Bytes of messages of one queue that may be inside.
QUEUE_BYTES = 64 * 2**20
#: Number of messages that may be inside if no limit is set.
UNLIMITED = 1000
#: Workers that may die of one message if no limit is set.
MAX_DEATHS = 3

#: Set if this process is a Celery worker, of any app: its work then goes on when a connection ends.
IN_A_WORKER = threading.Event()


def _put_everything_back(**_: Any) -> None:
    for leases in Leases.every():
        leases.close()


worker_init.connect(lambda **_: IN_A_WORKER.set(), weak=False)
worker_shutdown.connect(_put_everything_back, weak=False)


class QoS(kombu_redis.QoS):
    """The messages that a channel has passed to consumers. Their state in Redis is in the leases."""

    def can_consume(self) -> bool:
        """Always true: the reserver only takes messages within the limits."""
        return True

    def append(self, message: Any, delivery_tag: str) -> None:
        """Records a message that goes to a consumer."""
        virtual.QoS.append(self, message, delivery_tag)
        self.channel.leases.watch(delivery_tag, message)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledges a message; works from any thread, and after its connection has ended."""
        virtual.QoS.ack(self, delivery_tag)
        self.channel.leases.acknowledge(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Puts the message back, to be served last as in kombu, or drops it."""
        if not requeue:
            self.ack(delivery_tag)
            return
        virtual.QoS.ack(self, delivery_tag)
        self.channel.leases.requeue([delivery_tag], is_last=True)

    def restore_unacked(self, client: Any = None) -> None:
        """Puts back all messages without an answer."""
        self._flush()
        tags = list(self._delivered)
        self._delivered.clear()
        self.channel.leases.requeue(tags)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Called when the channel ends. A worker keeps its messages, and puts the rest back when the worker ends."""
        self._on_collect.cancel()
        if not IN_A_WORKER.is_set() and self.channel.do_restore:
            self.restore_unacked()
        # From now on only its request refers to a message: if Celery drops the request, the message goes back.
        self._delivered.clear()
        self._delivered.restored = True

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Does nothing: the leases put back the messages of lapsed leases."""


class Poller(kombu_redis.MultiChannelPoller):
    """Kombu's poller; it watches the reserver's pipe instead of the reply to a BRPOP."""

    def on_poll_start(self) -> None:
        """Called before each poll; registers pipes and connections that are not watched yet."""
        for channel in self._channels:
            if channel.reserver is not None and channel.reserver.doorbell not in self._fd_to_chan:
                self._fd_to_chan[channel.reserver.doorbell] = (channel, "RESERVED")
                self.poller.register(channel.reserver.doorbell, self.eventflags)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def on_readable(self, fileno: int) -> Any:
        """Called when messages were taken or a broadcast arrived."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind != "RESERVED":
            return super().on_readable(fileno)
        # Outside an event loop, the caller of `drain_events` expects one message.
        return channel.deliver(1 if self._in_protected_read else MESSAGES_PER_TURN)

    def forget(self, fileno: int) -> None:
        """Stops watching a pipe that is about to be closed."""
        if self._fd_to_chan.pop(fileno, None) is not None:
            try:
                self._unregister_from_poll(fileno)
            except (KeyError, ValueError, OSError):
                logger.debug("pipe %d was not watched", fileno)


class Channel(kombu_redis.Channel):
    """See the module.

    Transport options in addition to kombu's:

    - ``lease_s`` and ``sweep_s``: seconds.
    - ``queue_prefetch``: number of messages of each queue that may be inside. Without it, Celery's prefetch count
      limits
      all queues together.
    - ``queue_bytes``: bytes of messages of each queue that may be inside.
    - ``queue_body_bytes``: queue -> bytes of its largest body, unpacked.
    - ``max_deaths``: so many workers may die of one message.
    - ``hung_s``: an event loop that has not taken a message for so long, and for a minute, hangs.
    - ``content_types``: of bodies. Without it, all that the app accepts.
    - ``shared_queues``: queues whose lower priorities get a share of each reserve. In all others, the order is strict.
    - ``bare_queues``: queues on which a bare message (:mod:`pipeq.contract.bare`) is a task.
    - ``redis_arguments``: more arguments of redis-py's connections.
    """

    QoS = QoS
    lease_s = LEASE_S
    sweep_s = SWEEP_S
    queue_prefetch: int | None = None
    queue_bytes = QUEUE_BYTES
    queue_body_bytes: Mapping[str, int] = {}
    content_types: Collection[str] = ()
    max_deaths = MAX_DEATHS
    hung_s = STALLED_S
    redis_arguments: Mapping[str, Any] = {}
    shared_queues: Collection[str] = ()
    bare_queues: Collection[str] = ()
    from_transport_options = (
        *kombu_redis.Channel.from_transport_options,
        "lease_s",
        "sweep_s",
        "queue_prefetch",
        "queue_bytes",
        "queue_body_bytes",
        "content_types",
        "max_deaths",
        "hung_s",
        "shared_queues",
        "bare_queues",
        "redis_arguments",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.reserver: Reserver | None = None
        self._leases: Leases | None = None
        self._no_ack: set[str] = set()
        self._limits_of: dict[str, Limits] = {}
        #: Takes messages past kombu and Celery, and returns those that it leaves; None if none go that way.
        self.intake: Callable[[list[Reserved]], list[Reserved]] | None = None
        self._suspects: Suspects | None = None
        super().__init__(*args, **kwargs)

    @property
    def leases(self) -> Leases:
        """The leases of this process on the channel's server."""
        if self._leases is None:
            params = self._connparams()
            server = Server(place(params), self.global_keyprefix, _client_of(params))
            self._leases = Leases.of(server, float(self.lease_s), float(self.sweep_s))
        return self._leases

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Returns the connection arguments. kombu leaves the URL after ``pipeq+`` unread; redis-py's rules apply."""
        transport, client = self.connection, self.connection.client
        said = dict(self.redis_arguments)
        if "scheme" in said:
            said["connection_class"] = redis_url.KINDS[said.pop("scheme")]
        if client.hostname and "://" in client.hostname:
            said |= redis_url.options(client.hostname)
            # Copies of the connection are created from its attributes, so the connection itself must not change.
            nothing = dict.fromkeys(("hostname", "port", "userid", "password", "ssl", "virtual_host"))
            transport.client = SimpleNamespace(credential_provider=client.credential_provider, **nothing)
        try:
            # kombu derives its own class from this one, to tell its poller when a connection ends.
            if (kind := said.pop("connection_class", None)) is not None:
                self.connection_class = kind
            params = super()._connparams(asynchronous)
        finally:
            transport.client = client
        return over(params, said)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Starts to take messages from a queue."""
        reply = super().basic_consume(queue, no_ack, *args, **kwargs)
        if queue not in self.active_fanout_queues:
            (self._no_ack.add if no_ack else self._no_ack.discard)(queue)
            if self.reserver is None:
                self.leases.start()
                # No sooner than that, because an event loop that waits for Redis looks the same.
                stalled_s = max(STALLED_S, float(self.hung_s))
                terms = Terms(self._wanted, lambda queue: queue in self.shared_queues, stalled_s)
                self.reserver = Reserver(self.leases, _connection_of(self._connparams()), terms)
            self.reserver.take_from(tuple(self.active_queues))
        return reply

    def _queue_bind(self, *args: Any, **kwargs: Any) -> None:
        """Registers a queue for broadcasts. A full Redis refuses it; messages of the other queues still come in."""
        try:
            super()._queue_bind(*args, **kwargs)
        except OutOfMemoryError as error:
            outage.noticed(f"broadcasts on channel {self.channel_id}", error)
        else:
            outage.over(f"broadcasts on channel {self.channel_id}")

    def maybe_refresh_binding_expiry(self) -> None:
        """Called every second. A full Redis refuses it, which kombu would log each time."""
        try:
            super().maybe_refresh_binding_expiry()
        except OutOfMemoryError as error:
            outage.noticed(f"broadcasts on channel {self.channel_id}", error)
        else:
            outage.over(f"broadcasts on channel {self.channel_id}")

    def _basic_cancel(self, consumer_tag: str) -> Any:
        reply = super()._basic_cancel(consumer_tag)
        if self.reserver is not None:
            self.reserver.take_from(tuple(self.active_queues))
        return reply

    def deliver(self, most: int) -> bool:
        """Passes up to ``most`` taken messages to their consumers."""
        reserved = self.reserver.ready(most) if self.reserver is not None else []
        if not reserved:
            raise Empty
        suspects = [one for one in reserved if not one.too_large and self.leases.is_suspect(one.tag)]
        if suspects:
            reserved = [one for one in reserved if one not in suspects]
        if self.intake is not None:
            try:
                reserved = self.intake(reserved)
            except BaseException:
                self.leases.requeue(one.tag for one in (*reserved, *suspects))
                raise
        for at, one in enumerate(reserved):
            try:
                self._hand_on(one)
            except BaseException:
                # Nothing has seen the remaining messages. This one was not taken in: Redis was away when its end was to
                # be stored, or its due time. Nobody else would put it back, and its lease would be renewed for ever.
                self.leases.requeue(later.tag for later in (*reserved[at:], *suspects))
                raise
        if suspects:
            if self._suspects is None:
                self._suspects = Suspects(self.leases, int(self.max_deaths), self._hand_on, self._give_up)
            self._suspects.receive(suspects)
        return True

    def _hand_on(self, one: Reserved) -> None:
        message = read(one, self.limits(one.queue))
        if isinstance(message, Unreadable):
            self._refuse(one, message)
            return
        celery_internals.hand_to_consumer(self.connection, message, one.queue)
        if one.queue in self._no_ack:
            self.leases.acknowledge(one.tag)

    def _receive_one(self, c: Any) -> Any:
        """Reads a broadcast. In kombu, anything but JSON of Celery's form ends the event loop."""
        response = self._read_broadcast(c)
        if not isinstance(response, list | tuple):
            return None
        payload = self._handle_message(c, response)
        channel, data = bytes_to_str(payload["channel"]), payload["data"]
        if not bytes_to_str(payload["type"]).endswith("message") or not data:
            return None
        if channel[0] == "/":
            _, _, channel = channel.partition(".")
        exchange = channel.split("/", 1)[0]
        message = broadcast(data, exchange.endswith(".pidbox"))
        if isinstance(message, Unreadable) or exchange not in self._fanout_to_queue:
            reason = message.reason if isinstance(message, Unreadable) else "nobody listens"
            logger.warning(
                "a broadcast on %s is dropped: %s", shown.line(channel), reason, extra={"action": "broadcast"}
            )
            return None
        return self._deliver_fanout_message(message, exchange)

    def _read_broadcast(self, c: Any) -> Any:
        try:
            return c.parse_response()
        except self.connection_errors:
            self._in_listen = None
            raise

    def _get(self, queue: str) -> dict[str, Any]:
        """Takes one message, for callers that poll instead of consuming."""
        wanted = replace(self._wanted(queue, 1), messages=1, nbytes=2**30)
        while (one := self.leases.reserve_one(wanted)) is not None:
            message = read(one, self.limits(queue))
            if not isinstance(message, Unreadable):
                return message
            self._refuse(one, message)
        raise Empty

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Takes one message; None if there is none."""
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None and no_ack:
            self.leases.acknowledge(message.delivery_tag)
        return message

    def close(self) -> None:
        """Closes the channel. Messages that were taken but not passed on go back."""
        reserver, self.reserver = self.reserver, None
        if reserver is not None:
            self.connection.cycle.forget(reserver.doorbell)
            reserver.close()
        suspects, self._suspects = self._suspects, None
        if suspects is not None:
            suspects.close()
        super().close()

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        self.leases.requeue([message.delivery_tag])

    def _lists(self, queue: str) -> list[str]:
        return [self._q_for_pri(queue, step) for step in self.priority_steps]

    def _size(self, queue: str) -> int:
        """Number of messages that wait, with those that fair lists hold elsewhere."""
        return int(super()._size(queue)) + self.leases.moved(self._lists(queue))

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return bool(super()._has_queue(queue, **kwargs)) or self.leases.moved(self._lists(queue)) > 0

    def _purge(self, queue: str) -> int:
        """Deletes the messages that wait. Returns their number."""
        return int(super()._purge(queue)) + self.leases.drop_moved(self._lists(queue))

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)
        self.leases.drop_moved(self._lists(queue))

    def limits(self, queue: str) -> Limits:
        """What is accepted from a queue."""
        if (found := self._limits_of.get(queue)) is None:
            types = frozenset(self.content_types) or None
            nbytes = self.queue_body_bytes.get(queue, UNLIMITED_BYTES)
            found = Limits.of_body(nbytes, types, takes_bare=queue in self.bare_queues)
            self._limits_of[queue] = found
        return found

    def _wanted(self, queue: str, sharing: int) -> Wanted:
        """Returns how much may be taken from a queue now; ``sharing`` is the number of queues that share the limit."""
        lists = self._lists(queue)
        messages, nbytes = self._credit(queue, sharing)
        largest, lifetime_ms = self.limits(queue).message_bytes, self._expires.get(queue, 0)
        if lifetime_ms:
            self.leases.lifetimes[queue] = lists, lifetime_ms
        return Wanted(queue, lists, messages, nbytes, [0] * len(lists), largest, lifetime_ms)

    def _credit(self, queue: str, sharing: int) -> tuple[int, int]:
        held, nbytes = self.leases.held(queue)
        left_bytes = max(0, self.queue_bytes - nbytes)
        if (worker := self.leases.sharing) is not None and worker.shares(queue):
            return max(0, worker.most(queue) - held), left_bytes
        if self.queue_prefetch:
            return max(0, self.queue_prefetch - held), left_bytes
        limit = self.qos.prefetch_count or UNLIMITED
        # Celery's limit is for all queues together.
        return max(0, limit - self.leases.held()[0]) // sharing or int(limit > self.leases.held()[0]), left_bytes

    def _refuse(self, one: Reserved, message: Unreadable) -> None:
        reason = f"the message cannot be read: {message.reason}"
        self._bury(one, message.task_id, PipeqError(ErrorCode.INVALID_MESSAGE, reason), one.raw[:LETTER_CHARS])

    def _give_up(self, one: Reserved, deaths: int) -> None:
        """Ends a message that workers die of. It is not parsed, because that may be what they die of."""
        reason = f"{shown.count(deaths, 'worker')} died with this message in hand, without having begun its task"
        # All of it, so that it can be sent again.
        self._bury(one, first_id(one.raw), PipeqError(ErrorCode.WORKER_LOST, reason), one.raw, deaths)

    def _bury(self, one: Reserved, task_id: str | None, error: PipeqError, raw: bytes, attempts: int = 0) -> None:
        """Stores an error under the id of a message's task; without an id, the message as a dead letter."""
        text = raw.decode("utf-8", "backslashreplace")
        if task_id is not None and self.leases.on_unusable(one, task_id, error, text, attempts):
            return
        worker = self.leases.worker
        failures.failed(task_id, one.queue, error, worker=worker, attempt=attempts)
        letter = dead_letter(task_id, error.code, error.message, text, worker=worker, attempts=attempts)
        self.leases.bury(one.tag, keys.dead_letter_key(one.queue), letter, MOST)
        self.leases.observer.message_refused(one.queue, error.message)


class Transport(kombu_redis.Transport):
    """See the module."""

    Channel = Channel

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.cycle = Poller()


def _timed(params: dict[str, Any]) -> dict[str, Any]:
    """Adds time limits to all calls; kombu's connections have none, because its event loop never waits for a reply."""
    # The limit on connections is for kombu's pools. Ours need one connection for each thread that calls.
    own = {name: value for name, value in params.items() if name != "max_connections"}
    own |= {"socket_timeout": TIMEOUT_S, "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), 1)}
    return own if "path" in params else own | {"socket_connect_timeout": TIMEOUT_S}


def _client_of(params: dict[str, Any]) -> Callable[[], redis.Redis]:
    return lambda: redis.Redis(connection_pool=redis.ConnectionPool(**_timed(params)))


def _connection_of(params: dict[str, Any]) -> Callable[[], Link]:
    # In the older protocol, broadcasts are easier to distinguish from replies.
    own = {**_timed(params), "protocol": 2}
    make = own.pop("connection_class")
    return lambda: cast(Link, make(**own))
