"""Says once that Redis is away and once that it is back, however many threads notice."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from redis.exceptions import NoPermissionError, ResponseError

from pipeq_worker.observe.observer import Observer

logger = logging.getLogger(__name__)


class Episodes:
    """Says once that something is wrong with somebody, and once that it no longer is. For one thread.

    Args:
        wrong: a line for the log; it gets the names and the reason.
        right: another; it gets the names.
        action: what the records are marked with.
    """

    def __init__(self, wrong: str, right: str, action: str) -> None:
        self._wrong, self._right, self._action = wrong, right, action
        self._said: set[str] = set()

    def now(self, wrong: Mapping[str, str]) -> None:
        """Who has something wrong now, and what: name -> reason."""
        reasons: dict[str, list[str]] = {}
        for name in sorted(wrong.keys() - self._said):
            reasons.setdefault(wrong[name], []).append(name)
        for reason, names in reasons.items():
            logger.warning(self._wrong, ", ".join(names), reason, extra={"action": self._action})
        if over := sorted(self._said - wrong.keys()):
            logger.warning(self._right, ", ".join(over), extra={"action": self._action})
        self._said = set(wrong)


class Outage:
    """One for a process. Safe for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._who: set[str] = set()
        self._observer = Observer()

    def tell(self, observer: Observer) -> None:
        """From now on it is told, too."""
        self._observer = observer

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
            self._observer.worker_could_not("redis", reason)

    def over(self, who: str) -> None:
        """It does so again."""
        if who not in self._who:  # the usual case, without the lock
            return
        with self._lock:
            self._who.discard(who)
            last = not self._who
        if last:
            logger.warning("Redis serves again", extra={"action": "redis_back"})
            self._observer.worker_can_again("redis")


def is_wrong_type(error: BaseException) -> bool:
    """Whether a key holds something else than it is for: Redis serves, and the next key may well be right."""
    # Redis 6.2 has the code inside the sentence when a script met it.
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


#: This process's.
outage = Outage()
