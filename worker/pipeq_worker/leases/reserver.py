"""RESERVER: the thread that takes messages off the lists of a channel's queues. Before: lists. After: transport, pool.

It takes as many messages in one step as each queue has credit for, so that a busy queue cannot use the room of another.
While there are none it sleeps, and Redis reports when one of the lists changes (CLIENT TRACKING). A step that fails is
tried again for ever, and :meth:`Reserver.deaf` reports it in the meantime.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pipeq.contract import shown
from redis.exceptions import AuthenticationError, MaxConnectionsError, RedisError, ResponseError

from pipeq_worker.leases.leases import TIMEOUT_S, Leases
from pipeq_worker.leases.line import Line, Link
from pipeq_worker.leases.reserved import Reserved, Wanted, taken
from pipeq_worker.leases.sharing import LASTS_S, YIELD_S, Looks
from pipeq_worker.observe.outage import outage

logger = logging.getLogger(__name__)

#: Share of the messages taken that each list gets before more urgent lists are served.
SHARE = 0.1
#: With less credit than this the reserver waits a moment for more, because taking single messages costs a round trip
#: each.
ENOUGH = 16
GATHER_S = 0.02
#: Pause after a call that took fewer than that although there was credit for more, in seconds: its messages go on at
#: once, instead of waiting for Python's lock behind the next call, which would find a message or none. It lasts longer
#: while Redis reports nothing new.
PAUSE_S = 0.002
LULL_S = 0.01
#: Redis may fail to report a change, because its table of tracked keys is bounded. So lists are read this often, in
#: seconds ...
LOOK_S = 1.0
#: ... and this often if Redis cannot report changes, or if a queue waits for credit.
POLL_S = 0.1
#: Pause between two calls that only put messages in order, in seconds.
MOVE_PAUSE_S = 0.005
#: A thread, or an event loop, that has done nothing for this long hangs, in seconds.
STALLED_S = 60.0
#: Delay after a fault, doubled after each further one up to ``RETRY_MAX_S``, in seconds.
RETRY_S = 0.02
RETRY_MAX_S = 0.5


@dataclass(frozen=True)
class Deaf:
    """The reason why no messages of a queue come in."""

    #: A sentence.
    reason: str
    #: Whether a new process may help; False if Redis itself refused.
    restart_helps: bool = True


@dataclass(frozen=True)
class Terms:
    """A channel's rules for its queues."""

    #: Queue and number of queues -> how much may be taken from it now, without shares.
    wanted: Callable[[str, int], Wanted]
    #: Whether the lower priorities of a queue get a share of each reserve; otherwise priorities are strict.
    shares: Callable[[str], bool] = lambda queue: False
    #: A thread, or an event loop, that has done nothing for this long hangs, in seconds.
    stalled_s: float = STALLED_S


