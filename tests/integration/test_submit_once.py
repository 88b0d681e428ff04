"""A task that its caller named is queued once: however many producers race, and whatever breaks in between."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from pipeq import Client, PipeqError, State, SubmitError
from pipeq.contract import keys as names
from pipeq.contract.record import Mark
from pipeq.submitting import CHUNK_TASKS
from redis.asyncio import Connection as AsyncConnection
from redis.connection import Connection

from tests import both_clients
from tests.commands import run
from tests.integration.conftest import PIPELINE
from tests.waiting import until


@pytest.fixture(params=both_clients.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pipelines() -> tuple[str, ...]:
    return (PIPELINE, "asr")


def queued(db: redis.Redis, pipeline: str = PIPELINE) -> list[str]:
    """Ids of the messages of a queue, first submitted first."""
    return [json.loads(raw)["headers"]["id"] for raw in reversed(db.lrange(pipeline, 0, -1))]


def inputs_of(db: redis.Redis) -> list[Any]:
    return [json.loads(base64.b64decode(json.loads(raw)["body"]))[1] for raw in reversed(db.lrange(PIPELINE, 0, -1))]


def end(db: redis.Redis, task_id: str, word: str, reason: str = "cancelled") -> None:
    """Ends a task as a worker does: its record keeps what its producer wrote."""
    record = json.loads(db.get(names.record_key(task_id)) or "{}")
    record["status"] = word
    if word == "REVOKED":
        record["result"] = {"exc_type": "TaskRevokedError", "exc_message": [reason]}
    if word == "FAILURE":
        record["pipeq"]["error"] = {"code": "invalid_input", "message": "no", "retryable": False}
    db.set(names.record_key(task_id), json.dumps(record), ex=600)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(SubmitError) as caught:
        call()
    assert caught.value.code == "invalid_message"
    assert caught.value.message.isprintable()
    return caught.value.message


# -- races ------------------------------------------------------------------------------------------------------------


def test_one_key_from_a_hundred_threads_is_one_task(db: redis.Redis, valkey_url: str) -> None:
    start = threading.Barrier(100)

    def submit(_: int) -> str:
        with Client(valkey_url) as own:
            start.wait()
            return own.submit(PIPELINE, "x", idempotency_key="invoices/17")

    with ThreadPoolExecutor(100) as threads:
        ids = set(threads.map(submit, range(100)))
    assert queued(db) == list(ids)
    assert len(ids) == 1
    assert (db.get(names.once_key("invoices/17")) or b"").decode() in ids


RACER = """
import sys
from pipeq import Client
with Client(sys.argv[1]) as client:
    client.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    for round in range(20):
        print(client.submit(sys.argv[2], round, idempotency_key=f"round/{round}"))
        keys = [f"{round}/{n}" for n in range(40)]
        print(*client.submit_many(sys.argv[2], range(40), idempotency_keys=keys, priority=0))
        print(*client.submit_many(sys.argv[2], range(40), task_ids=[f"own/{key}" for key in keys], priority=0))
