"""HEALTH: whether this worker lives, and whether it takes tasks. Answers ``/livez`` and ``/readyz``.

Every answer is cheap: each part is asked when it last turned, and nobody is waited for. A worker that hangs does not
get better by itself, so ``/livez`` is for whoever restarts it; a worker that is loading, stopping or cut off from Redis
lives and is not ready.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

#: Redis counts as answering for so long after its last answer to the heartbeat, in seconds.
REDIS_S = 6.0


def _never_away() -> float:
    return float("inf")


def _nothing() -> None:
    """The default, if nobody need know."""


class Pulse:
    """When a loop last turned. The loop calls :meth:`turned`; anybody may ask.

    Args:
        what: what the loop is, for the sentence.
        limit_s: without a turn for longer than this, it hangs.
    """

    def __init__(self, what: str, limit_s: float) -> None:
        self._what = what
        self._limit_s = limit_s
        self._at: float | None = None
        #: Called at each turn.
        self.on_turn: Callable[[], None] = _nothing

    def turned(self) -> None:
        """Notes a turn."""
        self._at = time.monotonic()
        self.on_turn()

    def age_s(self) -> float | None:
        """Seconds since the last turn; None before the first one."""
        return None if self._at is None else time.monotonic() - self._at

    def hangs(self, at_most_s: float = float("inf")) -> str | None:
        """Says that the loop hangs; None if it does not, or has not begun.

        Args:
            at_most_s: the loop could turn only during this time.
        """
        age_s = self.age_s()
        if age_s is None or min(age_s, at_most_s) <= self._limit_s:
            return None
        return f"{self._what} has not turned for {age_s:.0f} s"


class Health:
    """The state of the worker. Safe for any number of threads.

    Args:
        pipelines: names of the pipelines, none of which is loaded yet.
        hung_s: without a turn for longer than this, a loop hangs.
        quiet_s: returns for how many seconds Redis has not been away. A loop that waits for Redis does not hang.
    """

    def __init__(self, pipelines: Iterable[str], hung_s: float, quiet_s: Callable[[], float] = _never_away) -> None:
        self.hung_s = hung_s
        self._quiet_s = quiet_s
        self._pipelines = frozenset(pipelines)
        #: Celery's event loop, the heartbeat, and Redis' answers to it.
        self.loop = Pulse("Celery's event loop", hung_s)
        self.heartbeat = Pulse("the heartbeat", hung_s)
        self.redis = Pulse("Redis", REDIS_S)
        self._parts: list[Callable[[], str | None]] = []
        self._loading = dict.fromkeys(self._pipelines)
        self._deaf: Callable[[], dict[str, str]] = dict
        self._lock = threading.Lock()
        self._serves = False
        self._stops_until: float | None = None

    def watch(self, hangs: Callable[[], str | None]) -> None:
        """Adds a part: a function that says in a sentence that the part hangs or has ended, or returns None.

        Adding a part again changes nothing.
        """
        if hangs not in self._parts:
            self._parts.append(hangs)

    def hears(self, deaf: Callable[[], dict[str, str]]) -> None:
        """Sets the function that returns queue -> why no messages are taken from it."""
        self._deaf = deaf

    def loads(self, pipelines: Iterable[str]) -> None:
        """Notes that pipelines are being loaded, for instance again after the device process died."""
        with self._lock:
            self._loading.update(dict.fromkeys(pipelines))

    def loaded(self, pipeline: str) -> None:
        """Notes that a pipeline is loaded."""
        with self._lock:
            self._loading.pop(pipeline, None)

    def loading(self) -> list[str]:
        """The pipelines that are not loaded now."""
        with self._lock:
            return list(self._loading)

    def serves(self) -> None:
        """Notes that messages are being taken."""
        self._serves = True

    def stops(self, within_s: float) -> None:
        """Notes that the worker stops, and must have ended after this time. Its loops need not turn any more."""
        if self._stops_until is None:
            self._stops_until = time.monotonic() + within_s

    @property
    def is_stopping(self) -> bool:
        """Whether the worker stops."""
        return self._stops_until is not None

    def dead(self) -> list[str]:
        """Why the worker counts as dead, in sentences; empty if it lives."""
        if self._stops_until is not None:
            late_s = time.monotonic() - self._stops_until
            return [f"the worker should have ended {late_s:.0f} s ago"] if late_s > 0 else []
        quiet_s = self._quiet_s()
        said = [self.loop.hangs(quiet_s), self.heartbeat.hangs(quiet_s), *(hangs() for hangs in self._parts)]
        return [one for one in said if one is not None]

    def not_ready(self) -> list[str]:
        """Why the worker takes no tasks, in sentences; empty if it does."""
        if self.is_stopping:
            return ["the worker is stopping"]
        reasons = self.dead()
        if loading := self.loading():
            reasons.append(f"loading {', '.join(loading)}")
        elif not self._serves:
            reasons.append("the worker is starting")
        elif (age_s := self.redis.age_s()) is None or age_s > REDIS_S:
            reasons.append("Redis does not answer")
        deaf = self._deaf()
        if self._pipelines and self._pipelines <= deaf.keys():
            reasons += [f"no messages are taken from {queue}: {why}" for queue, why in deaf.items()]
        return reasons
