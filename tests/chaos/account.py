"""The accounts of a chaos test: which tasks were submitted, how each ended, and how often it was published."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import redis
from pipeq import Client, State
from pipeq.contract import keys

from tests.waiting import until

#: The channel that ends the count.
_END = "end-of-account"
_FINAL = {"SUCCESS", "FAILURE", "REVOKED"}


class Account:
    """Counts publishes from its start on; :meth:`settle` waits for the end and checks the sums."""

    def __init__(self, redis_url: str, pipeline: str = "constant") -> None:
        self.client = Client(redis_url)
        self._pipeline = pipeline
        self.ids: list[str] = []
        self._url = redis_url
        self._published: Counter[str] = Counter()

    def __enter__(self) -> Self:
        # Without a time limit: a read that is cut off in the middle of a message would end the count.
        self._listener = redis.Redis.from_url(self._url, socket_timeout=None).pubsub(ignore_subscribe_messages=True)
        self._listener.psubscribe("celery-task-meta-*", _END)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with redis.Redis.from_url(self._url) as db:
            db.publish(_END, "")
        self._thread.join()
        self._listener.close()
        self.client.close()

    def _listen(self) -> None:
        for message in self._listener.listen():
            if message["channel"] == _END.encode():
                return
            self._count(message)

    def _count(self, message: dict[str, bytes]) -> None:
        if json.loads(message["data"])["status"] in _FINAL:
            self._published[message["channel"].decode().removeprefix(keys.record_key(""))] += 1

    def submit(self, count: int, **params: float) -> None:
        """A third of the tasks are bare objects, as programs in other languages push them (docs/any-language.md)."""
        bare = [str(uuid.uuid4()) for _ in range(count // 3)]
        self.ids += self.client.submit_many(
            self._pipeline, range(count - len(bare)), params=params or None, check=False, priority=0
        )
        with redis.Redis.from_url(self._url) as db, db.pipeline() as pipe:
            for task_id in bare:
                task = {"id": task_id, "pipeline": self._pipeline, "inputs": 1, "params": params}
                pipe.lpush(self._pipeline, json.dumps(task))
            pipe.execute()
        self.ids += bare

    def submit_all(self, inputs: Sequence[Any]) -> None:
        """Submits one task for each of these inputs."""
        self.ids += self.client.submit_many(self._pipeline, inputs, check=False, priority=0)

    def has_ended(self, task_id: str) -> bool:
        """Whether the end of a task has been published."""
        return task_id in self._published

    def done(self) -> int:
        """The published tasks that have ended."""
        return len(self._published)

    def settle(self, timeout_s: float = 120) -> Counter[State]:
        """Waits until every task has ended. Each must have succeeded or failed, and have been published once.

        Returns:
            How many ended in each state.
        """
        ended = Counter(status.state for status in self.client.as_completed(self.ids, timeout_s=timeout_s))
        assert sum(ended.values()) == len(self.ids), ended
        assert set(ended) <= {State.SUCCEEDED, State.FAILED}, ended
        with redis.Redis.from_url(self._url) as db:
            until(lambda: not (db.hlen(keys.UNACKED) or db.zcard(keys.LEASES) or db.llen(self._pipeline)), 10)
            assert db.hlen(keys.RUNNING) == 0
        # Its own listener may hear of an end later than the client, and of a second one later still.
        until(lambda: len(self._published) >= len(set(self.ids)), 30)
        time.sleep(0.2)
        twice = {task: times for task, times in self._published.items() if times != 1}
        assert twice == {}, f"published more than once: {twice}"
        assert self._published.keys() == set(self.ids)
        return ended
