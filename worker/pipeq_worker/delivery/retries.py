"""Retries: tasks wait for their next try in a sorted set in Redis, so that an outage of a store fills no worker."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import redis
from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.reading import json_object
from redis.exceptions import ResponseError

from pipeq_worker.delivery.backend import Retry
from pipeq_worker.delivery.dead_letter import LETTER_CHARS, raw_frame
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.leases import lua
from pipeq_worker.leases.frame import readable_id
from pipeq_worker.observe.outage import Episodes, is_wrong_type
from pipeq_worker.settings.read import Settings

#: Number of messages that one call of the script puts back on their lists at most.
RETRIES_PER_CALL = 1000


class Retries:
    """Decides on retries, and puts messages that are due back on their queues.

    Args:
        client: Redis.
        settings: the worker's settings.
        refuse: ends a message; gets its queue, its task's id (or None), the error and its text.
    """

    def __init__(
        self, client: redis.Redis, settings: Settings, refuse: Callable[[str, str | None, PipeqError, str], None]
    ) -> None:
        self._redis = client
        self._settings = settings
        self._refuse = refuse
        self._log = Episodes("what waits for %s cannot go on: %s", "what waits for %s goes on", "due")
        self._due = client.register_script(lua.source("due"))

    def delay_s(self, retries: int) -> float:
        """Exponential backoff with equal jitter (Brooker, "Exponential Backoff and Jitter", 2015), in seconds."""
        longest = min(self._settings.retry_backoff_max_s, self._settings.retry_backoff_s * 2.0 ** min(retries, 100))
        return random.uniform(longest / 2, longest)  # noqa: S311 - spreads load, guards nothing

    def next_try(self, delivery: Delivery) -> Retry:
        """Returns a copy of the task's message with one more retry, for the backend to put into the waiting set."""
        assert delivery.pipeline is not None
        delay = self.delay_s(delivery.retries)
        frame = raw_frame(delivery.request.message)
        headers = {**frame["headers"], "retries": delivery.retries + 1}
        if past := delivery.past_attempts + delivery.deaths:
            # The tries that ended with a death are counted by the running mark, which ends with this try.
            headers[keys.PAST_ATTEMPTS_HEADER] = min(past, keys.ATTEMPTS_MAX)
        message = {
            **frame,
            "headers": headers,
            # A new tag, so that a late acknowledgement of the first delivery does not acknowledge the second.
            "properties": {**frame["properties"], "delivery_tag": str(uuid.uuid4())},
        }
        key = keys.list_key(delivery.queue or delivery.pipeline.name, _priority(frame["properties"]))
        member = json.dumps({"list": key, "message": json.dumps(message)})
        return Retry(time.time() + delay, keys.waiting_key(delivery.pipeline.name), member)

    def move_due(self, names: Iterable[str]) -> None:
        """Puts due messages back on these queues. Entries that no worker wrote become dead letters."""
        wrong = {}
        for name in names:
            try:
                problem = self._move_due(name)
            except ResponseError as error:
                if not is_wrong_type(error):
                    raise
                problem = f"{keys.waiting_key(name)}: {error}"
            if problem:
                wrong[name] = shown.line(problem)
        self._log.now(wrong)

    def _move_due(self, name: str) -> str:
        waiting = keys.waiting_key(name)
        bad, problem = self._due(keys=[waiting, *keys.list_keys(name)], args=[time.time(), RETRIES_PER_CALL])
        for member in bad:
            task_id, reason = _judge(member)
            text = member[:LETTER_CHARS].decode("utf-8", "backslashreplace")
            error = PipeqError(ErrorCode.INVALID_MESSAGE, f"a message that waited for {name} {reason}")
            self._refuse(name, task_id, error, text)
            # Removed last: if this process ends before, the entry is refused again.
            self._redis.zrem(waiting, member)
        return problem.decode("utf-8", "replace")


def _judge(member: bytes) -> tuple[str | None, str]:
    """Returns the id in a waiting message that cannot go back on its queue, and what is wrong with the message."""
    entry = json_object(member)
    message = entry.get("message") if entry is not None else None
    if entry is None or not isinstance(message, str):
        return readable_id(member), "is not what a client or a worker puts there"
    task_id = readable_id(message.encode("utf-8", "surrogatepass"))
    return task_id, f"is for another list, {shown.line(str(entry.get('list')))!r}"


def _priority(properties: dict[str, Any]) -> int:
    """Returns a message's priority; the default if it has no valid one."""
    priority = properties.get("priority")
    return priority if isinstance(priority, int) and 0 <= priority <= 9 else keys.DEFAULT_PRIORITY
