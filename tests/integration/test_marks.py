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
from pipeq.contract.status import Progress
from pipeq.demo import embedded
from pipeq_worker.delivery.marks import Marks

from tests.plain_reader import read_as_the_page_says


@pytest.fixture
def url() -> Iterator[str]:
    with embedded.valkey() as found:
        yield found


@pytest.fixture
def db(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as found:
        yield found


def delivery(task_id: str = "a") -> Any:
    return SimpleNamespace(
        id=task_id,
        retries=0,
        attempts_before=0,
        is_marked=False,
        deaths=0,
        past_deaths=0,
        started_at=None,
        leases=None,
        tag="",
        is_lost=False,
        is_over=False,
        progress=None,
        given_at=None,
        lane="text-classification",
        was_lost=False,
        before=None,
        lost=(),
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


@pytest.mark.parametrize("ended", ["SUCCESS", "FAILURE", "REVOKED"])
def test_a_death_that_is_told_late_leaves_no_mark(db: redis.Redis, ended: str) -> None:
    """A worker was stopped for longer than its lease; another one has ended the task, and removed its mark."""
    marks, mine, running = Marks(db, "w1"), delivery(), delivery("b")
    for one in (mine, running):
        one.lost, one.last_started_at, one.timing_ms = [], 1.0, {}
    marks.begin([mine, running])
    db.set(keys.record_key("a"), json.dumps({"status": ended}))
    db.hdel(keys.RUNNING, "a")
    mine.deaths = running.deaths = 1
    marks.died([mine, running])
    assert db.hkeys(keys.RUNNING) == [b"b"]
    marks.take_back([mine, running])
    assert db.hkeys(keys.RUNNING) == [b"b"]


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
        assert (states(db, client, ours), states(db, client, foreign)) == ({"queued"}, {"queued"})
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


def progress(client: Client, task_id: str = "a") -> tuple[int, int | None, str] | None:
    found = client.status(task_id).progress
    return None if found is None else (found.done, found.total, found.unit)


def test_a_look_says_how_far_a_task_is(db: redis.Redis, client: Client) -> None:
    mine, marks = delivery(), Marks(db, "w1")
    marks.begin([mine])
    before = json.loads(db.hget(keys.RUNNING, "a") or "")
    assert progress(client) is None
    for done, total in ((3, 10), (7, None)):
        mine.progress = Progress(done=done, total=total, unit="tokens")
        marks.look([mine])
        assert progress(client) == (done, total, "tokens")
    mark = json.loads(db.hget(keys.RUNNING, "a") or "")
    assert mark.pop("progress") == {"done": 7, "total": None, "unit": "tokens"}
    assert mark == before
    assert client.status("a").state is State.RUNNING


def test_a_look_at_many_tasks_finds_each_that_ended(db: redis.Redis, client: Client) -> None:
    tasks, marks = [delivery(f"t{number}") for number in range(2100)], Marks(db, "w1")
    marks.begin(tasks)
    for at, task in enumerate(tasks):
        task.progress = Progress(done=at, unit="chunks")
        if at % 3 == 0:
            db.set(keys.record_key(task.id), json.dumps({"status": "REVOKED"}))
    marks.look(tasks)
    assert [task.is_over for task in tasks] == [at % 3 == 0 for at in range(2100)]
    assert db.hlen(keys.RUNNING) == 1400, "what has ended does not run any more"
    assert [progress(client, f"t{at}") for at in (1, 2000, 2099)] == [(at, None, "chunks") for at in (1, 2000, 2099)]


@pytest.mark.parametrize(
    "there", [None, "no JSON", json.dumps({"worker": "w2", "since": 1.0, "deaths": 0, "attempt": 1}), "[]", "9" * 5000]
)
def test_a_look_changes_no_mark_but_its_own(db: redis.Redis, there: str | None) -> None:
    """A task that has ended has no mark any more, and another worker's is another try."""
    mine = delivery()
    mine.is_marked, mine.progress = True, Progress(done=1, unit="tokens")
    if there is not None:
        db.hset(keys.RUNNING, "a", there)
    Marks(db, "w1").look([mine])
    assert db.hget(keys.RUNNING, "a") == (None if there is None else there.encode())
    assert not mine.is_over


@pytest.mark.parametrize("kind", ["list", "hash", "full"])
def test_a_look_goes_on_whatever_redis_holds(db: redis.Redis, kind: str) -> None:
    ended, mine, marks = delivery("b"), delivery(), Marks(db, "w1")
    marks.begin([mine, ended])
    mine.progress = ended.progress = Progress(done=1, unit="tokens")
    db.set(keys.record_key("b"), json.dumps({"status": "REVOKED"}))
    if kind == "list":
        db.delete(keys.record_key("a"))
        db.lpush(keys.record_key("a"), "no record")
    elif kind == "hash":
        db.delete(keys.RUNNING)
        db.set(keys.RUNNING, "no hash")
    else:
        db.config_set("maxmemory", 1)
    marks.look([mine, ended])
    assert (mine.is_over, ended.is_over) == (False, True)


@pytest.mark.parametrize(
    "value", [7, "far", {}, {"done": -1, "unit": "x"}, {"done": 1, "unit": ""}, {"done": 2**60, "unit": "x"}]
)
def test_progress_that_is_none_is_left_out(db: redis.Redis, client: Client, value: object) -> None:
    mark = {"worker": "w1", "since": 1.0, "deaths": 0, "attempt": 1, "progress": value}
    db.hset(keys.RUNNING, "a", json.dumps(mark))
    status = client.status("a")
    assert (status.state, status.worker, status.progress) == (State.RUNNING, "w1", None)
