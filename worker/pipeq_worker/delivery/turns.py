"""TURNS: what each thread that delivers is working on, and since when. Used by deliver, and by whoever watches it.

Delivery runs what belongs to users: links, callbacks, receivers of Celery's signals. One that never returns, and leaves
Python's lock free, stops nothing else, so that the leases are renewed for ever. Here it is found.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from pipeq_worker.delivery.delivery import Delivery


class Turns:
    """Safe for any number of threads.

    Args:
        limit_s: a thread that has been at the same thing for longer hangs.
        quiet_s: returns for how many seconds Redis has not been away: nobody hangs who waits for it.
    """

    def __init__(self, limit_s: float, quiet_s: Callable[[], float]) -> None:
        self._limit_s = limit_s
        self._quiet_s = quiet_s
        #: Thread -> since when, and the deliveries.
        self._now: dict[int, tuple[float, Sequence[Delivery]]] = {}

    def at(self, deliveries: Sequence[Delivery]) -> None:
        """Notes what the calling thread works on from now on."""
        self._now[threading.get_ident()] = (time.monotonic(), deliveries)

    def over(self) -> None:
        """Notes that it works on nothing."""
        self._now.pop(threading.get_ident(), None)

    def late(self) -> list[Delivery]:
        """The deliveries with which a thread hangs."""
        return [one for _, deliveries in self._late() for one in deliveries]

    def hangs(self) -> str | None:
        """Says that a thread hangs, and with what; None if all is well."""
        for age_s, deliveries in self._late():
            what = f"task {deliveries[0].id}" if len(deliveries) == 1 else f"{len(deliveries)} tasks"
            return (
                f"the end of {what} has taken {age_s:.0f} s, over step_timeout_s ({self._limit_s:g} s): a callback, a "
                "receiver of a signal, or a store of results does not return"
            )
        return None

    def _late(self) -> list[tuple[float, Sequence[Delivery]]]:
        now, quiet_s = time.monotonic(), self._quiet_s()
        ages = [(now - since, deliveries) for since, deliveries in list(self._now.values())]
        return [(age_s, deliveries) for age_s, deliveries in ages if min(age_s, quiet_s) > self._limit_s]
