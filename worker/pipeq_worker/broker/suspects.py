"""SUSPECTS: receives, one by one, the messages that a host had when it died. Before: transport. After: pool.

Whatever a host had when it died may be the cause, and most of it was only there. So each is received alone, and Redis
knows that it is: if this host dies, too, just that message is charged (leases/history.py). One that so many hosts have
died with that this is no accident any more, although none was charged, stays alone of its kind until its task has
ended. Why: docs/decisions/blame.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from kombu.asynchronous import get_event_loop

from pipeq_worker.leases.history import history_of
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserved import Reserved

#: How often it is looked whether the next one's turn has come, in seconds.
LOOK_S = 0.02


class Suspects:
    """The suspects of one channel. Used on the thread of the event loop.

    Args:
        leases: holds the messages.
        max_deaths: a message that may be the cause of so many deaths is given up.
        hand_on: receives one message.
        give_up: ends a message without looking into it; gets the number of deaths.
    """

    def __init__(
        self,
        leases: Leases,
        max_deaths: int,
        hand_on: Callable[[Reserved], None],
        give_up: Callable[[Reserved, int], None],
    ) -> None:
        self._leases = leases
        self._max_deaths = max_deaths
        self._hand_on = hand_on
        self._give_up = give_up
        #: Those that have not been received yet, and whether it is being looked whether they may be.
        self._new: deque[Reserved] = deque()
        self._is_due = False
        #: Those that stay alone of their kind, and the tag of the one that is inside.
        self._waiting: deque[Reserved] = deque()
        self._inside = ""
        self._closed = False

    def receive(self, reserved: Sequence[Reserved]) -> None:
        """Receives messages, now or as soon as their turn has come."""
        self._new.extend(reserved)
        if not self._is_due:
            self._look()

    def close(self) -> None:
        """Puts those back that have not been received: nobody would look at them any more, nor would they lapse."""
        self._closed = True
        if self._is_due:
            self._leases.disclaim()
        left = [one.tag for one in (*self._new, *self._waiting)]
        self._new.clear()
        self._waiting.clear()
        self._leases.requeue(left)

    def _look(self) -> None:
        if self._closed:
            return
        self._is_due = False
        if not self._leases.claim() and (loop := get_event_loop()) is not None:
            # A task that is as suspect is on its way to its result.
            self._is_due = True
            loop.call_later(LOOK_S, self._look)
            return
        try:
            self._receive_new()
        finally:
            self._leases.disclaim()
        self._next()

    def _receive_new(self) -> None:
        last = ""
        while self._new:
            one = self._new.popleft()
            history = history_of(one.raw)
            if not self._leases.holds(one.tag):
                continue
            # A death that many share proves nothing, so one that is given up was charged once at least.
            if history.charged >= max(1, self._max_deaths - 1):
                self._give_up(one, history.deaths)
            elif history.lapses >= self._max_deaths:
                self._waiting.append(one)
            else:
                self._leases.hold(one.tag, instead_of=last)
                last = one.tag
                self._receive(one)
        if last:
            self._leases.hold("", instead_of=last)

    def _receive(self, one: Reserved) -> None:
        try:
            self._hand_on(one)
        except BaseException:
            # Nothing has seen the remaining messages. This one was not taken in: Redis was away when its end was to be
            # stored. Nobody else would put it back, and its lease would be renewed for ever.
            self._leases.requeue(later.tag for later in (one, *self._new, *self._waiting))
            raise

    def _next(self) -> None:
        """Lets the next one in, if none is inside."""
        # There is one in a worker. Whoever takes messages one by one has them one by one anyway.
        loop = get_event_loop()
        while self._waiting:
            if loop is not None and self._leases.holds(self._inside):
                loop.call_later(LOOK_S, self._next)
                return
            one = self._waiting.popleft()
            if self._leases.holds(one.tag):
                self._inside = one.tag
                self._leases.hold(one.tag)
                self._receive(one)
