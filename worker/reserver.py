"""The thread that takes messages off the lists of a channel's queues. Before: the lists. After: transport, pool.

It takes as many in one step as there is credit for, queue by queue, so that a busy queue cannot fill the place of
another. While there is nothing it sleeps: Redis itself says when one of the lists changes (CLIENT TRACKING), whichever
of them it is.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from redis.exceptions import NoScriptError, RedisError, ResponseError

from worker.leases import TIMEOUT_S, Leases, Reserved
from worker.outage import outage

logger = logging.getLogger(__name__)

#: Share of what is taken that each list gets before more urgent ones.
SHARE = 0.1
#: Less credit than this is left to gather for a moment: one message at a time costs a round trip each.
ENOUGH = 16
GATHER_S = 0.02
#: Redis may forget to ring (its table of tracked keys is bounded): look all the same this often, in seconds ...
LOOK_S = 1.0
#: ... and this often where it cannot ring, or where a queue waits for credit.
POLL_S = 0.1
#: A thread, or an event loop, that has done nothing for so long hangs, in seconds.
STALLED_S = 60.0
#: After a fault, in seconds.
RETRY_S = 0.5


class Link(Protocol):
    """A connection to Redis (redis-py's, of which the types leave much out)."""

    _sock: Any

    def connect(self) -> None: ...  # noqa: D102
    def disconnect(self) -> None: ...  # noqa: D102
    def send_command(self, *command: Any) -> None: ...  # noqa: D102
    def read_response(self) -> Any: ...  # noqa: D102
    def can_read(self, timeout: float) -> bool: ...  # noqa: D102


class Reserver:
    """One for a channel; owns its thread and three pipes' ends.

    Args:
        leases: where what is taken is noted.
        connect: makes a connection to the same server.
        lists: the lists of a queue by priority, without prefix.
        credit: how many messages and bytes of a queue may still come in, of so many queues.
    """

    def __init__(
        self,
        leases: Leases,
        connect: Callable[[], Link],
        lists: Callable[[str], list[str]],
        credit: Callable[[str, int], tuple[int, int]],
    ) -> None:
        self._leases = leases
        self._connect = connect
        self._lists = lists
        self._credit = credit
        self._queues: tuple[str, ...] = ()
        self._rotation = 0
        #: Fractions of messages that lists have a right to, from reserves that were too small.
        self._owed: dict[str, list[float]] = {}
        self._lock = threading.Lock()
        self._ready: deque[Reserved] = deque()
        self._ready_since = 0.0
        #: Readable while something is ready.
        self.doorbell, self._ring = os.pipe()
        self._woken, self._wake = os.pipe()
        for end in (self.doorbell, self._ring, self._woken, self._wake):
            os.set_blocking(end, False)
        self._script_sha: Any = None
        self._link: Link | None = None
        self._bell: Link | None = None
        self._closing = threading.Event()
        #: When the last reserve was answered; the watchdog's proof that this thread does its work.
        self.seen_at = time.monotonic()
        leases.readers.add(self)
        self._thread = threading.Thread(target=self._run, name="reserve", daemon=True)
        self._thread.start()

    # -- the event loop's side ----------------------------------------------------------------------------------------

    def take_from(self, queues: tuple[str, ...]) -> None:
        """Takes from these queues from now on. What was taken from others and not handed out yet goes back."""
        with self._lock:
            self._queues = queues
            kept: deque[Reserved] = deque()
            back = []
            for one in self._ready:
                kept.append(one) if one.queue in queues else back.append(one.tag)
            self._ready = kept
        if back:
            self._leases.requeue(back)
        self._nudge()

    def ready(self, most: int) -> list[Reserved]:
        """What was taken, oldest first, ``most`` at most."""
        with self._lock:
            found = [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
            self._ready_since = time.monotonic()
            if not self._ready:
                with suppress(BlockingIOError):
                    os.read(self.doorbell, 4096)
        return found

    def stalled(self) -> str | None:
        """What hangs; None if nothing does."""
        now = time.monotonic()
        with self._lock:
            waiting_s = now - self._ready_since if self._ready else 0.0
        if waiting_s > STALLED_S:
            return f"messages have waited {waiting_s:.0f} s for the event loop"
        if self._queues and now - self.seen_at > STALLED_S:
            return f"no message was asked for in {now - self.seen_at:.0f} s"
        return None

    def close(self) -> None:
        """Ends the thread; what it took and nobody saw goes back."""
        if self._closing.is_set():
            return
        self._leases.readers.discard(self)
        self.take_from(())
        self._closing.set()
        self._nudge()
        with self._leases.changed:
            self._leases.changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(2 * TIMEOUT_S)
        if not self._thread.is_alive():
            for end in (self.doorbell, self._ring, self._woken, self._wake):
                os.close(end)

    def _nudge(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._wake, b"!")

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._turn()
                outage.over("reserve")
            except (RedisError, OSError) as error:
                if self._closing.is_set():
                    break
                outage.noticed("reserve", error)
                self.seen_at = time.monotonic()
                self._disconnect()
                self._sleep(RETRY_S)
            except Exception:
                # A thread that ended here would be a worker that is never heard of again.
                logger.exception("reserve", extra={"action": "reserve"})
                self._disconnect()
                self._sleep(RETRY_S)
        self._disconnect()

    def _turn(self) -> None:
        queues = self._queues
        credit = self._all_credit(queues)
        free = sum(messages for messages, _ in credit)
        if not queues:
            self.seen_at = time.monotonic()
            self._sleep(LOOK_S)
            return
        if free < ENOUGH and not self._gathered(queues, free):
            return
        credit = self._all_credit(queues)
        if self._reserve(queues, credit):
            return
        starved = any(not messages or not nbytes for messages, nbytes in credit)
        self._wait_for_bell(POLL_S if starved or self._bell is None else LOOK_S)

    def _all_credit(self, queues: tuple[str, ...]) -> list[tuple[int, int]]:
        return [self._credit(queue, len(queues)) for queue in queues]

    def _gathered(self, queues: tuple[str, ...], free: int) -> bool:
        """Waits a moment for more credit. Whether there is any."""
        held, _ = self._leases.held()
        if not held and free:
            return True  # nothing is inside that could free any
        with self._leases.changed:
            self._leases.changed.wait_for(
                lambda: self._closing.is_set() or sum(n for n, _ in self._all_credit(queues)) >= ENOUGH,
                GATHER_S if free else POLL_S,
            )
        self.seen_at = time.monotonic()
        return any(n and nbytes for n, nbytes in self._all_credit(queues))

    def _reserve(self, queues: tuple[str, ...], credit: list[tuple[int, int]]) -> bool:
        """One call of the script. Whether it brought anything."""
        # Whoever came first last time comes last now: with little credit each gets its turn.
        self._rotation = (self._rotation + 1) % len(queues)
        order = [*range(self._rotation, len(queues)), *range(self._rotation)]
        lists = [self._lists(queues[at]) for at in order]
        shares = [self._shares(queues[at], credit[at][0], len(lists[0])) for at in order]
        script, arguments = self._leases.reserve_command(lists, [credit[at] for at in order], shares)
        reply = self._call(script, arguments)
        self.seen_at = time.monotonic()
        if not reply:
            return False
        of_list = [queues[at] for at in order for _ in lists[0]]
        reserved = [
            Reserved(of_list[number - 1], tag.decode(), raw)
            for number, tag, raw in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        ]
        self._settle(reply[::3], order, queues, len(lists[0]))
        self._leases.add(reserved)
        with self._lock:
            wanted = [one for one in reserved if one.queue in self._queues]
            first = not self._ready
            self._ready += wanted
            if first:
                self._ready_since = time.monotonic()
            if first and wanted:
                with suppress(BlockingIOError):
                    os.write(self._ring, b"!")
        if len(wanted) < len(reserved):
            # Cancelled while the script ran.
            self._leases.requeue(one.tag for one in reserved if one.queue not in self._queues)
        return True

    def _shares(self, queue: str, credit: int, lists: int) -> list[int]:
        owed = self._owed.setdefault(queue, [0.0] * lists)
        for at in range(1, lists):
            # Bounded, so that a list that was empty for long does not overtake everything at once.
            owed[at] = min(owed[at] + credit * SHARE, max(1.0, credit * SHARE))
        return [int(share) for share in owed]

    def _settle(self, numbers: list[int], order: list[int], queues: tuple[str, ...], lists: int) -> None:
        """What a list got is no longer owed to it."""
        for number in numbers:
            queue, at = queues[order[(number - 1) // lists]], (number - 1) % lists
            self._owed[queue][at] = max(0.0, self._owed[queue][at] - 1)

    def _call(self, script: str, arguments: list[Any]) -> list[Any]:
        link = self._connected()
        if self._script_sha is None:
            self._script_sha = _command(link, "SCRIPT", "LOAD", script)
        try:
            return _command(link, "EVALSHA", self._script_sha, *arguments) or []
        except NoScriptError:
            self._script_sha = None
            return self._call(script, arguments)

    def _connected(self) -> Link:
        if self._link is None:
            link = self._connect()
            try:
                link.connect()
                self._bell = self._listen(link)
            except BaseException:
                link.disconnect()
                raise
            self._link = link
        return self._link

    def _listen(self, link: Link) -> Link | None:
        """Asks Redis to ring when one of the lists changes that the script found empty."""
        bell = self._connect()
        try:
            bell.connect()
            number = _command(bell, "CLIENT", "ID")
            _command(bell, "SUBSCRIBE", "__redis__:invalidate")
            _command(link, "CLIENT", "TRACKING", "ON", "REDIRECT", number)
        except ResponseError as error:
            bell.disconnect()
            logger.info("Redis does not track keys (%s): looking ten times a second", error, extra={"action": "poll"})
            return None
        except BaseException:
            bell.disconnect()
            raise
        return bell

    def _disconnect(self) -> None:
        for connection in (self._link, self._bell):
            if connection is not None:
                with suppress(RedisError, OSError):
                    connection.disconnect()
        self._link = self._bell = None

    def _wait_for_bell(self, timeout_s: float) -> None:
        bell = self._bell
        if bell is None:
            self._sleep(timeout_s)
            return
        if not bell.can_read(timeout=0):
            self._sleep(timeout_s, bell._sock)
        while bell.can_read(timeout=0):
            bell.read_response()

    def _sleep(self, timeout_s: float, *others: Any) -> None:
        """Until then, until one of the others has something to read, or until :meth:`_nudge`."""
        select.select([self._woken, *others], [], [], timeout_s)
        with suppress(BlockingIOError):
            os.read(self._woken, 4096)


def _command(connection: Link, *command: Any) -> Any:
    connection.send_command(*command)
    return connection.read_response()
