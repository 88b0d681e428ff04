"""Cancels against a real Valkey: in every state of a task, of many at once, of a whole pipeline, and in any order."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import redis
from celery import Celery
from pipeq import Client, PipeqError, State
from pipeq.contract import keys as names
from pipeq.contract.record import Mark
from pipeq.contract.status import CELERY_STATES

from tests import both_clients
from tests.commands import run
from tests.integration.conftest import PIPELINE


@pytest.fixture(params=both_clients.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def everything(db: redis.Redis) -> dict[bytes, Any]:
    return {key: db.dump(key) for key in db.keys("*")}


def mark(db: redis.Redis, task_id: str, worker: str = "w1") -> None:
    db.hset(names.RUNNING, task_id, Mark(worker=worker, since=1000.5, deaths=0, attempt=3).encode())


def change(db: redis.Redis, task_id: str, word: str, **part: Any) -> None:
    """Writes a record as a worker does."""
    record = json.loads(db.get(names.record_key(task_id)) or "{}")
    result = {"exc_type": "TaskRevokedError", "exc_message": [part.pop("reason", "cancelled")]}
    record |= {"status": word, "result": result if word == "REVOKED" else None}
    record["pipeq"] |= part
    db.set(names.record_key(task_id), json.dumps(record), ex=600)


ENDS = {"SUCCESS": State.SUCCEEDED, "FAILURE": State.FAILED, "REVOKED": State.CANCELLED, "expired": State.EXPIRED}


@pytest.mark.parametrize("state", list(State))
def test_a_cancel_in_every_state(client: Client, db: redis.Redis, state: State) -> None:
    task_id = "never-seen"
    if state is not State.UNKNOWN:
        task_id = client.submit(PIPELINE, "x")
    if state is State.RUNNING:
        mark(db, task_id)
    elif state is State.RETRYING:
        error = {"code": "input_unavailable", "message": "away", "retryable": True}
        change(db, task_id, "RETRY", attempts=2, worker="w7", started_at=900.0, error=error)
    elif state is State.EXPIRED:
        change(db, task_id, "REVOKED", reason="expired")
    elif state.is_final:
        change(db, task_id, CELERY_STATES[state], worker="w7")
    assert client.status(task_id).state is state
    before = everything(db)
    after = client.cancel(task_id)
    assert client.status(task_id) == after
    if state.is_final or state is State.UNKNOWN:
        assert after.state is state
        assert everything(db) == before, "nothing was changed"
        return
    assert after.state is State.CANCELLED
    assert after.finished_at is not None
    assert after.pipeline == PIPELINE
    assert after.error is None
    ran = {State.RUNNING: ("w1", 3, 1000.5), State.RETRYING: ("w7", 2, 900.0)}.get(state, (None, 0, None))
    assert (after.worker, after.attempts, after.started_at) == ran
    assert names.PENDING_TTL_S - 60 < db.ttl(names.record_key(task_id)) <= names.PENDING_TTL_S


def test_a_task_that_runs_without_a_record_is_known(client: Client, db: redis.Redis) -> None:
    mark(db, "of-a-stock-producer")
    after = client.cancel("of-a-stock-producer")
    assert (after.state, after.worker, after.attempts) == (State.CANCELLED, "w1", 3)


@pytest.mark.parametrize("kind", ["list", "no mark"])
def test_marks_that_are_none_do_not_keep_a_task_from_being_cancelled(
    client: Client, db: redis.Redis, kind: str
) -> None:
    task_id = client.submit(PIPELINE, "x")
    if kind == "list":
        db.lpush(names.RUNNING, "x")
    else:
        db.hset(names.RUNNING, task_id, "no mark")
    assert client.cancel(task_id).state is State.CANCELLED


# -- many -------------------------------------------------------------------------------------------------------------


def test_many_are_cancelled_in_few_round_trips(client: Client, db: redis.Redis, sent: list[Any]) -> None:
    ids = client.submit_many(PIPELINE, map(str, range(1500)))
    change(db, ids[3], "SUCCESS")
    client.status(ids[0])
    sent.clear()
    said: list[tuple[int, int]] = []
    asked = ["unknown", *ids, ids[7]]
    found = client.cancel_many(iter(asked), progress=lambda *one: said.append(one))
    assert 4 <= len(sent) < 30
    assert [one.id for one in found] == asked
    assert [one.state for one in found[:6]] == [
        State.UNKNOWN, *[State.CANCELLED] * 3, State.SUCCEEDED, State.CANCELLED,
    ]  # fmt: skip
    assert {one.state for one in client.status_many(ids[4:])} == {State.CANCELLED}
    assert said[-1] == (1501, 1501)
    assert not db.exists(names.record_key("unknown"))
    assert client.cancel_many([]) == []


def test_cancels_of_many_that_race_with_results_agree_with_them(client: Client, db: redis.Redis) -> None:
    """The chunks become smaller while records change, so that even busy ones come to an end."""
    ids = client.submit_many(PIPELINE, map(str, range(1000)))
    script = db.register_script(
        "local old = redis.call('GET', KEYS[1]) if string.find(old, 'REVOKED') then return 0 end "
        "redis.call('SET', KEYS[1], ARGV[1]) return 1"
    )
    done = json.dumps({"status": "SUCCESS", "result": 1, "pipeq": {}})

    def work(_: int) -> int:
        order = random.sample(ids, len(ids))
        return sum(int(script(keys=[names.record_key(one)], args=[done])) for one in order)

    with ThreadPoolExecutor(4) as threads:
        works = [threads.submit(work, at) for at in range(2)]
        cancels = [threads.submit(client.cancel_many, ids) for _ in range(2)]
        said = [[one.state for one in one.result()] for one in cancels]
        for one in works:
            one.result()
    ends = [one.state for one in client.status_many(ids)]
    assert said == [ends, ends]
    assert set(ends) == {State.CANCELLED, State.SUCCEEDED}


def test_random_interleavings_end_each_task_once(client: Client, db: redis.Redis, valkey_url: str) -> None:
    """Submits with keys, cancels, retries, results and looks, in any order, by several clients."""
    chance = random.Random(5)
    clients = [client, *(Client(valkey_url) for _ in range(3))]
    with redis.Redis.from_url(valkey_url, decode_responses=True) as listener, listener.pubsub() as heard:
        heard.psubscribe("celery-task-meta-*")
        for _ in range(60):
            keys = [f"k{chance.random()}" for _ in range(3)]
            ids: dict[str, set[str]] = {key: set() for key in keys}
            final: dict[str, State] = {}

            def step(at: int, keys: list[str] = keys, ids: dict[str, set[str]] = ids) -> list[Any]:
                own, key = clients[at % len(clients)], keys[at % 3]
                known = list(ids[key])
                match chance.choice(["submit", "submit", "cancel", "cancel_many", "run", "end", "status"]):
                    case "submit":
                        ids[key].add(own.submit(PIPELINE, key, idempotency_key=key))
                    case "cancel" if known:
                        return [own.cancel(chance.choice(known))]
                    case "cancel_many":
                        return own.cancel_many(known)
                    case "run" if known:
                        mark(db, known[0])
                    case "end" if known and not own.status(known[0]).is_final:
                        with db.pipeline() as pipe:
                            pipe.watch(names.record_key(known[0]))  # type: ignore[no-untyped-call]
                            record = json.loads(pipe.get(names.record_key(known[0])))  # type: ignore[arg-type]
                            if record["status"] == "QUEUED":
                                pipe.multi()
                                text = json.dumps({**record, "status": "SUCCESS"})
                                pipe.set(names.record_key(known[0]), text).publish(names.record_key(known[0]), text)
                                with suppress(redis.WatchError):
                                    pipe.execute()
                    case "status":
                        return own.status_many(known)
                return []

            with ThreadPoolExecutor(4) as threads:
                for said in threads.map(step, range(24)):
                    for status in said:
                        if status.is_final:
                            assert final.setdefault(status.id, status.state) is status.state, "an end does not change"
            for key in keys:
                states = [one.state for one in client.status_many(ids[key])]
                assert sum(one is not State.CANCELLED for one in states) <= 1, "a key has one task that may succeed"
            for task_id, state in final.items():
                assert client.status(task_id).state is state
        ends: dict[str, int] = {}
        while (message := heard.get_message(timeout=0.1)) is not None:
            if message["type"] == "pmessage":
                ends[message["channel"]] = ends.get(message["channel"], 0) + 1
    assert ends
    assert set(ends.values()) == {1}, "one publish for each end"
    for one in clients[1:]:
        one.close()


# -- a pipeline -------------------------------------------------------------------------------------------------------


def reserve(db: redis.Redis, pipeline: str, count: int) -> None:
    """Takes messages into a worker as reserve.lua does."""
    for at in range(count):
        raw = db.rpop(pipeline)
        assert isinstance(raw, bytes)
        db.hset(names.UNACKED, f"{pipeline}-{at}", f"{len(pipeline)}:{pipeline}".encode() + raw)


def test_a_pipeline_is_cancelled_wherever_its_messages_are(client: Client, db: redis.Redis, valkey_url: str) -> None:
    others = client.submit_many("other", map(str, range(5)), check=False, priority=0)
    reserve(db, "other", 2)
    ids = client.submit_many(PIPELINE, map(str, range(450)), priority=0)
    reserve(db, PIPELINE, 30)
    mark(db, ids[0])
    change(db, ids[1], "SUCCESS")
    for priority in (3, 6, 9):
        ids += client.submit_many(PIPELINE, ["a", "b"], priority=priority)
    ids += client.submit_many(PIPELINE, ["a", "b"], delay_s=600, priority=0)
    fair = client.submit_many(PIPELINE, ["a", "b"], fair_key="acme", priority=0)
    for number in range(2):
        raw = db.lpop(PIPELINE)
        assert isinstance(raw, bytes)
        db.zadd(names.fair_key(PIPELINE), {f"{number:013d}".encode() + raw: number})
    app = Celery("stock", broker=valkey_url, set_as_current=False)
    stock = app.send_task(names.TASK_NAME, kwargs={"pipeline": PIPELINE, "inputs": "x"}, queue=PIPELINE).id
    app.close()
    db.lpush(PIPELINE, "no message")
    db.zadd(names.waiting_key(PIPELINE), {"no message": 1})
    db.hset(names.UNACKED, "spoilt", "12:no")
    found = {one.id: one.state for one in client.cancel_pipeline(PIPELINE)}
    assert found.keys() == {*ids, *fair, stock}
    assert {task_id: state for task_id, state in found.items() if state is not State.CANCELLED} == {
        ids[1]: State.SUCCEEDED
    }
    assert {one.state for one in client.status_many([*ids, *fair, stock]) if one.id != ids[1]} == {State.CANCELLED}
    assert {one.state for one in client.status_many(others)} == {State.QUEUED}
    assert client.status(ids[0]).worker == "w1"


@pytest.mark.parametrize("key", [PIPELINE, names.waiting_key(PIPELINE), names.fair_key(PIPELINE), names.UNACKED])
def test_a_key_of_another_type_hides_no_other(client: Client, db: redis.Redis, key: str) -> None:
    ids = client.submit_many(PIPELINE, ["a"], priority=3)
    db.set(key, "neither a list nor a set nor a hash")
    assert [one.id for one in client.cancel_pipeline(PIPELINE)] == ids


def test_an_empty_pipeline_has_nothing_to_cancel(client: Client) -> None:
    assert client.cancel_pipeline("empty") == []
    with pytest.raises(PipeqError, match="no name of one"):
        client.cancel_pipeline("")


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_takes_ids_and_a_pipeline(client: Client, db: redis.Redis) -> None:
    other = client.submit("other", "x", check=False)
    ids = client.submit_many(PIPELINE, map(str, range(3)))
    done = run("cancel", other, "nonsense", "--pipeline", PIPELINE)
    assert done.exit_code == 1
    assert sorted(done.stdout.splitlines()) == sorted(
        [f"{other}  cancelled", "nonsense  unknown", *(f"{one}  cancelled" for one in ids)]
    )
    assert "task nonsense was never seen, or is forgotten: nothing was changed" in done.stderr
    assert f"pipeq: cancelled: 3 tasks of {PIPELINE}" in done.stderr
    assert run("cancel", "--pipeline", PIPELINE).exit_code == 0
    assert run("cancel").exit_code == 2
    # As JSON, one a line.
    lines = run("cancel", *ids, "--json").stdout.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["cancelled"] * 3
