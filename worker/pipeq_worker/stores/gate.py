"""GATE: keeps calls away from a server that has just failed, again and again. Before: fetch, writer. After: a store.

A call to a server that is away may take a minute and a half, and as many threads wait for it as there are; tasks that
need nothing of it would wait behind them. So after a few failures in a row the gate is shut: calls fail at once, and
now and then one is let through to see whether the server is back (a circuit breaker). A server that answers nothing at
all shuts its gate, too, before the first call has timed out. See docs/decisions/own-faults.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeq.contract.errors import Blame

from pipeq_worker.observe.own_faults import without_object
from pipeq_worker.stores.base import Fault, Source, StoreError

#: Calls that fail in a row before the gate is shut.
FAILURES = 5
#: A server that has answered none of so many calls, and for so long in seconds, is away.
SILENT_CALLS, SILENT_S = 5, 2.0
#: The first pause before one call is let through, doubled after each that fails, and the longest one, in seconds.
PAUSE_S, MOST_PAUSE_S = 1.0, 8.0


class Gate:
    """The gate of one server. Safe for any number of threads.

    Args:
        now: the clock, for tests.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._failures = 0
        #: The last failure of the server; None if it answers.
        self._last: StoreError | None = None
        self._pause_s = PAUSE_S
        #: When the next call may go through, if the gate is shut.
        self._opens_at = 0.0
        #: Calls that run -> when each began; the last one that was let through a shut gate; and when the server last
        #: gave a sign of life.
        self._running: dict[int, float] = {}
        self._calls = 0
        self._trial = 0
        #: Until when nobody else passes :meth:`check`.
        self._passed_until = 0.0
        self._alive_at = float("-inf")

    def check(self, name: str, *, waits: bool = False) -> None:
        """Raises if a call would be kept away now. While the gate is shut, one passes in each pause, to be the trial.

        Args:
            name: what the call is about, for the error.
            waits: whether the call has waited for a thread already, so that it can be no trial.

        Raises:
            StoreError: what the server failed with; nobody has tried this time.
        """
        with self._lock:
            now = self._now()
            self._notice_silence(now)
            if self._failures < FAILURES:
                return
            if waits or self._is_shut(now) or now < self._passed_until:
                raise self._refusal(name)
            self._passed_until = now + self._pause_s

    @contextmanager
    def call(self, name: str, *, may_be_silent: bool = False) -> Iterator[None]:
        """Runs the block as one call; its StoreErrors are counted.

        Args:
            name: what the call is about, for the error.
            may_be_silent: whether the server says nothing for long while all is well, as during a large upload.

        Raises:
            StoreError: the gate is shut, see :meth:`check`; or what the block raises.
        """
        number = self._enter(name, may_be_silent)
        try:
            yield
        except StoreError as error:
            # A server that says no, or that it has no such object, is there.
            failed = error.fault is Fault.PASSING or error.blame is Blame.WORKER
            self._failed(error, number) if failed else self._answered()
            raise
        else:
            self._answered()
        finally:
            with self._lock:
                self._running.pop(number, None)

    def watched(self, source: Source) -> Source:
        """Returns a source whose reads are signs of life."""

        def read(most: int) -> bytes:
            data = source.read(most)
            self._alive_at = self._now()
            return data

        self._answered()
        return Source(source.size, read)

    def _enter(self, name: str, may_be_silent: bool) -> int:
        with self._lock:
            now = self._now()
            if not may_be_silent:
                self._notice_silence(now)
            if self._is_shut(now):
                raise self._refusal(name)
            self._calls += 1
            if self._failures >= FAILURES:
                self._trial = self._calls
            # One that may be silent never counts as silent.
            self._running[self._calls] = float("inf") if may_be_silent else now
            return self._calls

    def _is_shut(self, now: float) -> bool:
        return self._failures >= FAILURES and (now < self._opens_at or self._trial in self._running)

    def _notice_silence(self, now: float) -> None:
        if self._failures >= FAILURES or now - self._alive_at < SILENT_S:
            return
        if sum(now - began >= SILENT_S for began in self._running.values()) >= SILENT_CALLS:
            self._failures, self._last = FAILURES, StoreError(Fault.PASSING, "it does not answer")
            self._opens_at = now + self._pause_s

    def _failed(self, error: StoreError, number: int) -> None:
        with self._lock:
            self._failures += 1
            # Without its frames, which refer to the task, and without the task's object: others are told of it.
            self._last = StoreError(error.fault, without_object(error.sentence), error.code, error.blame)
            if self._failures == FAILURES:
                self._pause_s = PAUSE_S
            elif self._failures > FAILURES and number == self._trial:
                # Not a call that began before the gate was shut.
                self._pause_s = min(2 * self._pause_s, MOST_PAUSE_S)
            else:
                return
            self._opens_at = self._now() + self._pause_s

    def _answered(self) -> None:
        with self._lock:
            self._failures, self._last, self._pause_s = 0, None, PAUSE_S
            self._alive_at = self._now()

    def _refusal(self, name: str) -> StoreError:
        last = self._last
        assert last is not None
        blame = last.blame if last.blame is Blame.WORKER else Blame.NOT_TRIED
        sentence = f"{name} is not tried: its store has just failed for others, again and again ({last})"
        return StoreError(last.fault, sentence, last.code, blame)


class Gates:
    """The gates of all servers that one part of a worker calls, each made at its first call."""

    #: Gates that are kept: producers may name any host below an allowed prefix of https.
    MOST = 1000

    def __init__(self) -> None:
        self._gates: dict[str, Gate] = {}
        self._lock = threading.Lock()

    def of(self, server: str) -> Gate:
        """Returns the gate of a server (:meth:`pipeq_worker.stores.base.Store.server`)."""
        with self._lock:
            if server not in self._gates:
                if len(self._gates) >= self.MOST:
                    del self._gates[next(iter(self._gates))]
                self._gates[server] = Gate()
            return self._gates[server]
