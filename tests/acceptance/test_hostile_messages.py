"""Whatever is pushed or broadcast, each message ends once, and messages beside it are not affected.

Every header, property and part of a body that Celery knows is walked, each with values of every kind.
"""

from __future__ import annotations

import base64
import bz2
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from pipeq import Client
from pipeq.contract import keys
from pipeq.contract.message import TaskMessage
from pipeq.demo import embedded
from pipeq.envelope import Envelope
from pipeq_worker.broker import protocol

from tests.worker_process import WorkerProcess, worker

VALUES: list[Any] = [True, 5, -1, 0.5, 1e308, 10**400, "text", "\ud800", "", [], [1], {}, {"a": 1}, "9" * 5000]
#: Fields beside those of the protocol that kombu and Celery also read, and names that conflict with theirs.
HEADERS = [*protocol.HEADERS, "chord", "reply_to", "update", "__class__", "_children", "headers", "taskset", "clock"]
#: Each message needs its own id, because several with one id would be one task.
_numbers = iter(range(10**9))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url


@pytest.fixture(scope="module")
def process(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with worker(tmp_path_factory.mktemp("hostile"), url, "constant", lease_s=5, sweep_s=1) as process:
        with Client(url) as client:
            process.wait_ready(client, "constant")
        yield process
        assert process.stop() == 0, process.text()[-5000:]


@pytest.fixture
def db(process: WorkerProcess, url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as db:
        db.delete(keys.dead_letter_key("constant"))
        yield db
        assert process.process.poll() is None, process.text()[-5000:]
        assert "Connection to broker lost" not in process.text(), process.text()[-5000:]


def good() -> dict[str, Any]:
    """A frame made by the client."""
    envelope = Envelope(f"task-{next(_numbers)}", TaskMessage(pipeline="constant", inputs=1))
    return json.loads(envelope.encode(envelope.body()))  # type: ignore[no-any-return]


def with_body(body: Any) -> dict[str, Any]:
    frame = good()
    frame["body"] = base64.b64encode(body if isinstance(body, bytes) else json.dumps(body).encode()).decode()
    return frame


def settle(db: redis.Redis, messages: list[Any]) -> None:
    """Pushes bad messages among good ones, checks that all good ones succeed, and waits until none is left."""
    pushed, neighbours = [], []
    for message in messages:
        if not neighbours or random.random() < 0.1:
            neighbours.append(good())
            pushed.append(neighbours[-1])
        pushed.append(message)
    raw = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in pushed]
    db.lpush("constant", *raw)
    deadline = time.monotonic() + 60
    while db.llen("constant") or db.hlen("pipeq:unacked") or db.zcard("pipeq:leases"):
        assert time.monotonic() < deadline, (db.llen("constant"), db.hgetall("pipeq:unacked"))
        time.sleep(0.05)
    for one in neighbours:
        assert record(db, one["headers"]["id"])["status"] == "SUCCESS"


def record(db: redis.Redis, task_id: str) -> dict[str, Any]:
    raw = db.get(keys.record_key(task_id))
    return json.loads(raw) if raw else {"status": None}


def letters(db: redis.Redis) -> list[dict[str, Any]]:
    return [json.loads(one) for one in db.lrange(keys.dead_letter_key("constant"), 0, -1)]


@pytest.mark.parametrize("place", ["headers", "properties", "frame", "embed", "args", "kwargs", "body"])
def test_every_value_everywhere(db: redis.Redis, place: str) -> None:
    messages = []
    for value in VALUES:
        if place == "headers":
            for name in HEADERS:
                messages.append(good())
                messages[-1]["headers"][name] = value
        elif place == "properties":
            for name in [*protocol.PROPERTIES, "body_encoding", "delivery_tag", "delivery_info"]:
                messages.append(good())
                messages[-1]["properties"][name] = value
        elif place == "frame":
            for name in good():
                messages.append({**good(), name: value})
        elif place == "embed":
            kwargs = {"pipeline": "constant", "inputs": 1}
            messages += [with_body([[], kwargs, {name: value}]) for name in protocol.EMBED]
        elif place == "body":
            messages.append(with_body(value))
        else:
            at = ["args", "kwargs"].index(place)
            messages.append(with_body([value if at == 0 else [], value if at == 1 else {}, {}]))
    settle(db, messages)
    unknown = 0
    dead = {letter["id"] for letter in letters(db)}
    for message in messages:
        headers = message["headers"]
        task_id = headers.get("id") if isinstance(headers, dict) else None
        if keys.is_readable_id(task_id):
            status = record(db, task_id)["status"]
            assert status in ("SUCCESS", "FAILURE"), message
            assert (status == "FAILURE") == (task_id in dead), message
        else:
            unknown += 1
    assert sum(letter["id"] is None for letter in letters(db)) == unknown


def test_shapes_that_are_no_body(db: redis.Redis) -> None:
    bodies: list[Any] = [
        [[], 5, {}],
        [5, {}, {}],
        [[], {}, 5],
        [{}, [], {}],
        [[], {}],
        [[], {}, {}, {}],
        {},
        [],
        "x",
        None,
    ]
    bodies += [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[" * 300 + b"]" * 300,
        b'[[], {"inputs": ' + b"9" * 5000 + b"}, {}]",
    ]
    bodies += [b'[[], {"a": {"__type__": %s, "__value__": 1}}, {}]' % kind for kind in (b'"uuid"', b"[]", b'"decimal"')]
    messages = [with_body(body) for body in bodies]
    settle(db, messages)
    for message, body in zip(messages, bodies, strict=True):
        status = record(db, message["headers"]["id"])
        assert status["status"] == "FAILURE", body
        assert status["pipeq"]["error"]["code"] == "invalid_message", status
    assert len(letters(db)) == len(messages)


def test_packed_bodies_and_encodings(db: redis.Redis) -> None:
    bomb = with_body(bz2.compress(b" " * 50_000_000))
    bomb["headers"]["compression"] = "bzip2"
    slow = {**with_body(b"x" * 150_000), "content-encoding": "punycode", "content-type": "application/data"}
    settle(db, [bomb, slow])
    for message in (bomb, slow):
        assert record(db, message["headers"]["id"])["pipeq"]["error"]["code"] == "invalid_message"
    # Compressions that Celery's own producers use.
    for kind in ("gzip", "bzip2", "lzma"):
        url = "redis://{host}:{port}/{db}".format(**db.connection_pool.connection_kwargs)
        with Celery(broker=url, backend=url) as app:
            kwargs = {"pipeline": "constant", "inputs": "x" * 100_000}
            task = app.send_task("pipeq.infer", kwargs=kwargs, queue="constant", compression=kind)
            assert task.get(timeout=20) == "constant"


@pytest.mark.parametrize("where", ["header", "body", "raw"])
def test_messages_of_fifty_megabytes(db: redis.Redis, process: WorkerProcess, where: str) -> None:
    before = process.peak_mib()
    message = good()
    task_id = message["headers"]["id"]
    text = "x" * 50 * 2**20
    if where == "header":
        message["headers"]["more"] = text
    elif where == "body":
        message["body"] = text
    raw = json.dumps(message).encode()
    settle(db, [text.encode() if where == "raw" else raw])
    (letter,) = letters(db)
    assert "bytes are allowed" in letter["reason"] or "bytes, at most" in letter["reason"]
    assert len(json.dumps(letter)) < 100_000
    if where != "raw":
        assert record(db, task_id)["status"] == "FAILURE"
    assert process.peak_mib() - before < 20


def test_mutated_messages(db: redis.Redis) -> None:
    """Each message whose id can be read has a record under it."""
    rng = random.Random(8)
    messages = []
    for _ in range(300):
        raw = bytearray(json.dumps(good()).encode())
        for _ in range(rng.choice([1, 1, 1, 5])):
            at = rng.randrange(len(raw))
            kind = rng.randrange(4)
            if kind == 0:
                raw[at] = rng.randrange(256)
            elif kind == 1:
                del raw[at : at + rng.randrange(40)]
            elif kind == 2:
                raw[at:at] = raw[at - 30 : at]
            else:
                raw[at:at] = rng.choice([b"[", b"}", b'"', b"\x00", b"9" * 400, b"null", b"\\ud800"])
        messages.append(bytes(raw))
    settle(db, messages)
    dead = letters(db)
    readable = 0
    for raw in messages:
        try:
            task_id = json.loads(raw)["headers"]["id"]
        except (ValueError, LookupError, TypeError):
            continue
        if keys.is_readable_id(task_id):
            readable += 1
            assert record(db, task_id)["status"] in ("SUCCESS", "FAILURE"), raw
    for letter in dead:
        if letter["id"] is not None:
            assert record(db, letter["id"])["status"] == "FAILURE"
    assert readable > 50


def test_celerys_own_tasks_do_not_run_here(db: redis.Redis, process: WorkerProcess) -> None:
    with Celery() as app:
        names = [name for name in app.tasks if name.startswith("celery.")]
    assert len(names) > 5
    messages = []
    for name in names:
        message = with_body([["group", {"task": "celery.chord_unlock"}], {"interval": 0, "result": []}, {}])
        message["headers"]["task"] = name
        messages.append(message)
    settle(db, messages)
    for message in messages:
        status = record(db, message["headers"]["id"])
        assert status["status"] == "FAILURE"
        assert "--include" in status["pipeq"]["error"]["message"]


DEEP = b"[" * 100_000


@pytest.mark.parametrize("channel", ["/0.celery.pidbox", "/0.celeryev/worker.heartbeat", "/0.celeryev/task.multi"])
def test_broadcasts(db: redis.Redis, process: WorkerProcess, channel: str) -> None:
    frame = good()
    frame["properties"]["delivery_info"] = {"exchange": "celery.pidbox", "routing_key": ""}
    bodies: list[Any] = [DEEP, b"[]", b"5", b"null", b"\xff", b"{}", b'{"method": "nonsense"}']
    bodies += [
        b'{"method": "revoke", "arguments": {"task_id": 5}}',
        b'{"method": "ping", "matcher": "x", "pattern": "("}',
    ]
    names = ("method", "arguments", "destination", "pattern", "matcher", "ticket", "reply_to")
    bodies += [json.dumps({"method": "ping", name: value}).encode() for name in names for value in VALUES]
    for raw in (DEEP, b"[]", b"5", b"null", b"\xff", b"", b"{}", b'{"properties": {}}', b'{"a": ' * 50_000):
        db.publish(channel, raw)
    for body in bodies:
        db.publish(channel, json.dumps({**frame, "body": base64.b64encode(body).decode()}))
    bomb = {**frame, "body": base64.b64encode(bz2.compress(b" " * 10_000_000)).decode()}
    bomb["headers"] = {"compression": "bzip2"}
    db.publish(channel, json.dumps(bomb))
    for name in ("clock", "id", "task"):
        for value in VALUES:
            db.publish(channel, json.dumps({**frame, "headers": {name: value}}))
    settle(db, [good()])
    url = "redis://{host}:{port}/{db}".format(**db.connection_pool.connection_kwargs)
    with Celery(broker=url) as app:
        assert app.control.inspect(timeout=10, limit=1).ping()


def test_waiting_messages_go_to_their_own_queue_alone(db: redis.Redis) -> None:
    """Delayed tasks and retries of all queues wait in sets to which any client may write."""
    waiting = keys.waiting_key("constant")
    late = good()
    own = json.dumps({"list": keys.list_key("constant", 9), "message": json.dumps(late)})
    others: list[Any] = []
    for place in ("somebody-elses", "celery", keys.UNACKED, "constant\x06\x165", "", 5, None, ["constant"], {"a": 1}):
        others.append(good())
        db.zadd(waiting, {json.dumps({"list": place, "message": json.dumps(others[-1])}): 1})
    bad = [b"no json", b"[1]", b"5", b"null", b"{}", DEEP, b"\xff\xfe", b'{"list": "constant"}']
    bad += [b'{"list": "constant", "message": %s}' % value for value in (b"5", b"null", b"{}", b"[]")]
    for member in bad:
        db.zadd(waiting, {member: 1})
    db.zadd(waiting, {own: time.time() - 1})
    deadline = time.monotonic() + 20
    while db.exists(waiting) or db.llen("constant") or db.hlen("pipeq:unacked"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert record(db, late["headers"]["id"])["status"] == "SUCCESS"
    assert not db.exists("somebody-elses", "celery", "constant\x06\x165", "")
    for message, at in zip(others, range(9), strict=True):
        status = record(db, message["headers"]["id"])
        assert status["status"] == "FAILURE", at
    assert len(letters(db)) == len(others) + len(bad)
