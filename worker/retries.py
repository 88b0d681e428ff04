"""Tasks that wait for their next try: in a sorted set in Redis, so that an outage of a store fills no worker."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterable
from typing import Any

import redis

from producers import queues
from worker import lua
from worker.backend import Retry
from worker.dead_letter import raw_frame
from worker.settings import Settings
from worker.work import Work

#: Most messages that one call puts back on their lists.
MOVE_AT_ONCE = 1000


class Retries:
    """Decides on retries, and puts those that are due back on their queues."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._due = client.register_script(lua.source("due"))

    def delay_s(self, retries: int) -> float:
        """Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", 2015), but never none."""
        longest = min(self._settings.retry_backoff_max_s, self._settings.retry_backoff_s * 2**retries)
        return random.uniform(longest / 2, longest)  # noqa: S311 - spreads load, guards nothing

    def next_try(self, work: Work) -> Retry:
        """A copy of the task's message, with one more retry, and when it is due. The backend puts it where it waits."""
        assert work.pipeline is not None
        delay = self.delay_s(work.retries)
        frame = raw_frame(work.request.message)
        message = {
            **frame,
            "headers": {**frame["headers"], "retries": work.retries + 1},
            # A late acknowledgement of the first delivery must not be taken for one of the second.
            "properties": {**frame["properties"], "delivery_tag": str(uuid.uuid4())},
        }
        key = queues.list_key(work.queue or work.pipeline.name, _priority(frame["properties"]))
        member = json.dumps({"list": key, "message": json.dumps(message)})
        return Retry(time.time() + delay, queues.waiting_key(work.pipeline.name), member)

    def move_due(self, names: Iterable[str]) -> None:
        """Puts what is due back on these queues."""
        for name in names:
            self._due(keys=[queues.waiting_key(name)], args=[time.time(), MOVE_AT_ONCE])


def _priority(properties: dict[str, Any]) -> int:
    """A message's priority; the default one where it is none that we know."""
    priority = properties.get("priority")
    return priority if isinstance(priority, int) and 0 <= priority <= 9 else queues.DEFAULT_PRIORITY