"""


def test_many_keys_from_several_processes_are_one_task_each(db: redis.Redis, valkey_url: str) -> None:
    command = [sys.executable, "-c", RACER, valkey_url, PIPELINE]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(4)
    ]
    for racer in racers:  # they import, and then start together
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    said = [racer.communicate("\n", timeout=120)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert len(set(said)) == 1, "all were told the same ids"
    ids = said[0].split()
    assert Counter(queued(db)) == Counter(ids)
    assert len(set(ids)) == 20 * 81


# -- what breaks in between -------------------------------------------------------------------------------------------


@pytest.fixture(params=range(1, 9))
def nth(request: pytest.FixtureRequest) -> int:
    return int(request.param)


SUBMITS: dict[str, Callable[[Client], Any]] = {
    "key": lambda client: client.submit(PIPELINE, "x", idempotency_key="k"),
    "id": lambda client: client.submit(PIPELINE, "x", task_id="own"),
    "keys": lambda client: client.submit_many(PIPELINE, ["a", "b"], idempotency_keys=["k", "l"], priority=0),
    "ids": lambda client: client.submit_many(PIPELINE, ["a", "b"], task_ids=["own", "own2"], priority=0),
    "mixed": lambda client: client.submit_many(
        PIPELINE, ["a", "b", "c"], task_ids=[None, "own", None], idempotency_keys=["k", None, None], priority=0
    ),
}


@pytest.mark.parametrize("kind", SUBMITS)
@pytest.mark.parametrize("is_executed", [False, True], ids=["before", "after"])
def test_a_connection_that_breaks_loses_and_doubles_nothing(
    client: Client, db: redis.Redis, kind: str, nth: int, is_executed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th exchange with Redis breaks, before its command reaches Redis or before its answer reaches the client."""
    client.submit("asr", "warm")
    client.submit(PIPELINE, "known", check=False)
    db.delete(PIPELINE)
    count = 0
    send, read = Connection.send_packed_command, Connection.read_response
    asend, aread = AsyncConnection.send_packed_command, AsyncConnection.read_response
    broken = redis.exceptions.ConnectionError("broken by the test")

    def sending(self: Connection, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count != nth or is_executed:
            send(self, *args, **kwargs)
        if count == nth:
            if is_executed:
                read(self)
            self.disconnect()
            raise broken

    async def awaited(self: AsyncConnection, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count != nth or is_executed:
            await asend(self, *args, **kwargs)
        if count == nth:
            if is_executed:
                await aread(self)
            await self.disconnect()
            raise broken

    monkeypatch.setattr(Connection, "send_packed_command", sending)
    monkeypatch.setattr(AsyncConnection, "send_packed_command", awaited)
    try:
        said = SUBMITS[kind](client)
    finally:
        monkeypatch.undo()
    ids = [said] if isinstance(said, str) else said
    assert queued(db) == ids
    assert SUBMITS[kind](client) == said or kind == "mixed"
    assert len(queued(db)) == len(ids) + (kind == "mixed"), "what has no name is another task"
    assert [status.state for status in client.status_many(ids)] == [State.QUEUED] * len(ids)


KILLED = """
import sys
from pipeq import Client
with Client(sys.argv[1]) as client:
    print("begins", flush=True)
    for n in range(10**9):
        client.submit(sys.argv[2], n, idempotency_key=f"one/{n}")
        client.submit_many(sys.argv[2], range(20), idempotency_keys=[f"{n}/{at}" for at in range(20)], priority=0)
"""


def test_a_producer_that_is_killed_leaves_whole_tasks(db: redis.Redis, valkey_url: str) -> None:
    chance = random.Random(11)
    command = [sys.executable, "-c", KILLED, valkey_url, PIPELINE]
    for _ in range(4):
        before = db.llen(PIPELINE)
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ)) as racer:
            assert racer.stdout is not None
            racer.stdout.readline()
            until(lambda before=before: db.llen(PIPELINE) > before)  # type: ignore[misc]
            time.sleep(chance.uniform(0.05, 0.5))
            racer.send_signal(signal.SIGKILL)
    there = queued(db)
    found = {key.removeprefix(b"pipeq:once:"): db.get(key) for key in db.scan_iter("pipeq:once:*", count=1000)}
    assert len(there) > 20
    assert Counter(there) == Counter(value.decode() for value in found.values() if value)
    assert all(db.exists(names.record_key(task_id)) for task_id in there)


