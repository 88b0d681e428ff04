"""Logs once that Redis is away and once that it is back, however many threads notice it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from redis.exceptions import NoPermissionError, ResponseError

from pipeq_worker.observe.observer import Observer

logger = logging.getLogger(__name__)

#: After an outage, connections that broke in it may be found broken, and Redis may still be busy. What fails within so
#: many seconds belongs to the outage that was told, unless it lasts longer.
SETTLE_S = 2.0


class Episodes:
    """Logs once when something goes wrong with a name, and once when it is right again. For use by one thread.

    Args:
        wrong: log message for the first case; its arguments are the names and the reason.
        right: log message for the second case; its argument is the names.
        action: the ``action`` of the log records.
    """

    def __init__(self, wrong: str, right: str, action: str) -> None:
        self._wrong, self._right, self._action = wrong, right, action
        self._said: set[str] = set()

    def now(self, wrong: Mapping[str, str]) -> None:
        """Takes all names with which something is wrong now: name -> reason."""
        reasons: dict[str, list[str]] = {}
        for name in sorted(wrong.keys() - self._said):
            reasons.setdefault(wrong[name], []).append(name)
        for reason, names in reasons.items():
            logger.warning(self._wrong, ", ".join(names), reason, extra={"action": self._action})
        if over := sorted(self._said - wrong.keys()):
            logger.warning(self._right, ", ".join(over), extra={"action": self._action})
        self._said = set(wrong)


class Outage:
    """The state of this process's connection to Redis. Safe for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._who: set[str] = set()
        self._observer = Observer()
        self._over_at = self._told_over_at = float("-inf")
        #: Whether this outage was logged.
        self._is_told = False

    def quiet_s(self) -> float:
        """For how many seconds Redis has not been away; 0 while it is, and infinite if it never was."""
        return 0.0 if self._who else time.monotonic() - self._over_at

    def tell(self, observer: Observer) -> None:
        """Sets the observer that is told of outages, in addition to the log."""
        self._observer = observer

    def noticed(self, who: str, error: BaseException) -> None:
        """Notes that a command for ``who`` failed; the first one is logged, and of an echo the first that lasts."""
        with self._lock:
            self._who.add(who)
            if self._is_told:
                return
            self._is_told = is_first = time.monotonic() - self._told_over_at >= SETTLE_S
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, NoPermissionError):
            reason += " (deploy/redis-users.acl has the rights that a worker needs)"
        if is_first:
            logger.warning("Redis does not serve (%s): %s; trying on", who, reason, extra={"action": "redis_away"})
            self._observer.worker_could_not("redis", reason)
        else:
            logger.info(
                "Redis came back, but did not yet serve %s: %s; trying on", who, reason, extra={"action": "redis_echo"}
            )

    def over(self, who: str) -> None:
        """Notes that Redis serves ``who`` again; the last one is logged."""
        if who not in self._who:  # the usual case, without the lock
            return
        with self._lock:
            self._who.discard(who)
            if self._who:
                return
            self._over_at = time.monotonic()
            was_told, self._is_told = self._is_told, False
            if was_told:
                self._told_over_at = self._over_at
        if was_told:
            logger.warning("Redis serves again", extra={"action": "redis_back"})
            self._observer.worker_can_again("redis")


def is_wrong_type(error: BaseException) -> bool:
    """Whether a command failed because its key holds another type: Redis serves, and other keys may be right."""
    # If a script met the error, Redis 6.2 has the code inside the sentence.
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


#: The one of this process.
outage = Outage()
