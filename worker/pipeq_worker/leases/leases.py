"""LEASES: the messages that this process may work on. Before: lists in Redis. After: acknowledged, or put back.

Leases belong to the process, not to a connection of kombu, so that a broken connection does not cost the work on the
device. A thread renews the leases while the process lives, and puts back the messages of other workers' lapsed leases.
The message of a worker that died is on its list again after at most one lease and one sweep, and a message that takes
hours is never delivered twice.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from kombu.asynchronous import get_event_loop
from pipeq.contract import keys
from pipeq.contract.errors import PipeqError
from redis.exceptions import RedisError

from pipeq_worker.leases import celery_internals, lua
from pipeq_worker.leases.history import History, front_of, history_of
from pipeq_worker.leases.renewing import Renewing
from pipeq_worker.leases.reserved import Reserved, Wanted, taken
from pipeq_worker.leases.server import Server
from pipeq_worker.leases.sharing import MARK_S, Sharing
from pipeq_worker.observe.observer import Observer
from pipeq_worker.observe.outage import outage

logger = logging.getLogger(__name__)

#: How long a lease lasts unless it is renewed, in seconds.
LEASE_S = 15.0
#: How often lapsed leases are searched for, in seconds.
SWEEP_S = 5.0
#: Most messages that one call of a script handles.
MESSAGES_PER_CALL = 1000
#: Calls that put messages of one fair list back when a worker stops.
UNMOVE_CALLS = 200
#: A reply that takes longer than this counts as a broken connection, in seconds.
TIMEOUT_S = 5.0
_NONE = History(0, 0)


@dataclass
class _Held:
    queue: str
    nbytes: int
    #: What it went through before; and whether nobody had it before, and its task waited.
    history: History = _NONE
    is_new: bool = False
    #: Whether its result is being stored. Only the script that stores it finds out whether the lease was still ours.
    is_ending: bool = False
    #: A weak reference to Celery's message, whose callback runs when nothing refers to the message any more.
    message: Any = None


class Reader(Protocol):
    """A thread or the like that takes messages, for instance a reserver."""

    def stalled(self) -> str | None:
        """What hangs, as a sentence; None if nothing does."""

    def deaf(self) -> Mapping[str, Any]:
        """Each queue that it takes from -> why no messages come in (``reserver.Deaf``), or None."""


class Leases:
    """The leases of this process on one server; there is one object for each server, from :meth:`of`.

    Args:
        server: the database that holds them.
        lease_s: how long a lease lasts unless it is renewed; it is renewed three times in that time.
        sweep_s: how often lapsed leases are searched for.
    """

    _of: dict[Server, Leases] = {}  # noqa: RUF012 - the registry
    _of_lock = threading.Lock()

    @classmethod
    def of(cls, server: Server, lease_s: float = LEASE_S, sweep_s: float = SWEEP_S) -> Leases:
        """Returns the process's leases on a server; creates them at the first call."""
        with cls._of_lock:
            found = cls._of.get(server)
            if found is None or found.is_closed():
                found = cls._of[server] = cls(server, lease_s, sweep_s)
            return found

    @classmethod
    def every(cls) -> list[Leases]:
        """Returns the leases of this process on all servers."""
        with cls._of_lock:
            return list(cls._of.values())

    def __init__(self, server: Server, lease_s: float, sweep_s: float) -> None:
        self.server = server
        self.lease_s = lease_s
        self.unacked_key = server.prefix + keys.UNACKED
        self.key = server.prefix + keys.LEASES
        self._closing = threading.Event()
        #: Called with the tags of lost leases; work on their messages must be dropped.
        self.on_lost: Callable[[set[str]], None] = lambda tags: None
        #: Called with a sentence when messages should come in, or go out, and do not, and only a new process can help.
        self.on_stalled: Callable[[str], None] = lambda reason: None
        #: Called with a message that cannot be used, the task's id found in it, the error, its text, and the number of
        #: attempts. Returns whether it ended the task, that is, stored the error under the id and acknowledged the
        #: message.
        self.on_unusable: Callable[[Reserved, str, PipeqError, str, int], bool] = lambda *_: False
        #: Whether suspects may be received now, and that they have been; see broker/suspects.py.
        self.claim: Callable[[], bool] = lambda: True
        self.disclaim: Callable[[], None] = lambda: None
        #: The worker's name in the letters of unreadable messages; None in an app of somebody else.
        self.worker: str | None = None
        #: Says how much the worker takes and gives back; None in apps without pipelines.
        self.sharing: Sharing | None = None
        #: Whether the records of tasks are on this server, too, and the script that takes messages may look at them.
        self.sees_records = False
        #: Told of leases that lapsed, and of messages that were put back.
        self.observer = Observer()
        #: Queue -> its lists, and their lifetime after messages were asked for, in milliseconds. It is set again when
        #: messages are put back, because Redis forgets the lifetime of a list that became empty.
        self.lifetimes: dict[str, tuple[list[str], int]] = {}
        #: The readers that take messages under these leases, and what else says in a sentence that it hangs, or None.
        self.readers: set[Reader] = set()
        self.stalls: Sequence[Callable[[], str | None]] = ()
        #: Notified when a message is released.
        self.changed = threading.Condition()
        self._held: dict[str, _Held] = {}
        self._tasks: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._unsent: list[str] = []
        #: Tags of messages that Redis knows to be in this process's hands alone.
        self._in_hand: set[str] = set()
        self._redis = server.connect()
        self._reserve, self._renew, self._requeue, self._postpone, self._unmove, self._hold, self._bury = (
            self._redis.register_script(lua.source(name))
            for name in ("reserve", "renew", "requeue", "postpone", "unmove", "hold", "bury")
        )
        self._tags, self._batch = os.urandom(6).hex(), count()
        self._renewing = Renewing(self, lease_s, sweep_s)

    def start(self) -> None:
        """Starts the thread that renews leases and puts back messages of lapsed ones, unless it runs."""
        with self.changed:
            self._renewing.start()

    # -- taking -------------------------------------------------------------------------------------------------------

    def reserve_command(self, wanted: list[Wanted]) -> tuple[str, list[Any]]:
        """Returns the script that takes messages, and its keys and arguments, for use on a connection of the caller.

        Read its reply with :func:`taken`.
        """
        prefix = self.server.prefix
        lists = [name for one in wanted for name in one.lists]
        fair = [key for name in lists for key in (keys.fair_key(name), keys.fair_times_key(name))]
        names = [self.unacked_key, self.key, *(prefix + name for name in (*lists, *fair))]
        args: list[Any] = [self.lease_s, f"{self._tags}-{next(self._batch):010d}-", len(wanted[0].lists), "", MARK_S]
        if self.sharing is not None:
            names += [prefix + keys.idle_key(one.queue) for one in wanted]
            args[3] = self._tags
        for one in wanted:
            args += (one.messages, one.nbytes, one.largest, one.lifetime_ms, one.gives)
            args += (one.is_idle + one.is_marked, *one.shares)
        args.append(keys.record_key("") if self.sees_records else "")
        return lua.source("reserve"), [len(names), *names, *args]

    def reserve_one(self, wanted: Wanted) -> Reserved | None:
        """Takes the next message of a queue; None if there is none."""
        _, (number, *rest) = self.reserve_command([wanted])
        reserved = taken(self._reserve(keys=rest[:number], args=rest[number:]), [wanted]).messages
        self.add(reserved)
        return reserved[0] if reserved else None

    def add(self, reserved: Iterable[Reserved]) -> None:
        """Adds messages that were taken; their leases are renewed from now on."""
        with self.changed:
            for one in reserved:
                # One that nobody had may begin with a tab, too.
                history = history_of(one.raw) if one.raw.startswith(b" ") else _NONE
                self._held[one.tag] = _Held(one.queue, len(one.raw), history, one.is_new)
                self._tasks[one.queue] = self._tasks.get(one.queue, 0) + 1
                self._bytes[one.queue] = self._bytes.get(one.queue, 0) + len(one.raw)
        self.start()

    def watch(self, tag: str, message: Any) -> None:
        """Puts a message back if Celery drops it without an answer, as it does when it reconnects."""
        with self.changed:
            if (held := self._held.get(tag)) is not None:
                # The callback may run on any thread, with any lock held, so it only notes the tag.
                held.message = weakref.ref(message, lambda _: self._renewing.drop(tag))

    def hold(self, tag: str, instead_of: str = "") -> None:
        """Notes in Redis that this process has a message alone in its hands: if it dies, that one is charged.

        Args:
            tag: the message; empty for none.
            instead_of: the message that it lets go of; empty for none.
        """
        args: list[Any] = []
        with self.changed:
            # Also if the answer is lost: then it may be so, and is let go of when it goes back.
            self._in_hand.update({tag} & self._held.keys())
            for one in (instead_of, tag):
                held = self._held.get(one)
                args += ("", 0) if held is None else (one, held.history.charged)
        try:
            self._hold(keys=[self.unacked_key, self.key], args=args)
        except RedisError as error:
            # A death would then be charged to nobody, or one too many to the message that was not let go of.
            outage.noticed("hold", error)
            return
        outage.over("hold")
        with self.changed:
            self._in_hand.discard(instead_of)

    def is_suspect(self, tag: str) -> bool:
        """Whether a host died while it had this message, which this process has now."""
        held = self._held.get(tag)
        return held is not None and held.history.lapses > 0

    def front(self, tag: str) -> str:
        """What a message goes on with that its next try takes along: the deaths that it was charged with.

        Those that it shared with others prove nothing, and this try has come further.
        """
        held = self._held.get(tag)
        return "" if held is None else front_of(held.history.charged)

    def is_new(self, tag: str) -> bool:
        """Whether nobody had this message before this process, and its task waited when this process took it."""
        held = self._held.get(tag)
        return held is not None and held.is_new

    def held(self, queue: str | None = None) -> tuple[int, int]:
        """Number of messages held, of one queue or of all, and their bytes."""
        with self.changed:
            if queue is None:
                return len(self._held), sum(self._bytes.values())
            return self._tasks.get(queue, 0), self._bytes.get(queue, 0)

    def end(self, tags: Iterable[str]) -> None:
        """Marks messages that the script that stores their results is about to acknowledge."""
        with self.changed:
            for tag in tags:
                if (held := self._held.get(tag)) is not None:
                    held.is_ending = True

    def holds(self, tag: str) -> bool:
        """Whether this process holds a message, as far as it knows."""
        return tag in self._held

    # -- fair lists ---------------------------------------------------------------------------------------------------

    def moved(self, lists: Iterable[str]) -> int:
        """Number of messages of these lists that wait in the sorted sets of fair lists."""
        with self._redis.pipeline(transaction=False) as pipe:
            for name in lists:
                pipe.zcard(self.server.prefix + keys.fair_key(name))
            return sum(one for one in pipe.execute(raise_on_error=False) if isinstance(one, int))

    def drop_moved(self, lists: Iterable[str]) -> int:
        """Deletes them. Returns their number."""
        lists = list(lists)
        found = self.moved(lists)
        fair = [key for name in lists for key in (keys.fair_key(name), keys.fair_times_key(name))]
        self._redis.delete(*(self.server.prefix + key for key in fair))
        return found

    def unmove(self, lists: Iterable[str]) -> None:
        """Puts them back onto their lists, for consumers that read only those. Other workers move them again.

        Raises:
            RedisError: Redis is away; they stay where they are, for the next worker.
        """
        for name in lists:
            fair = (keys.fair_key(name), keys.fair_times_key(name))
            for _ in range(UNMOVE_CALLS):
                if not self._unmove(keys=[self.server.prefix + one for one in (name, *fair)], args=[MESSAGES_PER_CALL]):
                    break

    # -- ending -------------------------------------------------------------------------------------------------------

    def release(self, tags: Iterable[str]) -> list[str]:
        """Forgets messages: acknowledged elsewhere, lost, or about to be answered. Returns those that were held."""
        with self.changed:
            released = []
            for tag in tags:
                if (held := self._held.pop(tag, None)) is not None:
                    released.append(tag)
                    self._in_hand.discard(tag)
                    self._tasks[held.queue] -= 1
                    self._bytes[held.queue] -= held.nbytes
            if released:
                self.changed.notify_all()
            return released

    def acknowledge(self, tag: str) -> None:
        """Removes a message for good; all messages of one turn of the event loop share a round trip.

        If Redis is away, the acknowledgement is sent later; if the process ends before that, the message is delivered
        again.
        """
        with self.changed:
            if not self.release([tag]):
                return
            self._unsent.append(tag)
            first = len(self._unsent) == 1
        loop = get_event_loop()
        if loop is None or not celery_internals.is_running(loop):
            self.flush()
        elif first:
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends the acknowledgements that are waiting."""
        with self.changed:
            tags, self._unsent = self._unsent, []
        if not tags:
            return
        try:
            with self._redis.pipeline() as pipe:
                pipe.zrem(self.key, *tags)
                pipe.hdel(self.unacked_key, *tags)
                pipe.execute()
        except RedisError as error:
            outage.noticed("acknowledge", error)
            with self.changed:
                self._unsent += tags
        else:
            outage.over("acknowledge")

    def requeue(self, tags: Iterable[str], *, is_last: bool = False) -> int:
        """Puts messages back on their lists, in the order in which they were taken. Returns their number.

        If Redis cannot take them now, their leases lapse, and the next sweep puts them back.

        Args:
            tags: the messages' tags.
            is_last: whether they are served after all others; by default they are served next.
        """
        wanted = set(tags)
        for tag in wanted & self._in_hand:
            self.hold("", instead_of=tag)
        with self.changed:
            ours = [tag for tag in self._held if tag in wanted]
            lasting = {self._held[tag].queue for tag in ours} & self.lifetimes.keys()
            self.release(ours)
        back = 0
        try:
            # The last chunk goes first, because each call puts its messages in front of the list.
            for start in range((len(ours) - 1) // MESSAGES_PER_CALL * MESSAGES_PER_CALL, -1, -MESSAGES_PER_CALL):
                chunk = ours[start : start + MESSAGES_PER_CALL]
                back += self._put_back("last" if is_last else "tags", *chunk)
            self._renew_lifetimes(lasting)
        except RedisError as error:
            logger.warning("%d messages go back when their leases lapse: %s", len(ours) - back, error)
        if back:
            self.observer.given_back(back)
        return back

    def _renew_lifetimes(self, names: Iterable[str]) -> None:
        for queue in names:
            lists, lifetime_ms = self.lifetimes[queue]
            with self._redis.pipeline() as pipe:
                for name in lists:
                    pipe.pexpire(self.server.prefix + name, lifetime_ms)
                pipe.execute()

    def _put_back(self, *args: Any) -> int:
        back, *broken = self._requeue(keys=[self.unacked_key, self.key], args=args)
        for entry in broken:
            logger.error(
                "an entry of %s is no message of ours and was removed: %r",
                self.unacked_key,
                entry,
                extra={"action": "sweep"},
            )
        return int(back)

    def postpone(self, tag: str, waiting_key: str, due: float) -> None:
        """Moves a message into a set of waiting ones, until ``due`` (seconds since the epoch)."""
        self._postpone(keys=[self.unacked_key, self.key, self.server.prefix + waiting_key], args=[tag, due])
        self.release([tag])

    def bury(self, tag: str, dead_letter_key: str, letter: str, most: int) -> None:
        """Moves an unreadable message to a dead-letter list of at most ``most`` entries, if it is still ours."""
        key = self.server.prefix + dead_letter_key
        problem = self._bury(keys=[self.unacked_key, self.key, key], args=[tag, letter, most]).decode()
        if problem:
            logger.warning("a dead letter is lost: %s: %s", key, problem, extra={"action": "dead_letter"})
        self.release([tag])

    def renew(self, tags: list[str]) -> set[str]:
        """Renews leases now, and returns those that are gone.

        Raises:
            RedisError: Redis does not answer, and nothing is known about the leases.
        """
        gone: set[str] = set()
        for start in range(0, len(tags), MESSAGES_PER_CALL):
            reply = self._renew(keys=[self.key], args=[self.lease_s, *tags[start : start + MESSAGES_PER_CALL]])
            gone.update(tag.decode() for tag in reply)
        return gone

    def lose(self, tags: Iterable[str]) -> None:
        """Drops lost leases, and calls :attr:`on_lost` with them."""
        with self.changed:
            lost = set(self.release(tag for tag in tags if tag in self._held and not self._held[tag].is_ending))
        if lost:
            logger.warning("%d leases are gone: their work is dropped", len(lost), extra={"action": "lease_lost"})
            self.observer.leases_lost(len(lost))
            self.on_lost(lost)

    def close(self) -> None:
        """Puts back all messages that are still held, and ends the thread."""
        self._closing.set()
        self.flush()
        with self.changed:
            left = list(self._held)
            self.changed.notify_all()
        if left and (back := self.requeue(left)):
            logger.info("%d messages are back on their queues", back, extra={"action": "requeue"})
        self._renewing.close()
        self._redis.close()

    def hangs(self) -> str | None:
        """Says that the thread that renews the leases hangs or has ended; None if all is well."""
        return self._renewing.hangs()

    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closing.is_set()

    # -- for the thread, see renewing.py ------------------------------------------------------------------------------

    def look_for_stalls(self) -> None:
        """Tells of what hangs, so that these leases are not renewed for ever."""
        for stalled in (*(reader.stalled for reader in list(self.readers)), *self.stalls):
            if (reason := stalled()) is not None:
                self.on_stalled(reason)

    def renew_all(self) -> None:
        """Renews all leases, and drops those that are gone.

        Raises:
            RedisError: Redis does not answer, and nothing is known about the leases.
        """
        with self.changed:
            tags = list(self._held)
        if tags:
            self.lose(self.renew(tags))

    def server_time(self) -> float:
        """The server's clock, in seconds since the epoch."""
        seconds, microseconds = self._redis.time()
        return float(seconds + microseconds / 1e6)

    def put_back_lapsed(self, until: float) -> None:
        """Puts the messages back whose leases have ended by then, which are of workers that died."""
        while back := self._put_back("lapsed", MESSAGES_PER_CALL, until):
            logger.warning(
                "%d messages of a worker that is gone are back on their queues", back, extra={"action": "sweep"}
            )
            self.observer.leases_lapsed(back)
