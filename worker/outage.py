"""Says once that Redis is away and once that it is back, however many threads notice."""

from __future__ import annotations

import logging
import threading

from redis.exceptions import NoPermissionError

logger = logging.getLogger(__name__)


class Outage:
    """One for a process. Safe for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._who: set[str] = set()

    def noticed(self, who: str, error: BaseException) -> None:
        """Redis did not do for ``who`` what it should."""
        with self._lock:
            first = not self._who
            self._who.add(who)
        if first:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, NoPermissionError):
                reason += " (deploy/redis-users.acl has the rights that a worker needs)"
            logger.warning("Redis does not serve (%s): %s; trying on", who, reason, extra={"action": "redis_away"})

    def over(self, who: str) -> None:
        """It does so again."""
        if who not in self._who:  # the usual case, without the lock
            return
        with self._lock:
            self._who.discard(who)
            last = not self._who
        if last:
            logger.warning("Redis serves again", extra={"action": "redis_back"})


#: This process's.
outage = Outage()
