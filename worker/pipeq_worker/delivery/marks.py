"""Running marks: which tasks are in a batch, on which worker, and how many workers died while running each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import groupby

import redis
from pipeq.contract import events, keys
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.reading import json_value
from pipeq.contract.record import LUA, Before, Mark, attempt, with_lost

from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.times import before_batch
from pipeq_worker.leases import lua
from pipeq_worker.leases.direct import Direct

#: What begin.lua returns for a task instead of its number of deaths.
ENDED, LOST = -1, -2
#: Number of tasks that one call of the script marks at most.
MARKS_PER_CALL = 1000
_LOST = PipeqError(ErrorCode.WORKER_LOST, "a process of the worker died while it worked on the task")


class Marks:
    """Writes the marks of a batch in one round trip. Finishing a task removes its mark (``finish.lua``)."""

    def __init__(self, client: redis.Redis, worker: str) -> None:
        self._redis = client
        self._worker = worker
        self._begin = Direct(client, lua.source("begin", LUA + events.LUA + lua.source("blame")))
        self._past = client.register_script(lua.source("past", LUA + lua.source("blame")))
        self._back = client.register_script(lua.source("back", LUA + events.LUA))
        self._look = client.register_script(lua.source("look", LUA))

    def begin(self, deliveries: Iterable[Delivery], *, alone: bool = False) -> None:
        """Marks tasks as running, and reads the state of each.

        Sets ``is_over`` of a task that has ended meanwhile, ``is_lost`` of one whose lease is gone, and ``deaths`` to
        the
        number of workers that died while running it. A task with deaths is marked only if it runs ``alone``.
        """
        for lane, alike in groupby(deliveries, lambda one: one.lane):
            some = list(alike)
            for start in range(0, len(some), MARKS_PER_CALL):
                self._begin_some(lane or "", some[start : start + MARKS_PER_CALL], alone)

    def _begin_some(self, lane: str, deliveries: list[Delivery], alone: bool) -> None:
        now, steady = time.time(), time.monotonic()
        redis_keys = [keys.RUNNING, _leases_key(deliveries), *(keys.record_key(delivery.id) for delivery in deliveries)]
        args: list[str | float] = [self._worker, now, keys.worker_key(""), int(alone), lane]
        for delivery in deliveries:
            about = (delivery.id, delivery.attempts_before, delivery.tag, _as_json(before_batch(delivery, steady)))
            args += (*about, delivery.past_deaths)
        reply = self._begin(keys=redis_keys, args=args)
        told = reply[: 2 * len(deliveries)]
        for delivery, died, record in zip(deliveries, told[::2], told[1::2], strict=True):
            delivery.before = Before.read(record)
            delivery.is_over = died == ENDED
            delivery.is_lost = delivery.is_lost or died == LOST
            delivery.was_lost = delivery.was_lost or died > delivery.deaths
            # Those in this worker are counted here, too, if Redis could not be told.
            delivery.deaths = max(died, delivery.deaths)
            delivery.is_marked = died >= 0 and (alone or not delivery.deaths)
            delivery.started_at = now
            delivery.attempt = delivery.attempts_before + delivery.deaths + 1
        # After them, for tasks with deaths alone: its place, and the tries that ended so.
        for place, lost in zip(reply[len(told) :: 2], reply[len(told) + 1 :: 2], strict=True):
            deliveries[place - 1].lost = json_value(lost)

    def learn(self, deliveries: Iterable[Delivery]) -> None:
        """Reads the records of tasks that did not begin here, and what workers have died with them before."""
        unread = [one for one in deliveries if one.before is None]
        for start in range(0, len(unread), MARKS_PER_CALL):
            some = unread[start : start + MARKS_PER_CALL]
            args = [text for one in some for text in (one.id, one.past_deaths)]
            names = [keys.RUNNING, *(keys.record_key(one.id) for one in some)]
            reply = self._past(keys=names, args=[self._worker, keys.worker_key(""), *args])
            for one, record, deaths, lost in zip(some, reply[::3], reply[1::3], reply[2::3], strict=True):
                one.before = Before.read(record)
                one.was_lost = one.was_lost or deaths > one.past_deaths
                one.deaths += deaths - one.past_deaths
                if lost:
                    one.lost = with_lost(json_value(lost), one.lost)

    def died(self, deliveries: Sequence[Delivery]) -> None:
        """Notes the deaths of tasks with which a process of this worker has died, also for the next worker."""
        # A mark that is there already, of a worker that died with it, is replaced.
        self.learn(deliveries)
        marks = []
        for delivery in deliveries:
            lost = attempt(self._worker, delivery.last_started_at, time.time(), _LOST, delivery.timing_ms)
            delivery.lost = with_lost(list(delivery.lost), [lost])
            tries, ended = delivery.attempts_before + delivery.deaths, delivery.lost
            mark = Mark.back_on_its_queue(since=time.time(), deaths=delivery.deaths, attempt=tries, lost=ended)
            marks.append((delivery, mark.encode()))
        self._put_back(marks)

    def look(self, deliveries: Iterable[Delivery]) -> None:
        """Sets ``is_over`` of tasks that have ended meanwhile, usually because they were cancelled.

        In the same round trip, the marks of the others learn how far they are.
        """
        deliveries = list(deliveries)
        for start in range(0, len(deliveries), MARKS_PER_CALL):
            some = deliveries[start : start + MARKS_PER_CALL]
            args = [self._worker]
            for delivery in some:
                progress = delivery.progress if delivery.is_marked else None
                args += (delivery.id, "" if progress is None else progress.model_dump_json())
            records = self._look(keys=[keys.RUNNING, *(keys.record_key(one.id) for one in some)], args=args)
            for delivery, record in zip(some, records, strict=True):
                delivery.is_over = delivery.is_over or Before.read(record).has_ended

    def take_back(self, deliveries: Iterable[Delivery]) -> None:
        """Takes back the marks of tasks that go back on their queues unfinished: that does not count as a death."""
        marks = []
        for delivery in deliveries:
            if not delivery.is_marked:
                continue
            mark = ""
            if delivery.deaths:
                since, tries = delivery.started_at or time.time(), delivery.attempts_before + delivery.deaths
                mark = Mark.back_on_its_queue(
                    since=since, deaths=delivery.deaths, attempt=tries, lost=delivery.lost
                ).encode()
            marks.append((delivery, mark))
        self._put_back(marks)

    def _put_back(self, marks: list[tuple[Delivery, str]]) -> None:
        """Replaces marks, or removes those that become empty; the records do not say any more that the tasks run."""
        for start in range(0, len(marks), MARKS_PER_CALL):
            some = marks[start : start + MARKS_PER_CALL]
            names = [keys.RUNNING, _leases_key(one for one, _ in some), *(keys.record_key(one.id) for one, _ in some)]
            args = [text for one, mark in some for text in (one.id, one.tag, mark)]
            self._back(keys=names, args=[self._worker, *args])


def _leases_key(deliveries: Iterable[Delivery]) -> str:
    """Where the leases of these are; without any, a key that a restricted Redis user may use."""
    return next((one.leases.key for one in deliveries if one.leases is not None), keys.LEASES)


def _as_json(times: dict[str, float]) -> str:
    # The general way takes ten times as long.
    return ",".join([f'"{part}":{ms}' for part, ms in times.items()]).join("{}") if times else ""
