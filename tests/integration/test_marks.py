"""Running marks against a real Valkey: who is running, and what counts as a death."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from pipeq.contract import keys as queues
from pipeq.demo import embedded
from pipeq_worker.delivery.marks import Marks


@pytest.fixture
def db() -> Iterator[redis.Redis]:
    with embedded.valkey() as url, redis.Redis.from_url(url) as client:
        yield client


def delivery(task_id: str = "a") -> Any:
    return SimpleNamespace(
        id=task_id, retries=0, is_marked=False, deaths=0, started_at=None, leases=None, tag="", is_lost=False
    )


def test_a_mark_says_who_and_when(db: redis.Redis) -> None:
    mine = delivery()
    Marks(db, "w1").begin([mine])
    mark = json.loads(db.hget(queues.RUNNING, "a") or "")
    assert (mark["worker"], mark["attempt"], mark["deaths"]) == ("w1", 1, 0)
    assert (mine.is_over, mine.is_marked, mine.deaths, mine.attempt) == (False, True, 0, 1)


def test_a_task_that_has_ended_is_not_run(db: redis.Redis) -> None:
    db.set(queues.record_key("a"), json.dumps({"status": "REVOKED"}))
    mine = delivery()
    Marks(db, "w1").begin([mine])
    assert mine.is_over
    assert not db.hexists(queues.RUNNING, "a")


def test_a_task_whose_lease_is_gone_is_dropped(db: redis.Redis) -> None:
    ours, theirs = delivery("a"), delivery("b")
    for one in (ours, theirs):
        one.leases, one.tag = SimpleNamespace(key="pipeq:leases"), f"tag-{one.id}"
    db.zadd("pipeq:leases", {"tag-a": 1})
    Marks(db, "w1").begin([ours, theirs])
    assert (ours.is_lost, theirs.is_lost) == (False, True)
    assert db.hkeys(queues.RUNNING) == [b"a"]


def test_a_mark_left_by_a_dead_worker_is_a_death(db: redis.Redis) -> None:
    Marks(db, "w1").begin([delivery()])
    again = delivery()
    Marks(db, "w2").begin([again])
    assert (again.deaths, again.is_marked) == (1, False)
    # Only alone is it marked, so that waiting for its turn beside another suspect counts for nothing.
    assert json.loads(db.hget(queues.RUNNING, "a") or "")["worker"] == "w1"
    Marks(db, "w2").begin([again], alone=True)
    assert (again.deaths, again.is_marked) == (1, True)
    third = delivery()
    Marks(db, "w3").begin([third])
    assert third.deaths == 2


def test_the_mark_of_a_living_worker_is_no_death(db: redis.Redis) -> None:
    Marks(db, "w1").begin([delivery()])
    db.set(queues.worker_key("w1"), "alive")
    twice = delivery()
    Marks(db, "w2").begin([twice])
    assert twice.deaths == 0


def test_going_back_on_the_queue_is_no_death(db: redis.Redis) -> None:
    marks, mine = Marks(db, "w1"), delivery()
    marks.begin([mine])
    marks.take_back([mine])
    assert not db.hexists(queues.RUNNING, "a")
    # A suspect stays one.
    marks.begin([mine])
    suspect = delivery()
    Marks(db, "w2").begin([suspect], alone=True)
    Marks(db, "w2").take_back([suspect])
    later = delivery()
    Marks(db, "w3").begin([later])
    assert later.deaths == 1
