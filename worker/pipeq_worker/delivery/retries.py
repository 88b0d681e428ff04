"""RETRIES: a task that failed -> whether it is tried again, when, and by whom. Before: tracing. After: its queue.

Tasks wait for their next try in a sorted set in Redis, so that an outage of a store fills no worker. What counts among
a task's tries, and what does not, follows from whose fault the error is: docs/decisions/own-faults.md.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import redis
from pipeq.contract import keys, shown
from pipeq.contract.errors import Blame, ErrorCode, PipeqError
from pipeq.contract.reading import json_object
from redis.exceptions import RedisError, ResponseError

from pipeq_worker.delivery.backend import Retry
from pipeq_worker.delivery.dead_letter import LETTER_CHARS, raw_frame
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.leases import lua
from pipeq_worker.leases.frame import readable_id
from pipeq_worker.observe.outage import Episodes, is_wrong_type
from pipeq_worker.settings.read import Settings

#: Number of messages that one call of the script puts back on their lists at most.
RETRIES_PER_CALL = 1000
#: A task that another worker could do at once waits no longer than this, in seconds.
HAND_ON_MAX_S = 30.0
#: A worker that could not do a task leaves it to others for so long, if there are any, in seconds. They get it within
#: the time above, unless they are busy, or broken, too.
PREFER_OTHERS_S = 60.0


class Retries:
    """Decides on retries, and puts messages that are due back on their queues.

    Args:
        client: Redis.
        settings: the worker's settings.
        refuse: ends a message; gets its queue, its task's id (or None), the error and its text.
        worker: this worker's name.
    """

    def __init__(
        self,
        client: redis.Redis,
        settings: Settings,
        refuse: Callable[[str, str | None, PipeqError, str], None],
        worker: str = "",
    ) -> None:
        self._redis = client
        self._settings = settings
        self._refuse = refuse
        self._worker = worker
        self._log = Episodes("what waits for %s cannot go on: %s", "what waits for %s goes on", "due")
        self._due = client.register_script(lua.source("due"))

    def delay_s(self, retries: int, longest_s: float | None = None) -> float:
        """Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", 2015), in seconds."""
        most = self._settings.retry_backoff_max_s if longest_s is None else longest_s
        # 2 ** 1000 is the largest power of two that a float holds, nearly.
        return random.uniform(0, min(most, self._settings.retry_backoff_s * 2.0 ** min(retries, 1000)))  # noqa: S311 - spreads load, guards nothing

    def decide(self, delivery: Delivery) -> Retry | None:
        """Returns the next try of a task that has failed; None if it has ended.

        Sets :attr:`Delivery.counts`, and says in the task's error why it is given up, if that is not plain.
        """
        error, settings = delivery.error, self._settings
        if error is None or delivery.pipeline is None:
            return None
        now = time.time()
        since = min(now, delivery.retrying_since or now)
        blame, refused_by = error.blame, delivery.refused_by
        if blame is Blame.EITHER:
            refused_by = tuple(dict.fromkeys((*refused_by, self._worker)))
            if len(refused_by) >= keys.REFUSED_BY_MAX or not self._others(delivery.pipeline.name, refused_by):
                return None
        elif blame is Blame.TASK and (not error.retryable or delivery.retries + 1 >= settings.max_attempts):
            return None
        counts = blame is Blame.TASK
        if now - since >= settings.max_retry_age_s:
            if not counts:
                delivery.error = _given_up(error, now - since)
            return None
        delivery.counts = counts
        waits = delivery.retries if counts else delivery.put_off
        if blame is Blame.NOT_TRIED:
            waits += 2  # it is known that the store is away, so that coming back soon would only keep workers busy
        longest_s = settings.retry_backoff_max_s
        if blame in (Blame.WORKER, Blame.EITHER):
            longest_s = min(longest_s, HAND_ON_MAX_S)
        failed_on = self._failed_on(delivery, blame, now)
        headers = {
            "retries": delivery.retries + counts,
            keys.RETRYING_SINCE_HEADER: round(since, 3),
            keys.PUT_OFF_HEADER: delivery.put_off + (not counts),
            **({keys.REFUSED_BY_HEADER: list(refused_by)} if refused_by else {}),
            **({keys.FAILED_ON_HEADER: failed_on or None} if failed_on or delivery.failed_on else {}),
            # The running mark counts them, too, but it ends with this try.
            **({keys.PAST_DEATHS_HEADER: min(delivery.deaths, keys.ATTEMPTS_MAX)} if delivery.deaths else {}),
        }
        return self._next_try(delivery, now + self.delay_s(waits, longest_s), headers)

    def _failed_on(self, delivery: Delivery, blame: Blame, now: float) -> dict[str, float]:
        """The workers that could not do a task a short time ago, this one included if that is why it failed."""
        found = {name: at for name, at in delivery.failed_on.items() if abs(now - at) < PREFER_OTHERS_S}
        if blame in (Blame.WORKER, Blame.EITHER):
            found[self._worker] = round(now, 3)
        return dict(sorted(found.items(), key=lambda one: one[1])[-keys.REFUSED_BY_MAX :])

    def _next_try(self, delivery: Delivery, due: float, headers: dict[str, Any]) -> Retry:
        """Returns a copy of the task's message with other headers, for the backend to put into the waiting set."""
        assert delivery.pipeline is not None
        frame = raw_frame(delivery.request.message)
        message = {
            **frame,
            "headers": {**frame["headers"], **headers},
            # A new tag, so that a late acknowledgement of the first delivery does not acknowledge the second.
            "properties": {**frame["properties"], "delivery_tag": str(uuid.uuid4())},
        }
        key = keys.list_key(delivery.queue or delivery.pipeline.name, _priority(frame["properties"]))
        front = "" if delivery.leases is None else delivery.leases.front(delivery.tag)
        member = json.dumps({"list": key, "message": front + json.dumps(message)})
        return Retry(due, keys.waiting_key(delivery.pipeline.name), member)

    def _others(self, name: str, refused_by: Iterable[str]) -> bool:
        """Whether a live worker serves the pipeline that has not refused the task yet."""
        try:
            live: Any = self._redis.zrangebyscore(keys.workers_key(name), time.time() - keys.WORKER_TTL_S, "+inf")
        except RedisError:
            return True  # it will be asked again after the next try
        return not {one.decode("utf-8", "replace") for one in live} <= set(refused_by)

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


def _given_up(error: PipeqError, age_s: float) -> PipeqError:
    what = "no worker could do it" if error.blame is not Blame.NOT_TRIED else "its store was away"
    given_up = PipeqError(
        error.code, f"{error.message}; given up, because {what} for {age_s:.0f} s (`max_retry_age_s`)", error.retryable
    )
    given_up.traceback, given_up.blame = error.traceback, error.blame
    return given_up


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
