"""BACKLOG: what waits in the queues of this worker's pipelines, and how long all live workers need for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import redis
from pipeq.contract import keys
from pipeq.contract.heartbeat import Beat, drain_s, totals
from redis.exceptions import RedisError

#: What was read is told again for so long, in seconds, however often somebody asks.
KEPT_S = 2.0


@dataclass(frozen=True)
class Queue:
    """The state of one queue. None where its key in Redis is of another type."""

    #: Messages on the lists of all priorities; messages that wait for their time; and tasks inside all live workers.
    waiting: int
    delayed: int | None
    leased: int
    dead_letters: int | None
    workers: int
    #: Seconds until all of them are done; None if no worker has a rate yet.
    drain_s: float | None


class Backlog:
    """Reads the queues when somebody asks; safe for any number of threads.

    Args:
        client: a client of its own, with a short limit on replies.
        pipelines: the names of the queues.
    """

    def __init__(self, client: redis.Redis, pipelines: Iterable[str]) -> None:
        self._redis = client
        self._pipelines = list(pipelines)
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._found: dict[str, Queue] = {}

    def read(self) -> dict[str, Queue]:
        """Pipeline -> its queue, in two round trips; empty if Redis does not answer. Never raises."""
        with self._lock:
            now = time.monotonic()
            if self._read_at is None or now - self._read_at > KEPT_S:
                try:
                    self._found = self._read()
                except RedisError:
                    self._found = {}
                self._read_at = time.monotonic()
            return self._found

    def _read(self) -> dict[str, Queue]:
        since = time.time() - keys.WORKER_TTL_S
        with self._redis.pipeline(transaction=False) as pipe:
            for name in self._pipelines:
                for key in keys.list_keys(name):
                    pipe.llen(key)
                pipe.zcard(keys.waiting_key(name))
                pipe.llen(keys.dead_letter_key(name))
                pipe.zrangebyscore(keys.workers_key(name), since, "+inf")
            # A key of another type must not hide the other queues.
            replies = [None if isinstance(one, Exception) else one for one in pipe.execute(raise_on_error=False)]
        size = len(keys.PRIORITY_STEPS) + 3
        rows = [replies[start : start + size] for start in range(0, len(replies), size)]
        everybody = sorted({name for row in rows for name in row[-1] or ()})
        raw = self._redis.mget([keys.worker_key("").encode() + name for name in everybody]) if everybody else []
        beats = {name: Beat.read(one) for name, one in zip(everybody, raw, strict=True)}
        return {
            name: self._queue(name, row, [beats[one] for one in row[-1] or ()])
            for name, row in zip(self._pipelines, rows, strict=True)
        }

    def _queue(self, name: str, row: list, workers: list[Beat]) -> Queue:
        *lengths, delayed, dead, _ = row
        waiting, (leased, _) = sum(length or 0 for length in lengths), totals(name, workers)
        return Queue(waiting, delayed, leased, dead, len(workers), drain_s(waiting + leased, name, workers))