# -- whose a name is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "is_free"),
    [
        ("queued", False),
        ("running", False),
        ("RETRY", False),
        ("SUCCESS", False),
        ("FAILURE", True),
        ("REVOKED", True),
        ("expired", True),
        ("expired by a worker", True),
        ("forgotten", True),
        ("no record", False),
    ],
)
def test_a_key_is_held_while_its_task_may_succeed(client: Client, db: redis.Redis, state: str, is_free: bool) -> None:
    first = client.submit(PIPELINE, "x", idempotency_key="k", expires_s=0.001 if state == "expired" else None)
    match state:
        case "running":
            mark = Mark(worker="w1", since=time.time(), deaths=0, attempt=1)
            db.hset(names.RUNNING, first, mark.encode())
        case "expired":
            time.sleep(0.01)
        case "expired by a worker":
            end(db, first, "REVOKED", "expired")
        case "forgotten":
            db.delete(names.record_key(first))
        case "no record":
            db.set(names.record_key(first), "spoilt by another program")
        case "queued":
            pass
        case word:
            end(db, first, word)
    second = client.submit(PIPELINE, "x", idempotency_key="k")
    assert (second != first) is is_free
    assert queued(db) == ([first, second] if is_free else [first])
    # Whatever became of the first one, the key is that of the second from now on.
    assert client.submit_many(PIPELINE, ["x"], idempotency_keys=["k"], priority=0) == [second]
    assert 0 < db.ttl(names.once_key("k")) <= names.PENDING_TTL_S


def test_an_id_stays_its_tasks_however_that_ended(client: Client, db: redis.Redis) -> None:
    for word in ("FAILURE", "REVOKED"):
        client.submit(PIPELINE, "x", task_id=word)
        end(db, word, word)
        assert client.submit(PIPELINE, "x", task_id=word) == word
    assert queued(db) == ["FAILURE", "REVOKED"]


@pytest.mark.parametrize("other", ["inputs", "params", "output", "pipeline"])
@pytest.mark.parametrize("name", ["idempotency_key", "task_id"])
def test_a_name_of_another_task_is_an_error_that_says_so(
    client: Client, db: redis.Redis, other: str, name: str
) -> None:
    given: dict[str, Any] = {"pipeline": PIPELINE, "inputs": {"b": 1, "a": 2}, "params": {"x": 1, "y": 2}}
    given |= {"output": "s3://results/x/", name: "k"}
    first = client.submit(**given)
    # The same in another order; when it runs, and for whom, are not part of it.
    again = {**given, "inputs": {"a": 2, "b": 1}, "params": {"y": 2, "x": 1}}
    assert client.submit(**again, priority=9, delay_s=5, deadline_s=1, fair_key="me", headers={"a": 1}) == first
    changed = {"inputs": "else", "params": None, "output": "s3://results/y/", "pipeline": "asr"}
    said = refused(lambda: client.submit(**{**given, other: changed[other]}))
    assert "'k' belongs to" in said
    assert (f"pipeline, '{PIPELINE}'" if other == "pipeline" else "inputs, params or output") in said
    assert name == "task_id" or f"task {first} " in said, "which one to look at"
    assert queued(db) == [first]
    assert not db.exists("asr")


def test_a_key_and_an_id_of_the_same_text_are_two_names(client: Client, db: redis.Redis) -> None:
    ids = [client.submit(PIPELINE, "x", task_id="same"), client.submit(PIPELINE, "y", idempotency_key="same")]
    assert queued(db) == ids


@pytest.mark.parametrize("kind", ["list", "hash", "no id", "nothing"])
def test_a_key_that_holds_something_else_is_replaced(client: Client, db: redis.Redis, kind: str) -> None:
    key = names.once_key("k")
    match kind:
        case "list":
            db.lpush(key, "x")
        case "hash":
            db.hset(key, "a", "b")
        case "no id":
            db.set(key, b"\xff" * 2000)
        case "nothing":
            db.set(key, "")
    task_id = client.submit(PIPELINE, "x", idempotency_key="k")
    assert client.submit(PIPELINE, "x", idempotency_key="k") == task_id
    assert queued(db) == [task_id]


