"""RECEIVING: whether messages come in that should. Asked with each heartbeat, said in the log and by ``pipeq queues``.

A worker that takes nothing, though it should, looks like one that has nothing to do. So this asks from the outside: of
each queue that the worker serves, does somebody take messages, and did the last attempt go well? The cause does not
matter: refused by Redis, a key that is no list, cancelled by remote control, a consumer that is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserver import STALLED_S, Deaf
from pipeq_worker.observe.observer import Observer
from pipeq_worker.observe.outage import Episodes

#: A queue of which nothing was taken for so long is deaf: a connection that broke is back sooner, in seconds.
DEAF_S = 3.0


class Receiving:
    """For one thread, the heartbeat's.

    Args:
        queues: what the worker serves.
        consumed: those that it is still told to take from.
        on_deaf: called with a sentence when only a new process may help.
        observer: told of each queue of which nothing is taken.
    """

    def __init__(
        self,
        queues: Iterable[str],
        consumed: Callable[[], Collection[str]],
        on_deaf: Callable[[str], None],
        observer: Observer | None = None,
    ) -> None:
        self._queues = tuple(queues)
        self._consumed = consumed
        self._on_deaf = on_deaf
        self._observer = observer or Observer()
        self._said: set[str] = set()
        #: Queue -> when it was first found deaf, by this process's clock and since the epoch.
        self._since: dict[str, tuple[float, float]] = {}
        self._served_since: float | None = None
        self._log = Episodes("no messages are taken from %s: %s", "messages are taken from %s again", "deaf")
        self._leaving = False

    def leave(self) -> None:
        """From now on nothing shall come in. From any thread."""
        self._leaving = True

    def deaf(self) -> dict[str, dict[str, Any]]:
        """Queue -> ``{"reason", "since"}`` (a sentence, seconds since the epoch), for the worker's heartbeat."""
        found = {} if self._leaving else self._find()
        return {queue: {"reason": one.reason, "since": self._since[queue][1]} for queue, one in found.items()}

    def beaten(self, served: bool) -> None:
        """After a heartbeat: logs what has changed, and has the process ended where nothing else helps.

        Args:
            served: whether Redis took the heartbeat. Where it did not, it is away, and somebody has said so.
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
        consumed, found = self._consumed(), {}
        for queue in self._queues:
            if queue not in consumed:
                found[queue] = Deaf("a remote control has cancelled its consumer (cancel_consumer)", False)
            elif (deaf := heard.get(queue, Deaf("it has no consumer"))) is not None:
                found[queue] = deaf
        now = time.monotonic()
        self._since = {queue: self._since.get(queue, (now, time.time())) for queue in found}
        return {
            queue: one for queue, one in found.items() if queue not in consumed or now - self._since[queue][0] >= DEAF_S
        }
