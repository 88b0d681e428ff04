"""Running marks: which tasks are in a batch, on which worker, and how often that killed one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable

import redis
from pipeq.contract import keys as queues
from pipeq.contract.reading import json_object

from pipeq_worker.leases import lua
from pipeq_worker.stages.task import Work

#: What begin.lua says in the place of a number of deaths.
ENDED, LOST = -1, -2
#: Most tasks that one call handles.
AT_ONCE = 1000
#: A record that holds no result is smaller than this, in bytes.
LONGEST_OPEN = 2**20
#: Celery's words for a task that has ended.
_FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


class Marks:
    """Writes the marks of a batch in one round trip. Finishing a task removes its mark (``finish.lua``)."""

    def __init__(self, client: redis.Redis, worker: str) -> None:
        self._redis = client
        self._worker = worker
        self._begin = client.register_script(lua.source("begin"))

    def begin(self, works: Iterable[Work], *, alone: bool = False) -> None:
        """Marks tasks as running, and learns of each how it stands.

        One that has ended meanwhile gets ``is_over``, one whose lease is gone ``is_lost``; one that workers died with
        gets their number, and is marked only if it runs ``alone``.
        """
        works = list(works)
        for start in range(0, len(works), AT_ONCE):
            self._begin_some(works[start : start + AT_ONCE], alone)

    def _begin_some(self, works: list[Work], alone: bool) -> None:
        now = time.time()
        leases = next((work.leases.key for work in works if work.leases is not None), queues.LEASES)
        keys = [queues.RUNNING, leases, *(queues.record_key(work.id) for work in works)]
        args: list[str | float] = [self._worker, now, queues.worker_key(""), int(alone)]
        for work in works:
            args += (work.id, work.retries, work.tag)
        reply = self._begin(keys=keys, args=args)
        for work, died, record in zip(works, reply[::2], reply[1::2], strict=True):
            work.record = json_object(record) or {}
            work.is_over = died == ENDED
            work.is_lost = work.is_lost or died == LOST
            work.deaths = max(died, 0)
            work.is_marked = died >= 0 and (alone or not work.deaths)
            work.started_at = now
            work.attempt = work.retries + work.deaths + 1

    def look(self, works: Iterable[Work]) -> None:
        """Sets ``is_over`` of tasks that have ended meanwhile: cancelled, as a rule."""
        works = list(works)
        with self._redis.pipeline(transaction=False) as pipe:
            for work in works:
                pipe.getrange(queues.record_key(work.id), 0, LONGEST_OPEN)
            # Of a key that holds no string the reply is an error.
            records = pipe.execute(raise_on_error=False)
        for work, record in zip(works, records, strict=True):
            fields = json_object(record) if isinstance(record, bytes) else None
            status = fields.get("status") if fields is not None else None
            work.is_over = work.is_over or (isinstance(status, str) and status in _FINAL)

    def take_back(self, works: Iterable[Work]) -> None:
        """Of tasks that go back on their queues unfinished: that was no death."""
        with self._redis.pipeline(transaction=False) as pipe:
            for work in works:
                if not work.is_marked:
                    continue
                if work.deaths:
                    mark = {"worker": "", "since": work.started_at, "deaths": work.deaths - 1, "attempt": work.attempt}
                    pipe.hset(queues.RUNNING, work.id, json.dumps(mark))
                else:
                    pipe.hdel(queues.RUNNING, work.id)
            pipe.execute()
