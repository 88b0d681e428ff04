"""RENEWING: the thread that renews the leases of this process, and puts back what others, or Celery, have let go of.

    every third of a lease: renew all    every sweep_s: lapsed leases -> lists    dropped without an answer -> list

After Redis was away nobody's lapsed leases are taken until one lease has passed: other workers were cut off, too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

from redis.exceptions import RedisError

from pipeq_worker.observe.outage import outage

logger = logging.getLogger(__name__)

#: The thread hangs if it has done nothing for this long beyond its usual pause, in seconds.
HUNG_S = 60.0
#: How long a closed one may take to end, in seconds.
CLOSE_S = 10.0


class Renewed(Protocol):
    """What is renewed: :class:`pipeq_worker.leases.leases.Leases`."""

    def look_for_stalls(self) -> None:
        """Tells of what hangs."""

    def flush(self) -> None:
        """Sends the acknowledgements that are waiting."""

    def renew_all(self) -> None:
        """Renews all leases, and drops those that are gone. Raises RedisError."""

    def server_time(self) -> float:
        """The server's clock, in seconds since the epoch. Raises RedisError."""

    def put_back_lapsed(self, until: float) -> None:
        """Puts the messages of others' leases back that ended by then. Raises RedisError."""

    def holds(self, tag: str) -> bool:
        """Whether a message is held."""

    def requeue(self, tags: Iterable[str]) -> int:
        """Puts messages back."""


class Renewing:
    """Owns the thread ``leases``.

    Args:
        leases: what is renewed.
        lease_s: how long a lease lasts unless it is renewed; it is renewed three times in that time.
        sweep_s: how often lapsed leases are searched for.
    """

    def __init__(self, leases: Renewed, lease_s: float, sweep_s: float) -> None:
        self._leases = leases
        self._lease_s = lease_s
        self._sweep_s = sweep_s
        self._orphans: SimpleQueue[str] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        # No sweep until all workers have had time to renew: this process, or Redis, may have been away.
        self._quiet_until = time.monotonic() + lease_s
        #: When Redis last answered.
        self._heard_at = time.monotonic()
        #: When the thread last completed a turn, successful or not.
        self._turned_at = time.monotonic()

    def start(self) -> None:
        """Starts the thread, unless it runs. Not safe for several threads."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
            self._thread.start()

    def drop(self, tag: str) -> None:
        """Puts a message back soon, if it is still held. May be called anywhere, with any lock held."""
        self._orphans.put(tag)

    def close(self) -> None:
        """Ends the thread, and waits for that."""
        self._closing.set()
        self._orphans.put("")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)

    def hangs(self) -> str | None:
        """Says that the thread hangs or has ended; None if all is well."""
        if self._thread is None or self._closing.is_set():
            return None
        if not self._thread.is_alive():
            return "the thread that renews the leases has ended"
        late_s = time.monotonic() - self._turned_at - self._lease_s / 3
        return f"the thread that renews the leases hangs for {late_s:.0f} s" if late_s > HUNG_S else None

    def renew(self) -> None:
        """Renews now."""
        self._leases.look_for_stalls()
        self._leases.flush()
        self._leases.renew_all()

    def sweep(self) -> None:
        """Puts back the messages of lapsed leases now, unless other workers may have failed to renew theirs."""
        now = self._leases.server_time()
        if not self._was_away():
            self._leases.put_back_lapsed(now + self._lease_s / 3)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        now = self._heard_at = time.monotonic()
        renew_at, sweep_at = now + self._lease_s / 3, now
        while not self._closing.is_set():
            self._turned_at = time.monotonic()
            left = min(renew_at, max(sweep_at, self._quiet_until)) - time.monotonic()
            self._put_back_orphans(max(left, 0))
            if self._closing.is_set():
                return
            try:
                if time.monotonic() >= renew_at:
                    self.renew()
                    self._was_away()
                    renew_at = time.monotonic() + self._lease_s / 3
                if time.monotonic() >= max(sweep_at, self._quiet_until):
                    self.sweep()
                    sweep_at = time.monotonic() + self._sweep_s
                outage.over("leases")
            except RedisError as error:
                outage.noticed("leases", error)
                now = time.monotonic()
                # Other workers that were cut off must have time to come back and renew.
                self._quiet_until = now + self._lease_s
                renew_at = now + min(0.5, self._lease_s / 10)
            except Exception:
                # The thread must go on: without it, all leases that are held would be lost to other workers.
                logger.exception("leases", extra={"action": "leases"})
                renew_at = time.monotonic() + 1

    def _was_away(self) -> bool:
        """Whether Redis, or this process, was silent for so long that other workers may have failed to renew, too."""
        now = time.monotonic()
        away = now - self._heard_at > self._lease_s * 2 / 3
        self._heard_at = now
        if away:
            self._quiet_until = now + self._lease_s
        return away

    def _put_back_orphans(self, timeout_s: float) -> None:
        """Waits up to ``timeout_s`` for messages that were dropped while still held, and puts them back."""
        orphans = []
        with suppress(Empty):
            orphans.append(self._orphans.get(timeout=timeout_s))
            while True:
                orphans.append(self._orphans.get_nowait())
        if any(self._leases.holds(tag) for tag in orphans):
            self._leases.requeue(orphans)
