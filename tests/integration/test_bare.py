"""Bare messages, pushed by any program, against a real Valkey: what holds for a client's tasks holds for them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from pipeq import Client, State
from pipeq.contract import keys
from pipeq.contract.errors import PipeqError
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserved import Wanted
from pipeq_worker.leases.server import Server

from tests.host import Host

PIPELINE = "it"
AWAY = PipeqError("input_unavailable", "the store is away", True)


@pytest.fixture
def db(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url, decode_responses=True) as db:
        db.flushdb()
        yield db


@pytest.fixture
def host(db: redis.Redis, valkey_url: str) -> Iterator[Host]:
    host = Host(valkey_url, PIPELINE, retry_backoff_s=1000)
    yield host
    host.stop()


def push(db: redis.Redis, task_id: Any = "a", key: str = PIPELINE, **fields: Any) -> str:
    text = json.dumps({"id": task_id, "pipeline": PIPELINE, "inputs": "x", **fields}, ensure_ascii=False)
    db.lpush(key, text)
    return text


def begin_and_end(host: Host, error: PipeqError | None = None) -> None:
    (one,) = host.hands.tasks
    host.hands.begin(one)
    if error is not None:
        one.fail(error)
    host.hands.end(one)


def test_from_the_list_to_the_result(client: Client, db: redis.Redis, host: Host) -> None:
    text = push(db, inputs=["ä", 1], params={"top_k": 2})
    assert client.status("a").state is State.UNKNOWN
    host.take()
    (one,) = host.hands.tasks
    assert json.loads(one.message)[1] == {"pipeline": PIPELINE, "inputs": ["ä", 1], "params": {"top_k": 2}}
    (entry,) = db.hvals(keys.UNACKED)
    assert entry == f"{len(PIPELINE)}:{PIPELINE}{text}", "in Redis it stays as it was sent"
    host.hands.begin(one)
    assert client.status("a").state is State.RUNNING
    host.hands.end(one)
    assert client.status("a").state is State.SUCCEEDED
    assert not db.exists(keys.UNACKED, keys.LEASES, keys.RUNNING)


@pytest.mark.parametrize("begins", [True, False])
def test_the_host_dies_with_it(client: Client, db: redis.Redis, host: Host, valkey_url: str, begins: bool) -> None:
    """The next one has it under the same id, as a suspect, and the death counts if it had begun."""
    text = push(db)
    other = Host(valkey_url, PIPELINE)
    other.take()
    if begins:
        other.hands.begin(other.hands.tasks[0])
    db.zadd(keys.LEASES, dict.fromkeys(other.die(), 1))
    db.delete(keys.worker_key(other.name))
    host.sweep()
    assert db.lrange(PIPELINE, 0, -1) == [f" \t{text}"]
    host.take()
    (one,) = host.hands.tasks
    assert one.id == "a"
    assert one.is_suspect
    begin_and_end(host)
    status = client.status("a")
    assert (status.state, status.attempts) == (State.SUCCEEDED, 1 + begins)


def test_hosts_die_of_it(client: Client, db: redis.Redis, host: Host) -> None:
    """It is given up unread: its id is that at its top."""
    text = json.dumps({"inputs": {"id": "not this"}, "id": "a", "pipeline": PIPELINE})
    db.lpush(PIPELINE, " \t\t\t\r\r" + text, " \t\t\t\r\r" + text[:-1] + ", ]")
    host.take(2)
    status = client.status("a")
    assert status.error is not None
    assert (status.state, status.error.code) == (State.FAILED, "worker_lost")
    assert client.status("not this").state is State.UNKNOWN
    assert db.llen(keys.dead_letter_key(PIPELINE)) == 1
    assert not db.exists(keys.UNACKED)


@pytest.mark.parametrize("when", ["waits", "inside", "runs"])
def test_it_is_cancelled(client: Client, db: redis.Redis, host: Host, when: str) -> None:
    push(db)
    if when != "waits":
        host.take()
    if when == "runs":
        host.hands.begin(host.hands.tasks[0])
    # Before it has begun, its record is not there, as that of a stock Celery producer is not.
    assert client.cancel("a", force=when != "runs").state is State.CANCELLED
    host.take()
    if when == "runs":
        host.hands.look()
    else:
        host.hands.begin(host.hands.tasks[0])
    assert client.status("a").state is State.CANCELLED
    assert not host.hands.tasks
    assert not db.exists(keys.UNACKED)


def test_those_of_a_pipeline_are_cancelled_or_purged(client: Client, db: redis.Redis, host: Host) -> None:
    lists = keys.list_keys(PIPELINE)
    for at, key in enumerate(lists):
        push(db, f"c{at}", key)
    push(db, "inside")
    host.take()
    ended = {one.id: one.state for one in client.cancel_pipeline(PIPELINE)}
    assert ended == dict.fromkeys(["c0", "c1", "c2", "c3", "inside"], State.CANCELLED)
    db.delete(*lists)
    for at, key in enumerate(lists):
        push(db, f"p{at}", key, fair_key="k")
    assert [one.depth for one in client.queues() if one.pipeline == PIPELINE] == [4]
    assert client.purge(PIPELINE) == 4
    for at in range(4):
        status = client.status(f"p{at}")
        assert (status.state, status.error and status.error.code) == (State.CANCELLED, "purged")


def test_it_fails_and_an_operator_sends_it_again(client: Client, db: redis.Redis, host: Host) -> None:
    push(db, key=keys.list_key(PIPELINE, 6), params={"a": 1}, fair_key="tenant")
    host.take()
    begin_and_end(host, PipeqError("invalid_input", "no"))
    (letter,) = client.dead(PIPELINE)
    assert (letter.task_id, letter.inputs, letter.params, letter.obstacle) == ("a", "x", {"a": 1}, None)
    assert [one.refused for one in client.dead(ids=["a"]).retry()] == [None]
    (again,) = db.lrange(keys.list_key(PIPELINE, 6), 0, -1)
    assert json.loads(again)["headers"]["fair_key"] == "tenant"
    host.take()
    begin_and_end(host)
    assert (client.status("a").state, client.status("a").attempts) == (State.SUCCEEDED, 2)


def test_it_waits_for_its_next_try_and_comes_back_to_its_list(client: Client, db: redis.Redis, host: Host) -> None:
    push(db, key=keys.list_key(PIPELINE, 9))
    host.take()
    begin_and_end(host, AWAY)
    assert client.status("a").state is State.RETRYING
    waiting = keys.waiting_key(PIPELINE)
    db.zadd(waiting, dict.fromkeys(db.zrange(waiting, 0, -1), 1))
    host.move_due()
    assert db.llen(keys.list_key(PIPELINE, 9)) == 1
    host.take()
    (one,) = host.hands.tasks
    assert (one.retries, one.priority) == (1, 9)
    begin_and_end(host)
    assert client.status("a").state is State.SUCCEEDED


def test_two_of_one_id_are_one_task(client: Client, db: redis.Redis, host: Host) -> None:
    push(db)
    push(db, inputs="another")
    host.take(2)
    begin_and_end(host)
    push(db, inputs="a third")
    for _ in ("another", "a third"):
        assert host.take() == 1
        (one,) = host.hands.tasks
        host.hands.begin(one)
        assert not host.hands.tasks, "its record says that it has ended"
    assert client.status("a").state is State.SUCCEEDED
    assert not db.exists(keys.UNACKED, PIPELINE)


def test_what_it_wishes(client: Client, db: redis.Redis, host: Host) -> None:
    push(db, "soon", deadline_s=5, fair_key="tenant", timeout_s=7, expires_at=time.time() + 60)
    push(db, "late", expires_at=time.time() - 60)
    host.take(2)
    (one,) = host.hands.tasks
    assert (one.id, one.tenant, one.timeout_s, one.sent_at) == ("soon", "tenant", 7, None)
    assert 0 < one.deadline - time.monotonic() <= 5
    assert 50 < one.expiry - time.time() <= 60
    assert client.status("late").state is State.EXPIRED


def test_when_it_was_sent(client: Client, db: redis.Redis, host: Host) -> None:
    """The parts of its life then add up to it, as those of a client's task."""
    sent_at = round(time.time() - 50, 3)
    push(db, "a", sent_at=sent_at)
    push(db, "b", sent_at=1e300)
    host.take(2)
    for one in list(host.hands.tasks):
        host.hands.begin(one)
        host.hands.end(one)
    status = client.status("a")
    assert status.submitted_at == sent_at
    assert status.finished_at is not None
    assert 50_000 < status.timing_ms["queued"] < 80_000
    assert sum(status.timing_ms.values()) == pytest.approx(1000 * (status.finished_at - sent_at), abs=5)
    assert (client.status("b").state, client.status("b").submitted_at) == (State.SUCCEEDED, None)