def test_a_delayed_task_holds_its_key_while_it_waits(client: Client, db: redis.Redis) -> None:
    one, two = (client.submit(PIPELINE, "x", idempotency_key="k", delay_s=60) for _ in range(2))
    assert one == two
    assert db.zcard(names.waiting_key(PIPELINE)) == 1


def test_a_task_that_cannot_be_queued_takes_no_key(client: Client, db: redis.Redis) -> None:
    db.set(PIPELINE, "no list")
    with pytest.raises(PipeqError, match="WRONGTYPE"):
        client.submit(PIPELINE, "x", idempotency_key="k")
    time.sleep(0.05)
    db.delete(PIPELINE)
    assert queued(db) == []
    task_id = client.submit(PIPELINE, "x", idempotency_key="k")
    assert queued(db) == [task_id]


# -- many -------------------------------------------------------------------------------------------------------------


def test_each_task_has_its_own_params_and_name(client: Client, db: redis.Redis) -> None:
    many = [{"top_k": n} for n in range(CHUNK_TASKS + 10)]
    ids = client.submit_many(
        PIPELINE,
        (str(n) for n in range(len(many))),
        params=iter(many),
        task_ids=(f"own/{n}" if n % 3 == 0 else None for n in range(len(many))),
        idempotency_keys=[f"key/{n}" if n % 3 == 1 else None for n in range(len(many))],
        priority=0,
    )
    assert queued(db) == ids
    assert [one.get("params") for one in inputs_of(db)] == many
    assert [task_id for task_id in ids if task_id.startswith("own/")] == [f"own/{n}" for n in range(0, len(many), 3)]
    assert db.keys("pipeq:once:*").__len__() == len([n for n in range(len(many)) if n % 3 == 1])
    assert client.submit_many(PIPELINE, ["0"], params=[None], task_ids=["new"], priority=0) == ["new"]


def test_the_same_name_twice_in_a_call_is_one_task(client: Client, db: redis.Redis) -> None:
    first, other, second = client.submit_many(PIPELINE, ["a", "b", "a"], idempotency_keys=["k", "l", "k"], priority=0)
    assert (first, queued(db)) == (second, [first, other])
    assert client.submit_many(PIPELINE, ["c", "c"], task_ids=["t", "t"], priority=0) == ["t", "t"]
    assert queued(db) == [first, other, "t"]
    said = refused(lambda: client.submit_many(PIPELINE, ["d", "e"], task_ids=["u", "u"], priority=0))
    assert said.startswith("task_ids[1]: the task id 'u' belongs to a task with other inputs")
    assert not db.exists(names.record_key("u"))


def test_a_chunk_that_is_repeated_queues_only_what_is_missing(client: Client, db: redis.Redis) -> None:
    keys = [f"k{n}" for n in range(10)]
    ids = client.submit_many(PIPELINE, range(0, 10, 2), idempotency_keys=keys[::2], priority=0)
    end(db, ids[1], "SUCCESS")
    end(db, ids[2], "FAILURE")
    all_ids = client.submit_many(PIPELINE, range(10), idempotency_keys=keys, priority=0)
    assert [all_ids[at] for at in (0, 2, 6, 8)] == [ids[at] for at in (0, 1, 3, 4)]
    assert all_ids[4] != ids[2]
    assert queued(db) == [*ids, *(all_ids[at] for at in (1, 3, 4, 5, 7, 9))]


