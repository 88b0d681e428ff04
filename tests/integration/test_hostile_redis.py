"""Any client may write to Redis: every key that our client reads is tested with every kind of content.

The client returns a status, a count or a PipeqError, and nothing else; the command line prints no escape sequence.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from pipeq import Client, PipeqError, State, TaskStatus
from pipeq.cli import main
from pipeq.contract import keys as names
from pipeq.queue_info import QueueInfo

PIPELINE = "text-classification"
TASK = "5e7a2ccf-cc38-4d62-a716-5fe15bae5706"
NEIGHBOUR = "a8f0c1de-0000-4000-8000-000000000000"
ESCAPE = "\x1b[2J\x9b31m\r\n\x07\u202e\ud800"
#: Values in the place of text.
RAW: list[bytes] = [
    b"",
    b"no JSON",
    b"[1]",
    b'"x"',
    b"1",
    b"null",
    b"true",
    b"NaN",
    b"[" * 50_000,
    b'{"status":' * 50_000,
    b"9" * 5000,
    b"\xff\xfe\x80",
    b"\x1b[2J",
    b"{}",
]
#: Values of a field.
VALUES: list[Any] = [
    None,
    True,
    -1,
    10**299,
    float("nan"),
    float("inf"),
    1e308,
    "",
    ESCAPE,
    "x" * 100_000,
    [],
    [None, {"a": ESCAPE}],
    {},
    {"a": [ESCAPE]},
    json.loads("[" * 190 + "]" * 190),
]
RECORD_FIELDS = ["status", "result", "traceback", "children", "date_done", "task_id", "pipeq"]
CELERY_STATES = ["QUEUED", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED"]


def _records() -> Iterator[bytes]:
    yield from RAW
    for state in CELERY_STATES:
        good: dict[str, Any] = {"status": state, "result": None, "children": [], "task_id": TASK, "pipeq": {}}
        for value in VALUES:
            for name in RECORD_FIELDS:
                yield json.dumps({**good, name: value}).encode()
            for name in TaskStatus.model_fields:
                yield json.dumps({**good, "pipeq": {name: value}}).encode()
            for name in ("code", "message", "retryable"):
                error = {"code": "internal", "message": "x", "retryable": False, name: value}
                yield json.dumps({**good, "pipeq": {"error": error}}).encode()
            for name in ("exc_type", "exc_message", "exc_module"):
                yield json.dumps({**good, "result": {"exc_type": "E", "exc_message": ["m"], name: value}}).encode()
            for name, inner in (("batch", "size"), ("batch", "padding"), ("model", "id"), ("timing_ms", ESCAPE)):
                fields = {"size": 1, "padding": 0.5} if name == "batch" else {}
                yield json.dumps({**good, "pipeq": {name: {**fields, inner: value}}}).encode()


RECORDS = list(dict.fromkeys(_records()))
MARKS = [*RAW, *(json.dumps({"worker": v, "attempt": v, "since": v}).encode() for v in VALUES)]


@pytest.fixture
def db(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as db:
        db.flushdb()
        db.hset(names.PIPELINES, PIPELINE, '{"task": "text-classification"}')
        db.zadd(names.workers_key(PIPELINE), {"w1": time.time() + 3600})
        _put(db, NEIGHBOUR, json.dumps({"status": "SUCCESS", "result": "fine", "pipeq": {}}).encode())
        yield db


@pytest.fixture
def client(db: redis.Redis, valkey_url: str) -> Iterator[Client]:
    with Client(valkey_url) as client:
        yield client


def _put(db: redis.Redis, task_id: str, record: bytes) -> None:
    db.set(names.record_key(task_id), record, ex=600)


def _judged(call: Callable[[], Any]) -> Any:
    """The result of a call, or its PipeqError. Any other exception fails the test."""
    try:
        return call()
    except PipeqError as error:
        return error


def _prints(*arguments: str) -> str:
    """Runs a command, and checks that its output has no control characters."""
    done = CliRunner().invoke(main, arguments, prog_name="pipeq")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    for line in done.output.splitlines():
        assert line.isprintable(), (arguments, line)
    return done.stdout


def test_no_record_spoils_a_status_or_its_neighbour(client: Client, db: redis.Redis) -> None:
    for at in range(0, len(RECORDS), 400):
        some = {f"{TASK}-{number}": record for number, record in enumerate(RECORDS[at : at + 400])}
        with db.pipeline(transaction=False) as pipe:
            for task_id, record in some.items():
                pipe.set(names.record_key(task_id), record, ex=600)
            pipe.execute()
        found = client.status_many([*some, NEIGHBOUR])
        assert found[-1].result == "fine"
        for status, record in zip(found, some.values(), strict=False):
            assert isinstance(status.state, State)
            assert status.state is not State.FAILED or status.error is not None, record[:200]
            # The status can be pickled, and its result can be passed on.
            json.loads(status.model_dump_json())
            if status.is_final:
                _judged(lambda status=status: client.result(status))  # type: ignore[misc]


@pytest.mark.parametrize("record", RAW[:-1])
def test_what_is_no_record_is_unknown_and_says_so(client: Client, db: redis.Redis, record: bytes) -> None:
    _put(db, TASK, record)
    status = client.status(TASK)
    assert (status.state, status.is_final) == (State.UNKNOWN, False)
    assert status.error is not None
    assert status.error.code == "invalid_record"
    assert names.record_key(TASK) in status.error.message
    # The task can still be cancelled: a worker then drops its message.
    assert client.cancel(TASK).state is State.CANCELLED
    assert client.status(TASK).state is State.CANCELLED


@pytest.mark.parametrize("record", RAW)
def test_no_record_spoils_any_other_method(client: Client, db: redis.Redis, record: bytes) -> None:
    _put(db, TASK, record)
    assert isinstance(_judged(lambda: client.wait(TASK, 0.01)), PipeqError)
    assert isinstance(_judged(lambda: client.result(TASK, 0.01)), PipeqError)
    assert isinstance(_judged(lambda: list(client.as_completed([TASK, NEIGHBOUR], 0.01))), PipeqError)
    assert next(client.as_completed([TASK, NEIGHBOUR], 5)).id == NEIGHBOUR
    assert client.submit(PIPELINE, "x", task_id=TASK) == TASK
    assert isinstance(_judged(lambda: client.cancel(TASK)), TaskStatus)


def test_an_error_out_of_a_record_is_one_line(client: Client, db: redis.Redis) -> None:
    error = {"code": ESCAPE, "message": f"{ESCAPE}\nERROR forged", "retryable": False}
    _put(db, TASK, json.dumps({"status": "FAILURE", "pipeq": {"error": error}}).encode())
    with pytest.raises(PipeqError) as caught:
        client.result(TASK)
    assert str(caught.value).isprintable()


def test_no_record_spoils_a_cancel(client: Client, db: redis.Redis) -> None:
    for record in RECORDS[:: max(1, len(RECORDS) // 300)]:
        _put(db, TASK, record)
        assert client.cancel(TASK).is_final, record[:200]


def test_no_published_text_ends_or_breaks_a_wait(client: Client, db: redis.Redis) -> None:
    finish = json.dumps({"status": "SUCCESS", "result": "done", "pipeq": {}})
    client.submit(PIPELINE, "x", task_id=TASK)
    waiting = client.as_completed([TASK], 20)

    def publish() -> None:
        key = names.record_key(TASK)
        while not db.pubsub_numsub(key)[0][1]:
            time.sleep(0.01)
        for raw in RAW:
            db.publish(key, raw)
        db.set(key, finish)
        db.publish(key, finish)

    thread = threading.Thread(target=publish)
    thread.start()
    assert next(waiting).result == "done"
    thread.join()


@pytest.mark.parametrize("mark", MARKS)
def test_no_mark_spoils_a_status(client: Client, db: redis.Redis, mark: bytes) -> None:
    task = client.submit(PIPELINE, "x")
    db.hset(names.RUNNING, task, mark)
    assert client.status(task).state in (State.QUEUED, State.RUNNING)
    json.loads(client.status(task).model_dump_json())


def _other_types(db: redis.Redis, key: str) -> Iterator[str]:
    """Puts each type of Redis under a key, in turn."""
    puts: dict[str, Callable[[], Any]] = {
        "string": lambda: db.set(key, "x"),
        "list": lambda: db.lpush(key, "x"),
        "hash": lambda: db.hset(key, "x", "y"),
        "zset": lambda: db.zadd(key, {"x": time.time()}),
    }
    for name, put in puts.items():
        db.delete(key)
        put()
        yield name


KEYS = {
    "record": names.record_key(TASK),
    "marks": names.RUNNING,
    "pipelines": names.PIPELINES,
    "workers": names.workers_key(PIPELINE),
    "loading": names.loading_key(PIPELINE),
    "heartbeat": names.worker_key("w1"),
    "list": PIPELINE,
    "bulk list": names.list_key(PIPELINE, 9),
    "dead letters": names.dead_letter_key(PIPELINE),
    "waiting": names.waiting_key(PIPELINE),
}
CALLS: dict[str, Callable[[Client], Any]] = {
    "status": lambda client: client.status(TASK),
    "status_many": lambda client: client.status_many([TASK, NEIGHBOUR]),
    "wait": lambda client: client.wait(TASK, 0.01),
    "result": lambda client: client.result(TASK, 0.01),
    "as_completed": lambda client: list(client.as_completed([TASK], 0.01)),
    "cancel": lambda client: client.cancel(TASK),
    "pipelines": lambda client: client.pipelines(),
    "queues": lambda client: client.queues(),
    "submit": lambda client: client.submit(PIPELINE, "x"),
    "submit with an id": lambda client: client.submit(PIPELINE, "x", task_id=TASK),
    "submit later": lambda client: client.submit(PIPELINE, "x", delay_s=60),
    "submit unchecked": lambda client: client.submit(PIPELINE, "x", check=False),
    "submit_many": lambda client: client.submit_many(PIPELINE, ["x", "y"]),
    "ping": lambda client: client.ping(),
    "queue": lambda client: client.queue(PIPELINE),
    "dead": lambda client: client.dead().list(),
    "dead retry": lambda client: client.dead(PIPELINE).retry(),
    "dead drop": lambda client: client.dead(ids=[TASK]).drop(),
    "purge": lambda client: client.purge(PIPELINE),
    "forget": lambda client: client.forget(PIPELINE, force=True),
}
COMMANDS = [
    ("status", TASK, NEIGHBOUR),
    ("status", TASK, "--json"),
    ("result", TASK),
    ("result", TASK, "--timeout", "0.01"),
    ("queues",),
    ("queues", "--json"),
    ("submit", PIPELINE, "x y"),
    ("submit", PIPELINE, "x y", "--timeout", "0.01", "--json"),
    ("cancel", TASK),
    ("dead", "list"),
    ("dead", "show", PIPELINE),
    ("dead", "retry", "--all"),
    ("dead", "drop", "--all", "--yes"),
    ("purge", PIPELINE, "--yes"),
    ("forget", PIPELINE),
]


@pytest.mark.filterwarnings("ignore::pipeq.client.NoLiveWorkerWarning")
@pytest.mark.parametrize("kind", KEYS)
def test_no_type_under_any_key_raises_what_is_not_ours(
    client: Client, db: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("PIPEQ_REDIS_URL", valkey_url)
    for other in _other_types(db, KEYS[kind]):
        for name, call in CALLS.items():
            # A client that has not asked for the pipeline yet, and one that has.
            with Client(valkey_url) as fresh:
                _judged(lambda call=call, one=fresh if "submit" in name else client: call(one))  # type: ignore[misc]
        for command in COMMANDS if other == "hash" else ():
            _prints(*command)
    # Other queues are not affected.
    assert client.status(NEIGHBOUR).result == "fine"


@pytest.mark.filterwarnings("ignore::pipeq.client.NoLiveWorkerWarning")
def test_a_queue_of_another_type_leaves_no_record_that_waits_for_ever(client: Client, db: redis.Redis) -> None:
    db.set(PIPELINE, "no list")
    with pytest.raises(PipeqError, match="WRONGTYPE"):
        client.submit_many(PIPELINE, ["x", "y"], priority=0)
    time.sleep(0.01)
    assert not [key for key in db.scan_iter("celery-task-meta-*") if NEIGHBOUR.encode() not in key]


def test_what_workers_say_of_themselves_is_judged(client: Client, db: redis.Redis) -> None:
    db.lpush(PIPELINE, "x")
    for raw in [*RAW, *(json.dumps({"in_flight": v}).encode() for v in VALUES)]:
        db.hset(names.PIPELINES, PIPELINE, raw)
        db.set(names.worker_key("w1"), raw)
        assert isinstance(client.pipelines()[PIPELINE], dict)
        (queue,) = client.queues()
        assert (queue.depth, queue.workers, queue.in_flight) == (1, 1, 0)
    for value in VALUES:
        db.set(names.worker_key("w1"), json.dumps({"in_flight": {PIPELINE: value}}))
        assert 0 <= client.queues()[0].in_flight < 2**31
    db.zadd(names.workers_key(PIPELINE), {b"\xff\xfe": time.time() + 60, ESCAPE[:3]: time.time() + 60})
    assert client.queues()[0].workers == 3


def test_heads_of_lists_are_judged(client: Client, db: redis.Redis) -> None:
    for raw in [*RAW, *(json.dumps({"headers": {"id": v}}).encode() for v in VALUES), b'{"headers": 5}']:
        db.delete(PIPELINE)
        db.lpush(PIPELINE, raw)
        assert isinstance(client.queues()[0], QueueInfo)


def test_names_of_pipelines_are_judged(
    client: Client, db: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPEQ_REDIS_URL", valkey_url)
    for name in (b"\xff\xfe", b"\x1b[2J[red]x", b"", b"x" * 10_000, "\x9b31m".encode(), *RAW):
        db.hset(names.PIPELINES, name, "{}")  # type: ignore[arg-type]
    for number in range(1000):
        db.hset(names.PIPELINES, f"n{number}", "{}")
    assert len(client.pipelines()) > 1000
    with pytest.raises(PipeqError, match=r"did you mean 'text-classification'\?") as caught:
        client.submit("text-clasification", "x")
    assert len(caught.value.message) < 4000
    assert caught.value.message.isprintable()
    for number in range(1000):
        db.hdel(names.PIPELINES, f"n{number}")
    assert PIPELINE in _prints("queues")
    _prints("submit", "text-clasification", "x y")


def test_the_command_line_prints_no_order_to_the_terminal(
    db: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPEQ_REDIS_URL", valkey_url)
    records = RAW + RECORDS[:: max(1, len(RECORDS) // 150)]
    ids = [f"{TASK}-{number}" for number in range(len(records))]
    for task_id, record in zip(ids, records, strict=True):
        _put(db, task_id, record)
    _prints("status", *ids, NEIGHBOUR)
    for line in _prints("status", "--json", *ids, NEIGHBOUR).splitlines():
        json.loads(line)
    for task_id in ids[::5]:
        _prints("result", task_id)
    _prints("cancel", *ids)
    _prints("status", "\x1b[31m", "a\nb")


def test_a_record_cannot_make_a_client_read_its_own_disk(
    client: Client, db: redis.Redis, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPEQ_REDIS_URL", valkey_url)
    (tmp_path / "store").mkdir()
    secret = tmp_path / "secret.json"
    secret.write_text('"secret"')
    (tmp_path / "store" / "link.json").symlink_to(secret)
    (tmp_path / "store" / "t.json").write_text('"result"')
    os.mkfifo(tmp_path / "store" / "pipe")
    store = (tmp_path / "store").as_uri()
    uris = [
        secret.as_uri(),
        f"{store}/link.json",
        f"{store}/../secret.json",
        f"{store}/%2e%2e/secret.json",
        f"{store}x/secret.json",
        f"file://localhost{secret}",
        f"file:{secret}",
        str(secret),
        "file:///proc/self/environ",
        f"{store}/a%00b",
        "http://127.0.0.1:9/x",
        "s3://bucket/key",
        "s3://bucket",
        "s3:///key",
        "s3://results/../other/key",
        "ftp://h/x",
        "",
        ESCAPE,
    ]
    with Client(valkey_url, allow=[f"{store}/", "s3://results/"]) as allowed:
        for uri in uris:
            _put(db, TASK, json.dumps({"status": "SUCCESS", "pipeq": {"result_uri": uri}}).encode())
            for reader in (client, allowed):
                with pytest.raises(PipeqError) as caught:
                    reader.result(TASK)
                assert caught.value.code == "input_forbidden", uri
                with pytest.raises(PipeqError):
                    reader.read({"uri": uri})
            assert "secret" not in _prints("result", TASK)
        # Does not wait for a writer of a pipe.
        with pytest.raises(PipeqError, match="no regular file"):
            allowed.read({"uri": f"{store}/pipe"})
        _put(db, TASK, json.dumps({"status": "SUCCESS", "pipeq": {"result_uri": f"{store}/t.json"}}).encode())
        assert allowed.result(TASK) == "result"
    with pytest.raises(
        PipeqError, match=r"Client\(allow=\[\"file:.*/store/\"\]\), --allow file:.* or PIPEQ_CLIENT_ALLOW="
    ):
        client.result(TASK)
    assert _prints("result", TASK, "--allow", f"{store}/") == '"result"\n'
    monkeypatch.setenv("PIPEQ_CLIENT_ALLOW", f"s3://other/, {store}")
    assert _prints("result", TASK) == '"result"\n'


def test_what_a_client_asked_for_itself_it_reads(db: redis.Redis, client: Client, tmp_path: Path) -> None:
    task = client.submit(PIPELINE, "x", output=f"{tmp_path.as_uri()}/")
    other = client.submit(PIPELINE, "x")
    for one in (task, other):
        (tmp_path / f"{one}.json").write_text('"here"')
        uri = f"{tmp_path.as_uri()}/{one}.json"
        _put(db, one, json.dumps({"status": "SUCCESS", "pipeq": {"result_uri": uri}}).encode())
    assert client.result(task) == "here"
    with Client(client.redis_url) as another, pytest.raises(PipeqError, match="was not told to read"):
        another.result(task)
