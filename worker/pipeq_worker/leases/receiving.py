"""RECEIVING: detects queues from which no messages are taken. Checked with each heartbeat.

The result is logged, and shown by ``pipeq queues``.

A worker that takes nothing although it should looks like an idle one. So this module checks each queue that the worker
serves: does a consumer take messages from it, and did the last attempt succeed? It covers all causes: Redis refused, a
key is no list, a remote control cancelled the consumer, the consumer is gone, the worker is not able to do its tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserver import STALLED_S, Deaf
from pipeq_worker.observe.observer import Observer
from pipeq_worker.observe.outage import Episodes

#: A queue from which nothing was taken for this long is deaf, in seconds. A broken connection is back sooner.
DEAF_S = 3.0


class Receiving:
    """The check of all queues. For use by the heartbeat's thread.

    Args:
        queues: the queues that the worker serves.
        consumed: returns the queues that the worker is currently told to take from.
        on_deaf: called with a sentence if only a new process may help.
        observer: told of each queue from which nothing is taken.
        unfit: returns queue -> why the worker itself takes nothing from it now.
    """

    def __init__(
        self,
        queues: Iterable[str],
        consumed: Callable[[], Collection[str]],
        on_deaf: Callable[[str], None],
        observer: Observer | None = None,
        unfit: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._queues = tuple(queues)
        self._consumed = consumed
        self._on_deaf = on_deaf
        self._observer = observer or Observer()
        self._unfit = unfit
        self._said: set[str] = set()
        #: Queue -> when it was first found deaf, by the monotonic clock, and in seconds since the epoch.
        self._since: dict[str, tuple[float, float]] = {}
        self._served_since: float | None = None
        self._log = Episodes("no messages are taken from %s: %s", "messages are taken from %s again", "deaf")
        self._leaving = False

    def leave(self) -> None:
        """Ends the checks, because the worker stops receiving. May be called from any thread."""
        self._leaving = True

    def deaf(self) -> dict[str, dict[str, Any]]:
        """Queue -> ``{"reason", "since"}`` (a sentence, seconds since the epoch), for the worker's heartbeat."""
        found = {} if self._leaving else self._find()
        return {queue: {"reason": one.reason, "since": self._since[queue][1]} for queue, one in found.items()}

    def beaten(self, served: bool) -> None:
        """Logs what has changed since the last heartbeat, and ends the process if only a new one can help.

        Args:
            served: whether Redis took the heartbeat. If not, Redis is away, which is logged elsewhere.
        """
        now = time.monotonic()
        if not served or self._leaving:
            self._served_since = None
            return
        if self._served_since is None:
            self._served_since = now
        found = self._find()
        self._log.now({queue: one.reason for queue, one in found.items()})
        for queue in found.keys() - self._said:
            self._observer.worker_could_not(f"take from {queue}", found[queue].reason)
        for queue in self._said - found.keys():
            self._observer.worker_can_again(f"take from {queue}")
        self._said = set(found)
        for queue, one in found.items():
            if one.restart_helps and now - max(self._since[queue][0], self._served_since) > STALLED_S:
                self._on_deaf(f"no messages are taken from {queue}, though Redis serves: {one.reason}")
                return

    def _find(self) -> dict[str, Deaf]:
        heard: dict[str, Deaf | None] = {}
        for leases in Leases.every():
            for reader in list(leases.readers):
                heard |= reader.deaf()
        consumed, found, unfit = self._consumed(), {}, self._unfit()
        for queue in self._queues:
            if queue not in consumed:
                found[queue] = Deaf("a remote control has cancelled its consumer (cancel_consumer)", False)
            elif queue in unfit:
                found[queue] = Deaf(unfit[queue], False)
            elif (deaf := heard.get(queue, Deaf("it has no consumer"))) is not None:
                found[queue] = deaf
        now = time.monotonic()
        self._since = {queue: self._since.get(queue, (now, time.time())) for queue in found}
        return {
            queue: one
            for queue, one in found.items()
            if queue not in consumed or queue in unfit or now - self._since[queue][0] >= DEAF_S
        }