class Reserver:
    """Takes messages for one channel; owns its thread, two connections and two pipes.

    Args:
        leases: records the messages that were taken.
        connect: creates a connection to the same server.
        terms: how much may be taken.
    """

    def __init__(self, leases: Leases, connect: Callable[[], Link], terms: Terms) -> None:
        self._leases = leases
        self._line = Line(connect)
        self._terms = terms
        self._queues: tuple[str, ...] = ()
        self._rotation = 0
        self._looks = Looks()
        #: Fractions of messages that are still due to each list, because reserves were too small for its share.
        self._owed: dict[str, list[float]] = {}
        self._lock = threading.Lock()
        self._ready: deque[Reserved] = deque()
        self._ready_since = 0.0
        #: A pipe that is readable while messages are ready.
        self.doorbell, self._ring = os.pipe()
        self._woken, self._wake = os.pipe()
        for end in (self.doorbell, self._ring, self._woken, self._wake):
            os.set_blocking(end, False)
        self._closing = threading.Event()
        #: When the thread last completed a turn, successful or not.
        self.seen_at = time.monotonic()
        #: The error of the last turn; None if it succeeded.
        self._fault: BaseException | None = None
        #: Queue -> Redis' error about one of its keys, in the last reserve.
        self._refused: dict[str, str] = {}
        #: Whether the script has more messages to put in order, for which it needs no credit; and whether it left none
        #: on the lists that it could read.
        self._is_unmoved = self._is_emptied = False
        leases.readers.add(self)
        self._thread = threading.Thread(target=self._run, name="reserve", daemon=True)
        self._thread.start()

    # -- the event loop's side ----------------------------------------------------------------------------------------

    def take_from(self, queues: tuple[str, ...]) -> None:
        """Sets the queues to take from. Messages of other queues that were not handed out yet are put back."""
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
        """Returns at most ``most`` messages that were taken, oldest first."""
        with self._lock:
            found = [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
            self._ready_since = time.monotonic()
            if not self._ready:
                with suppress(BlockingIOError):
                    os.read(self.doorbell, 4096)
        return found

    def stalled(self) -> str | None:
        """What hangs, as a sentence; None if nothing does. Only a new process can help then."""
        now = time.monotonic()
        with self._lock:
            waiting_s = now - self._ready_since if self._ready else 0.0
        if waiting_s > self._terms.stalled_s:
            return f"messages have waited {waiting_s:.0f} s for the event loop"
        if self._queues and now - self.seen_at > self._terms.stalled_s:
            return f"no message was asked for in {now - self.seen_at:.0f} s"
        return None

    def deaf(self) -> dict[str, Deaf | None]:
        """Each queue to take from -> the reason why no messages come in; None if they do."""
        queues, fault, refused = self._queues, self._fault, self._refused
        if not self._thread.is_alive():
            return dict.fromkeys(queues, Deaf("the thread that takes messages has ended"))
        if fault is not None:
            # Redis would answer a new process in the same way.
            helps = not isinstance(fault, ResponseError | AuthenticationError | MaxConnectionsError)
            return dict.fromkeys(queues, Deaf(f"{type(fault).__name__}: {shown.line(str(fault))}", helps))
        return {queue: Deaf(refused[queue], False) if queue in refused else None for queue in queues}

    def close(self) -> None:
        """Ends the thread. Messages that were taken and not handed out are put back."""
        if self._closing.is_set():
            return
        self._leases.readers.discard(self)
        lists = [name for queue in self._queues for name in self._terms.wanted(queue, 1).lists]
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
        with suppress(RedisError):
            self._leases.unmove(lists)

    def _nudge(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._wake, b"!")

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        retry_s = RETRY_S
        while not self._closing.is_set():
            try:
                self._turn()
                self._fault, retry_s = None, RETRY_S
                outage.over("reserve")
            except Exception as error:
                # The thread must not end, because without it the worker would never take a message again.
                if self._closing.is_set():
                    break
                self._fault = error
                self.seen_at = time.monotonic()
                if isinstance(error, RedisError | OSError):
                    outage.noticed("reserve", error)
                else:
                    logger.exception("reserve", extra={"action": "reserve"})
                self._line.close()
                self._looks.reported()
                self._sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_MAX_S)
        self._line.close()

    def _turn(self) -> None:
        queues = self._queues
        if not queues:
            self.seen_at = time.monotonic()
            self._sleep(LOOK_S)
            return
        sharing = self._leases.sharing
        if sharing is not None and not self._is_unmoved and sharing.lasts_s() >= LASTS_S:
            self._sleep(YIELD_S)
        self._rung()
        wanted = self._wanted(queues)
        free = sum(one.messages for one in wanted)
        has_credit = self._is_unmoved or free >= ENOUGH
        if not has_credit:
            has_credit = self._gathered(queues, free)
            wanted = self._wanted(queues)
        # Without credit, the script only looks for the marks of idle workers.
        if not has_credit and not self._looks.is_due(queues, sharing, self._line.rings):
            return
        wanted = self._looks.with_marks(wanted, sharing)
        if number := self._reserve(queues, wanted):
            if not number < ENOUGH < free or self._pause() or not self._is_watched(queues):
                return
            # Lone messages take one call each, not two.
            wanted = self._wanted(queues)
        if self._is_unmoved:
            # Redis serves others in between.
            self._sleep(MOVE_PAUSE_S)
            return
        starved = any(not one.messages or not one.nbytes for one in wanted)
        self._wait_for_bell(LOOK_S if self._line.rings and not starved else POLL_S)

    def _is_watched(self, queues: tuple[str, ...]) -> bool:
        """Whether another call, after one that took few messages, would find nothing that Redis does not report."""
        sharing = self._leases.sharing
        gives = sharing is not None and any(sharing.shares(one) and sharing.spare(one) for one in queues)
        return self._line.rings and self._is_emptied and not gives

    def _wanted(self, queues: tuple[str, ...]) -> list[Wanted]:
        return [self._terms.wanted(queue, len(queues)) for queue in queues]

    def _gathered(self, queues: tuple[str, ...], free: int) -> bool:
        """Waits a moment for more credit. Returns whether there is any."""
        held, _ = self._leases.held()
        if not held and free:
            return True  # no message is held, so none can free credit
        with self._leases.changed:
            self._leases.changed.wait_for(
                lambda: self._closing.is_set() or sum(one.messages for one in self._wanted(queues)) >= ENOUGH,
                GATHER_S if free else POLL_S,
            )
        self.seen_at = time.monotonic()
        return any(one.messages and one.nbytes for one in self._wanted(queues))

    def _reserve(self, queues: tuple[str, ...], wanted: list[Wanted]) -> int:
        """Calls the script once. Returns how many messages it took."""
        # The queue that was first last time is last now, so that with little credit each queue gets its turn.
        self._rotation = (self._rotation + 1) % len(queues)
        wanted = [
            replace(one, shares=self._shares(one)) if self._terms.shares(one.queue) else one
            for one in (*wanted[self._rotation :], *wanted[: self._rotation])
        ]
        script, arguments = self._leases.reserve_command(wanted)
        reserved, places, self._refused, self._is_unmoved, idle = taken(self._line.call(script, arguments), wanted)
        self._is_emptied = not (self._is_unmoved or self._refused) and _got_all(reserved, wanted)
        self.seen_at = time.monotonic()
        for queue, number in idle.items():
            self._looks.answered([queue])
            if (sharing := self._leases.sharing) is not None:
                sharing.give_back(queue, number)
        if not reserved:
            return 0
        self._looks.took()
        self._settle(places)
        self._leases.add(reserved)
        with self._lock:
            kept = [one for one in reserved if one.queue in self._queues]
            first = not self._ready
            self._ready += kept
            if first:
                self._ready_since = time.monotonic()
            if first and kept:
                with suppress(BlockingIOError):
                    os.write(self._ring, b"!")
        if len(kept) < len(reserved):
            # Their queues were cancelled while the script ran.
            self._leases.requeue(one.tag for one in reserved if one.queue not in self._queues)
        return len(reserved)

    def _shares(self, wanted: Wanted) -> list[int]:
        owed = self._owed.setdefault(wanted.queue, [0.0] * len(wanted.lists))
        credit = wanted.messages
        for at in range(1, len(owed)):
            # Bounded, so that a list that was empty for long does not overtake all others at once.
            owed[at] = min(owed[at] + credit * SHARE, max(1.0, credit * SHARE))
        return [int(share) for share in owed]

    def _settle(self, places: list[tuple[str, int]]) -> None:
        """Subtracts the messages that lists got from what is due to them."""
        for queue, at in places:
            if (owed := self._owed.get(queue)) is not None:
                owed[at] = max(0.0, owed[at] - 1)

    def _pause(self) -> bool:
        """Pauses. Returns whether Redis has reported something new."""
        until = time.monotonic() + PAUSE_S
        has_rung = self._line.rings and self._wait_for_bell(LULL_S)
        if (left := until - time.monotonic()) > 0:
            self._sleep(left)
        return has_rung

    def _wait_for_bell(self, timeout_s: float) -> bool:
        """Waits for a report of Redis. Returns whether there was one."""
        if self._rung():
            return True
        self._sleep(timeout_s, *self._line.sockets)
        return self._rung()

    def _rung(self) -> bool:
        """Reads the reports of Redis. Returns whether there were any."""
        if rung := self._line.rung():
            self._looks.reported()
        return rung

    def _sleep(self, timeout_s: float, *others: Any) -> None:
        """Waits up to ``timeout_s``, until one of the others can be read, or until :meth:`_nudge` is called."""
        # poll() instead of select(), which takes no file descriptor above 1023.
        poll = select.poll()
        for one in (self._woken, *others):
            poll.register(one, select.POLLIN)
        poll.poll(timeout_s * 1000)
        with suppress(BlockingIOError):
            os.read(self._woken, 4096)


def _got_all(reserved: list[Reserved], wanted: list[Wanted]) -> bool:
    """Whether none was left behind for lack of credit."""
    nbytes = sum(one.too_large or len(one.raw) for one in reserved)
    numbers = Counter(one.queue for one in reserved)
    return all(numbers[one.queue] < one.messages and nbytes < one.nbytes for one in wanted)