#: Text that is pushed -> the id under which it fails (None: only its letter says so), and what the sentence says.
BROKEN: dict[str, tuple[str | None, str]] = {
    "no-id": (None, "it has no `id`: a bare message is"),
    "number": (None, f"its `id` is 17, not {keys.TASK_ID_WORDS}"),
    "long-id": ("x" * 1001, f"not {keys.TASK_ID_WORDS}"),
    "comma": ("broken", "it is no JSON"),
    "no-inputs": ("broken", "inputs: Field required"),
    "no-pipeline": ("broken", "pipeline: Field required"),
    "typo": ("broken", "pipline: Extra inputs are not permitted"),
    "headers": ("broken", "headers: Extra inputs are not permitted"),
    "timeout": ("broken", "`timeout_s` is a text, not a number of seconds above 0"),
    "expires": ("broken", 'its `expires_at` is "soon", not a number of seconds since the epoch'),
    "params": ("broken", "params: Input should be a valid dictionary"),
    "elsewhere": ("broken", "other"),
    "huge": ("broken", "at most 262144 bytes are allowed"),
    "huge-and-late": (None, "are allowed (`max_message_bytes`"),
    "huge-nested": ("broken", "are allowed (`max_message_bytes`"),
}
TEXTS: dict[str, str] = {
    "no-id": '{"pipeline": "it", "inputs": "x"}',
    "number": '{"id": 17, "pipeline": "it", "inputs": "x"}',
    "long-id": json.dumps({"id": "x" * 1001, "pipeline": "it", "inputs": "x"}),
    "comma": '{"id": "broken", "pipeline": "it", "inputs": {"id": "other"},}',
    "no-inputs": '{"id": "broken", "pipeline": "it"}',
    "no-pipeline": '{"id": "broken", "inputs": "x"}',
    "typo": '{"id": "broken", "pipline": "it", "inputs": "x"}',
    "headers": '{"id": "broken", "pipeline": "it", "inputs": "x", "headers": {"id": "other"}}',
    "timeout": '{"id": "broken", "pipeline": "it", "inputs": "x", "timeout_s": "7"}',
    "expires": '{"id": "broken", "pipeline": "it", "inputs": "x", "expires_at": "soon"}',
    "params": '{"id": "broken", "pipeline": "it", "inputs": "x", "params": []}',
    "elsewhere": '{"id": "broken", "pipeline": "other", "inputs": "x"}',
    "huge": json.dumps({"id": "broken", "pipeline": "it", "inputs": "x" * 300_000}),
    "huge-and-late": json.dumps({"pipeline": "it", "inputs": "x" * 600_000, "id": "broken"}),
    "huge-nested": json.dumps(
        {"inputs": [{"id": "other", "headers": {"id": "other"}}, '\\"'], "id": "broken", "params": {"x": "x" * 600_000}}
    ),
}


