"""The history of a task against a real Valkey: each way in which a try ends, by the scripts and clients that end it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult
from click.testing import CliRunner
from pipeq import Client, PipeqError, State
from pipeq.cli import main
from pipeq.contract import keys, record
from pipeq.contract.record import HISTORY_MAX, Before
from pipeq_worker.delivery.marks import Marks
from pipeq_worker.delivery.part import part_of

PIPELINE = "text-classification"


@pytest.fixture
def db(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as db:
        db.flushdb()
        yield db


class Workers:
    """What workers do with one task, with their own code for marks and records."""

    def __init__(self, db: redis.Redis, client: Client, url: str) -> None:
        self.db, self.client = db, client
        self.app = Celery("stock", broker=url, backend=url, set_as_current=False)
        self.id = client.submit(PIPELINE, "x", check=False)
        self.tries = 0
        self.now: Any = None

    def begin(self, worker: str) -> None:
        self.db.set(keys.worker_key(worker), "alive")
        one: Any = SimpleNamespace(
            id=self.id, retries=self.tries, attempts_before=self.tries, tag="", leases=None, deaths=0, past_deaths=0,
            is_marked=False, is_lost=False, is_over=False, started_at=None, last_started_at=None, lost=(), before=None,
            progress=None, lane=PIPELINE, pipeline=None, received_at=time.time(), attempts=1, batch=None, error=None,
            result_uri=None,
            timing_ms={}, told_ms={}, arrived=time.monotonic(), began=time.monotonic(), tried_until=None, given_at=None,
            was_lost=False, is_ended_by_death=False, sent_at=None, request=SimpleNamespace(hostname=worker),
        )  # fmt: skip
        self.now = one
        Marks(self.db, worker).begin([one], alone=True)
        one.attempts = one.attempt

    def store(self, word: str, *, retrying: bool = False) -> None:
        part = part_of(self.now, next_try_at=time.time() if retrying else None)
        result = {"exc_type": "PipeqError"} if retrying else None
        text = record.Record(status=word, result=result, task_id=self.id, pipeq=part.fields()).encode()
        self.db.set(keys.record_key(self.id), text, ex=60)
        self.db.hdel(keys.RUNNING, self.id)

    def retry(self) -> None:
        self.now.error = PipeqError("input_unavailable", f"away {self.tries}", True)
        self.now.timing_ms = {"fetch": 3.0}
        self.store("RETRY", retrying=True)
        self.tries += 1

    def fail(self) -> None:
        self.now.error = PipeqError("inference_failed", "broken", False)
        self.now.timing_ms = {"fetch": 1.0, "wait_device": 1.0, "infer": 1.0}
        self.store("FAILURE")

    def die(self) -> None:
        self.db.delete(keys.worker_key(self.now.request.hostname))

    def child_dies(self) -> None:
        self.now.last_started_at, self.now.started_at = self.now.started_at, None
        self.now.deaths += 1
        Marks(self.db, self.now.request.hostname).died([self.now])

    def said(self) -> list[tuple[str | None, str | None, str | None]]:
        """Worker, code and stage of each try."""
        return [(one.worker, one.code, one.stage) for one in self.client.status(self.id).history]

    def states(self) -> tuple[State, str]:
        """The state for our client, and for a stock Celery client."""
        return self.client.status(self.id).state, str(AsyncResult(self.id, app=self.app).state)


@pytest.fixture
def workers(db: redis.Redis, client: Client, valkey_url: str) -> Iterator[Workers]:
    found = Workers(db, client, valkey_url)
    yield found
    found.app.backend.client.close()
    found.app.close()


def test_a_single_try_stores_no_history(workers: Workers) -> None:
    assert workers.said() == []
    workers.begin("w1")
    assert workers.said() == [("w1", None, None)]
    assert workers.states() == (State.RUNNING, "STARTED")
    workers.store("SUCCESS")
    (one,) = workers.client.status(workers.id).history
    assert (one.worker, one.code) == ("w1", None)
    assert one.started_at is not None
    assert one.ended_at is not None
    assert one.started_at <= one.ended_at
    assert "history" not in json.loads(workers.db.get(keys.record_key(workers.id)) or "{}")["pipeq"]


def test_every_try_is_told_however_it_ended(workers: Workers) -> None:
    """A retry, a dead worker, a dead child, a worker that stops, a failure, and a new life by an operator."""
    workers.begin("w1")
    workers.retry()
    assert workers.said() == [("w1", "input_unavailable", "fetch")]
    assert workers.states() == (State.RETRYING, "RETRY")
    workers.begin("w2")
    assert workers.states() == (State.RUNNING, "STARTED")
    workers.die()
    assert workers.states() == (State.RUNNING, "STARTED"), "nobody knows better yet"
    workers.begin("w3")
    before = [("w1", "input_unavailable", "fetch"), ("w2", "worker_lost", None)]
    assert workers.said() == [*before, ("w3", None, None)]
    workers.child_dies()
    before.append(("w3", "worker_lost", None))
    assert workers.said() == before
    assert workers.states() == (State.RETRYING, "RETRY")
    workers.begin("w4")
    Marks(workers.db, "w4").take_back([workers.now])
    assert workers.said() == before, "going back on the queue is no end of a try"
    assert workers.states() == (State.RETRYING, "RETRY")
    workers.begin("w5")
    workers.fail()
    before.append(("w5", "inference_failed", "infer"))
    assert workers.said() == before
    status = workers.client.status(workers.id)
    assert [one.message for one in status.history] == [
        "away 0", None, "a process of the worker died while it worked on the task", "broken",
    ]  # fmt: skip
    # An operator sends it again.
    raw = workers.db.get(keys.record_key(workers.id))
    assert isinstance(raw, bytes)
    text = record.revived(workers.id, raw, pipeline=PIPELINE, attempts=status.attempts, now=time.time())
    workers.db.set(keys.record_key(workers.id), text)
    assert workers.said() == before
    assert workers.states() == (State.QUEUED, "QUEUED")
    workers.begin("w6")
    assert workers.said() == [*before, ("w6", None, None)]
    assert workers.states() == (State.RUNNING, "STARTED")
    after = workers.client.cancel(workers.id)
    assert [(one.worker, one.code) for one in after.history] == [*(one[:2] for one in before), ("w6", "cancelled")]
    assert workers.states() == (State.CANCELLED, "REVOKED")


def test_the_history_is_bounded(workers: Workers) -> None:
    for at in range(HISTORY_MAX + 5):
        workers.begin(f"w{at}")
        workers.retry()
    workers.begin("last")
    assert [one[0] for one in workers.said()] == [*(f"w{at}" for at in range(5, HISTORY_MAX + 5)), "last"]
    for at in range(HISTORY_MAX + 5):
        workers.die()
        workers.begin(f"d{at}")
    assert len(json.loads(workers.db.hget(keys.RUNNING, workers.id) or "{}")["lost_tries"]) == HISTORY_MAX
    workers.now.error = PipeqError("internal", "x" * 5000, False)
    workers.store("FAILURE")
    status = workers.client.status(workers.id)
    assert len(status.history) == HISTORY_MAX + 1
    assert all(len(one.message or "") <= 500 for one in status.history)


def test_a_cancel_between_tries_keeps_what_was(workers: Workers) -> None:
    workers.begin("w1")
    workers.retry()
    after = workers.client.cancel(workers.id)
    assert next((one.worker, one.code) for one in after.history) == ("w1", "input_unavailable")


def test_a_task_that_never_ran_has_no_history(workers: Workers) -> None:
    assert workers.client.cancel(workers.id).history == ()


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_a_record_says_running_and_back(db: redis.Redis, client: Client, workers: Workers, kind: str) -> None:
    if kind == "stock":
        db.delete(keys.record_key(workers.id))
        assert workers.states() == (State.UNKNOWN, "PENDING")
    before = db.get(keys.record_key(workers.id))
    lifetime_s = db.ttl(keys.record_key(workers.id))
    workers.begin("w1")
    assert workers.states() == (State.RUNNING, "STARTED")
    assert workers.now.before == Before.read(before), "what the record said before"
    Marks(db, "w1").take_back([workers.now])
    assert workers.states() == (State.QUEUED, "QUEUED")
    assert not db.exists(keys.RUNNING)
    if kind == "ours":
        assert db.get(keys.record_key(workers.id)) == before
        assert lifetime_s - 5 <= db.ttl(keys.record_key(workers.id)) <= lifetime_s
    else:
        assert 0 < db.ttl(keys.record_key(workers.id)) <= keys.PENDING_TTL_S
        assert json.loads(db.get(keys.record_key(workers.id)) or "{}")["task_id"] == workers.id


@pytest.mark.parametrize("lost", [5, "x", {}, [5], [{"worker": 5}], [[[]]], [{"started_at": "x"}], [{}] * 50])
@pytest.mark.parametrize("where", ["record", "mark"])
def test_a_history_that_is_none_spoils_nothing(workers: Workers, db: redis.Redis, lost: Any, where: str) -> None:
    if where == "record":
        fields = json.loads(db.get(keys.record_key(workers.id)) or "{}")
        fields["pipeq"]["history"] = lost
        db.set(keys.record_key(workers.id), json.dumps(fields))
    else:
        db.hset(keys.RUNNING, workers.id, json.dumps({"worker": "gone", "since": 1.0, "deaths": 0, "lost_tries": lost}))
    assert workers.client.status(workers.id).state in (State.QUEUED, State.RUNNING)
    workers.begin("w1")
    assert workers.states() == (State.RUNNING, "STARTED")
    workers.fail()
    assert workers.said()[-1] == ("w1", "inference_failed", "infer")
    assert len(workers.said()) <= HISTORY_MAX + 1


def test_the_command_shows_each_try(workers: Workers, valkey_url: str) -> None:
    workers.begin("w1")
    workers.retry()
    workers.begin("w2")
    workers.fail()
    done = CliRunner().invoke(main, ["status", workers.id, "--history", "--redis-url", valkey_url], prog_name="pipeq")
    one, two = (line for line in done.stdout.splitlines() if line.startswith("  try "))
    assert "w1" in one
    assert "input_unavailable in fetch: away 0" in one
    assert "try 2" in two
    assert "inference_failed in infer: broken" in two
    done = CliRunner().invoke(main, ["status", workers.id, "--json", "--redis-url", valkey_url], prog_name="pipeq")
    assert [one["worker"] for one in json.loads(done.stdout)["history"]] == ["w1", "w2"]
