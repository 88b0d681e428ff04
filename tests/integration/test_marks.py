"""Running marks against a real Valkey: which worker runs a task, and what counts as a death."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from pipeq import Client, State
from pipeq.contract import keys, record
from pipeq.demo import embedded
from pipeq_worker.delivery.marks import Marks

from tests.plain_reader import read_as_the_page_says


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
    mark = json.loads(db.hget(keys.RUNNING, "a") or "")
    assert (mark["worker"], mark["attempt"], mark["deaths"]) == ("w1", 1, 0)
    assert (mine.is_over, mine.is_marked, mine.deaths, mine.attempt) == (False, True, 0, 1)


def test_a_task_that_has_ended_is_not_run(db: redis.Redis) -> None:
    db.set(keys.record_key("a"), json.dumps({"status": "REVOKED"}))
    mine = delivery()
    Marks(db, "w1").begin([mine])
    assert mine.is_over
    assert not db.hexists(keys.RUNNING, "a")


def test_a_task_whose_lease_is_gone_is_dropped(db: redis.Redis) -> None:
    ours, theirs = delivery("a"), delivery("b")
    for one in (ours, theirs):
        one.leases, one.tag = SimpleNamespace(key="pipeq:leases"), f"tag-{one.id}"
    db.zadd("pipeq:leases", {"tag-a": 1})
    Marks(db, "w1").begin([ours, theirs])
    assert (ours.is_lost, theirs.is_lost) == (False, True)
    assert db.hkeys(keys.RUNNING) == [b"a"]


def test_a_mark_left_by_a_dead_worker_is_a_death(db: redis.Redis) -> None:
    Marks(db, "w1").begin([delivery()])
    again = delivery()
    Marks(db, "w2").begin([again])
    assert (again.deaths, again.is_marked) == (1, False)
    # It is marked only when it runs alone, so waiting beside another suspect does not count as a death.
    assert json.loads(db.hget(keys.RUNNING, "a") or "")["worker"] == "w1"
    Marks(db, "w2").begin([again], alone=True)
    assert (again.deaths, again.is_marked) == (1, True)
    third = delivery()
    Marks(db, "w3").begin([third])
    assert third.deaths == 2


def test_the_mark_of_a_living_worker_is_no_death(db: redis.Redis) -> None:
    Marks(db, "w1").begin([delivery()])
    db.set(keys.worker_key("w1"), "alive")
    twice = delivery()
    Marks(db, "w2").begin([twice])
    assert twice.deaths == 0


def test_going_back_on_the_queue_is_no_death(db: redis.Redis) -> None:
    marks, mine = Marks(db, "w1"), delivery()
    marks.begin([mine])
    marks.take_back([mine])
    assert not db.hexists(keys.RUNNING, "a")
    # A suspect stays one.
    marks.begin([mine])
    suspect = delivery()
    Marks(db, "w2").begin([suspect], alone=True)
    Marks(db, "w2").take_back([suspect])
    later = delivery()
    Marks(db, "w3").begin([later])
    assert later.deaths == 1


def states(db: redis.Redis, client: Client, task_id: str) -> set[str]:
    """A task's state in the client and in the plain reader of docs/record.md."""
    found = (db.get(keys.record_key(task_id)), db.hget(keys.RUNNING, task_id))
    fields, mark = (None if text is None else json.loads(text) for text in found)
    return {str(client.status(task_id).state), read_as_the_page_says(fields, mark, time.time())}


def test_a_client_and_a_plain_reader_see_the_same_of_a_task_that_runs(db: redis.Redis, valkey_url: str) -> None:
    db.close()
    with redis.Redis.from_url(valkey_url) as db, Client(valkey_url) as client:
        db.flushdb()
        # A task of our client, and one of a stock Celery producer, which has no record yet.
        ours, foreign = client.submit("asr", "x", check=False), "foreign"
        assert (states(db, client, ours), states(db, client, foreign)) == ({"queued"}, {"unknown"})
        first = [delivery(ours), delivery(foreign)]
        Marks(db, "w1").begin(first)
        for task_id in (ours, foreign):
            assert states(db, client, task_id) == {"running"}
            status, mark = client.status(task_id), json.loads(db.hget(keys.RUNNING, task_id) or "")
            assert (status.worker, status.attempts) == (mark["worker"], mark["attempt"]) == ("w1", 1)
            assert status.started_at == mark["since"] == pytest.approx(time.time(), abs=60)
        # That worker dies, and the next one stops while it runs the tasks.
        second = [delivery(ours), delivery(foreign)]
        Marks(db, "w2").begin(second, alone=True)
        assert (client.status(ours).worker, client.status(ours).attempts) == ("w2", 2)
        Marks(db, "w2").take_back(second)
        assert db.hlen(keys.RUNNING) == 2
        assert (states(db, client, ours), states(db, client, foreign)) == ({"queued"}, {"unknown"})
        third = [delivery(ours), delivery(foreign)]
        Marks(db, "w3").begin(third)
        assert [one.deaths for one in third] == [1, 1]
        client.cancel(ours)
        assert states(db, client, ours) == {"cancelled"}


def test_a_task_that_ends_while_it_is_looked_up_is_never_seen_back_on_its_queue(valkey_url: str) -> None:
    ids = [f"{at:0>200}" for at in range(500)]
    mark = record.Mark(worker="w1", since=1.0, deaths=0, attempt=1).encode()
    running = dict.fromkeys(map(keys.record_key, ids), record.queued("t", record.Part(pipeline="asr")))
    ended = dict.fromkeys(running, '{"status": "SUCCESS", "pipeq": {}}')
    seen = set[State]()
    with redis.Redis.from_url(valkey_url) as db, Client(valkey_url) as client:
        for _ in range(200):
            with db.pipeline() as pipe:
                pipe.mset(running).hset(keys.RUNNING, mapping=dict.fromkeys(ids, mark)).execute()
            with db.pipeline() as pipe:
                thread = threading.Thread(target=pipe.mset(ended).delete(keys.RUNNING).execute)
                thread.start()
                seen |= {status.state for status in client.status_many(ids)}
                thread.join()
    assert seen <= {State.RUNNING, State.SUCCEEDED}