def test_each_mistake_becomes_a_failure_or_a_letter_that_names_it(client: Client, db: redis.Redis, host: Host) -> None:
    assert set(BROKEN) == set(TEXTS)
    for name, (task_id, sentence) in BROKEN.items():
        for front in ("", " "):  # also when a worker has put it back
            db.delete(keys.dead_letter_key(PIPELINE), keys.record_key(task_id or ""))
            db.lpush(PIPELINE, front + TEXTS[name])
            host.take()
            for one in list(host.hands.tasks):
                _as_a_child_would(host, one)
            (letter,) = client.dead(PIPELINE)
            assert letter.task_id == task_id, name
            assert sentence in letter.reason, (name, letter.reason)
            if task_id is not None:
                error = client.status(task_id).error
                assert error is not None, name
                assert (error.code, error.message) == (letter.code, letter.reason), name
                assert not error.retryable
            assert client.status("other").state is State.UNKNOWN, name
            assert not db.exists(keys.UNACKED), name


def _as_a_child_would(host: Host, one: Any) -> None:
    from pipeq_worker.stages.accept import read_message

    if one.error is None:
        try:
            read_message(one.message)
        except PipeqError as error:
            host.hands.begin(one)
            one.fail(error)
        else:
            raise AssertionError(one.message)
        host.hands.end(one)


def test_tenants_take_turns_by_the_key_at_the_top(db: redis.Redis, valkey_url: str) -> None:
    """Not by a key of that name somewhere in the inputs, and not if it stands too far behind."""
    leases = Leases(Server(valkey_url, "", lambda: redis.Redis.from_url(valkey_url)), 1000, 1000)

    def take(most: int) -> list[str]:
        found = []
        for _ in range(10 * most):
            if len(found) < most and (one := leases.reserve_one(Wanted("q", ["q"], 1, 2**30, [0]))) is not None:
                found.append(json.loads(one.raw)["id"])
        return found

    def texts(name: str, count: int, **fields: Any) -> list[str]:
        return [json.dumps({"id": f"{name}{at}", "pipeline": "q", "inputs": 1, **fields}) for at in range(count)]

    db.lpush("q", *texts("a", 30, inputs={"fair_key": "b"}, fair_key="a"), *texts("b", 2, fair_key="b"))
    first = take(1)
    assert {"b0", "b1"} <= {*first, *take(5)}
    db.lpush("q", *texts("late", 1, inputs="x" * 5000, fair_key="b"), *texts("none", 1, inputs=[{"fair_key": "b"}]))
    take(100)
    times = {key.removeprefix("=") for key in db.hkeys(keys.fair_times_key("q"))}
    assert times <= {"a", "b", "", "now", "number"}
    db.lpush("r", *texts("r", 40, inputs=[{"fair_key": "b"}]))
    leases.reserve_one(Wanted("r", ["r"], 1, 2**30, [0]))
    assert not db.exists(keys.fair_times_key("r")), "no tenant, no turns"
    leases.close()