class Lazy:
    """Values without a length, which can be read more than once."""

    def __init__(self, values: Iterable[str]) -> None:
        self._values = values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"task_ids": ["a"]}, "task_ids has 1 value for 3 inputs"),
        ({"task_ids": Lazy("a")}, "task_ids ends after 1 value, and inputs goes on"),
        ({"idempotency_keys": Lazy("abcd")}, "idempotency_keys goes on, and inputs ends after 3"),
        ({"params": [{}, {}]}, "params has 2 values for 3 inputs"),
        ({"task_ids": "abc"}, "task_ids is 'abc', a str, but takes a list"),
        ({"idempotency_keys": {"a": 1}}, "idempotency_keys is {'a': 1}, a dict, but takes a list"),
        ({"idempotency_keys": 5}, "idempotency_keys is 5, a int, but takes a list"),
        ({"task_ids": ["a", "b", 5]}, r"task_ids\[2\]: the task id 5 is not text"),
        ({"idempotency_keys": ["a", "", "c"]}, r"idempotency_keys\[1\] '' is not text"),
        ({"idempotency_keys": [None, None, "\udc80"]}, r"idempotency_keys\[2\] .* is not text"),
        ({"task_ids": iter("abc"), "idempotency_keys": iter("abc")}, r"task_ids\[0\] and idempotency_keys\[0\] both"),
        ({"params": [{}, 5, {}]}, r"params\[1\] is 5, a int, and takes a dictionary"),
        ({"params": [{}, {}, {"a": float("nan")}]}, r"params\[2\]: .*nan"),
        ({"params": "abc"}, "params is 'abc', a str"),
    ],
)  # fmt: skip
def test_an_argument_is_named_with_its_position(
    client: Client, db: redis.Redis, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(SubmitError, match=says) as caught:
        client.submit_many(PIPELINE, ["x", "y", "z"], **given, priority=0)
    assert caught.value.message.isprintable()
    assert queued(db) == []
    assert caught.value.submitted == ()


def test_an_input_that_cannot_be_sent_is_named_with_its_position(client: Client, db: redis.Redis) -> None:
    with pytest.raises(SubmitError, match=r"inputs\[2\]: object is not JSON") as caught:
        client.submit_many(PIPELINE, ["x", "y", object()], priority=0)
    assert caught.value.code == "invalid_input"
    with pytest.raises(SubmitError, match=r"inputs\[1\]: the message is"):
        client.submit_many(PIPELINE, ["x", "y" * 300_000], priority=0)
    with pytest.raises(SubmitError, match=r"^invalid_input: object is not JSON"):
        client.submit(PIPELINE, object())
    assert queued(db) == []


def test_a_task_has_one_name(client: Client) -> None:
    assert "give one of them" in refused(lambda: client.submit(PIPELINE, "x", task_id="a", idempotency_key="b"))


# -- the command line -------------------------------------------------------------------------------------------------


def test_a_submit_that_broke_off_can_be_repeated(db: redis.Redis) -> None:
    lines = [f"text {n}" for n in range(1200)]
    run("submit", PIPELINE, "-", "--priority", "0", "--idempotency-key", "night", stdin="\n".join(lines[:700]))
    done = run("submit", PIPELINE, "-", "--priority", "0", "--idempotency-key", "night", stdin="\n".join(lines))
    assert done.exit_code == 0
    assert queued(db) == done.stdout.split()
    assert [one["inputs"] for one in inputs_of(db)] == lines
    other = run("submit", PIPELINE, "-", "--priority", "0", "--idempotency-key", "night", stdin="\n".join(lines[1:]))
    assert other.exit_code == 6
    assert re.search(r"idempotency_keys\[0\]: the idempotency key 'night/1' belongs to task", other.stderr)


def test_one_input_has_the_name_itself(db: redis.Redis) -> None:
    one, two = (run("submit", PIPELINE, "x", "--idempotency-key", "k").stdout for _ in range(2))
    assert one == two
    assert db.exists(names.once_key("k"))
    assert run("submit", PIPELINE, "y", "--task-id", "own").stdout == "own\n"
    assert run("submit", PIPELINE, "y", "--task-id", "own").stdout == "own\n"
    assert queued(db) == [one.strip(), "own"]
    for several in (["y", "z"], ["-"]):
        done = run("submit", PIPELINE, *several, "--task-id", "own", stdin="y\n")
        assert done.exit_code == 2
        assert "--task-id names one task" in done.stderr
    assert run("submit", PIPELINE, "else", "--task-id", "own").exit_code == 6
