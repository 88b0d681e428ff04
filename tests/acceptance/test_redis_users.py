"""The users of `deploy/redis-users.acl` may do what they need, and nothing else.

They are a worker, a producer, an operator, who only reads, and a maintainer, who also writes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chord
from pipeq import Client, PipeqError, State
from pipeq.contract import job, keys
from pipeq.demo import embedded

from tests.worker_process import worker

RULES = Path(__file__).parents[2] / "deploy" / "redis-users.acl"
#: The name of the queue in the file, which users replace by theirs.
QUEUE = "text-classification"
#: The Valkey of the tests, and a Redis if the machine has one.
SERVERS = [None, *filter(None, [shutil.which("redis-server")])]


@pytest.fixture(scope="module", params=SERVERS, ids=lambda program: "redis" if program else "valkey")
def server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    with embedded.valkey(request.param) as url:
        yield url


@pytest.fixture
def db(server_url: str) -> Iterator[redis.Redis]:
    """An empty server with a user for everything, and without refusals in its log."""
    with redis.Redis.from_url(server_url, decode_responses=True) as db:
        db.flushall()
        db.acl_log_reset()
        yield db


@pytest.fixture
def urls(db: redis.Redis, server_url: str) -> dict[str, str]:
    """A URL for each user."""
    found = {}
    for line in RULES.read_text().splitlines():
        _, name, *rules = line.split()
        assert db.execute_command("ACL", "SETUSER", name, *rules) == "OK"
        (password,) = (rule[1:] for rule in rules if rule.startswith(">"))
        found[name] = server_url.replace("redis://", f"redis://{name}:{password}@")
    return found


@pytest.fixture
def producer(db: redis.Redis, urls: dict[str, str]) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(urls["pipeq-producer"], decode_responses=True) as own:
        own.ping()
        yield own


def refused(db: redis.Redis) -> list[str]:
    return [entry["object"] for entry in db.acl_log()]


def test_the_users_of_the_file_can_do_their_work(
    db: redis.Redis, server_url: str, urls: dict[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "pipelines.toml"
    config.write_text(f'[pipelines.{QUEUE}]\ntask = "constant"\n')
    with (
        worker(tmp_path, urls["pipeq-worker"], "--config", config, lease_s=2, sweep_s=0.5) as process,
        Client(urls["pipeq-producer"]) as client,
        Client(urls["pipeq-operator"]) as operator,
        Client(urls["pipeq-maintainer"]) as maintainer,
    ):
        process.wait_ready(operator, QUEUE)
        assert maintainer.keep_events(100_000) == 100_000
        ids = client.submit_many(QUEUE, range(20), priority=0)
        assert [client.result(task, timeout_s=120) for task in ids] == ["constant"] * 20
        assert client.result(client.submit(QUEUE, 1, delay_s=0.5), timeout_s=120) == "constant"
        rows = client.jobs.submit(QUEUE, [1, 2, ["a list"]])
        assert client.jobs.wait(rows, 120).failed == 1
        assert [one.get("result") for one in client.jobs.results(rows)] == ["constant", "constant", None]
        assert client.jobs.cancel(client.jobs.submit(QUEUE, [1], params={"seconds": 5})).state == "cancelled"
        late = client.jobs.submit(QUEUE, [1, 2], params={"seconds": 5})
        assert maintainer.cancel(f"{late}-0").state is State.CANCELLED
        assert operator.jobs.status(late).codes == {"cancelled": 2}
        assert maintainer.jobs.cancel(client.jobs.submit(QUEUE, [1], params={"seconds": 5})).state == "cancelled"
        assert len(operator.jobs.list()) == 4
        assert client.status(ids[0]).state is State.SUCCEEDED
        for _ in range(2):
            assert client.submit(QUEUE, 1, delay_s=3600, task_id="own") == "own"
        assert client.cancel("own").state is State.CANCELLED
        # While the record of an ended task lives, its id cannot be reused.
        assert client.result(client.submit(QUEUE, 1, task_id="mine"), timeout_s=120) == "constant"
        assert client.submit(QUEUE, 1, task_id="mine") == "mine"
        with pytest.raises(PipeqError, match="'mine' belongs to a task with other inputs"):
            client.submit(QUEUE, 2, task_id="mine")
        assert client.submit(QUEUE, 1, max_backlog=1000)
        one, two = client.submit_many(QUEUE, [1, 2], idempotency_keys=["k", "l"], priority=0)
        assert client.submit_many(QUEUE, [2, 1, 3], idempotency_keys=["l", "k", None], priority=0)[:2] == [two, one]
        for priority in range(10):
            assert client.result(client.submit(QUEUE, 1, priority=priority), timeout_s=120) == "constant"
        with pytest.raises(PipeqError, match="unknown_pipeline"):
            client.submit("another", 1)
        broken = client.submit(QUEUE, 1, params={"nonsense": 2})
        assert client.wait(broken, timeout_s=120).state is State.FAILED
        (queue,) = operator.queues()
        assert (queue.workers, queue.waiting, queue.dead) == (1, 1, 1)
        assert [letter.task_id for letter in operator.dead()] == [broken]
        assert [one.refused for one in maintainer.dead().retry()] == [None]
        assert client.wait(broken, timeout_s=120).attempts == 2
        assert [one.refused for one in maintainer.dead().drop()] == [None]
        assert maintainer.purge(QUEUE) == 1  # the one that was cancelled
        later = client.submit(QUEUE, 1, delay_s=3600)
        assert maintainer.purge(QUEUE) == 1
        assert maintainer.cancel(later).state is State.CANCELLED
        later = client.submit(QUEUE, 1, delay_s=3600)
        assert [(one.id, one.state) for one in maintainer.cancel_pipeline(QUEUE)] == [(later, State.CANCELLED)]
        found = list(operator.events("0", timeout_s=0))
        assert {(one.task_id, one.state) for one in found} >= {
            *((task, state) for task in ids for state in (State.QUEUED, State.RUNNING, State.SUCCEEDED)),
            *(("own", state) for state in (State.QUEUED, State.CANCELLED)),
            *((broken, state) for state in (State.QUEUED, State.FAILED)),
            (later, State.CANCELLED),
        }
        assert [one.state for one in found if one.task_id == broken].count(State.QUEUED) == 2
        with pytest.raises(PipeqError, match="does not let this user do that"):
            next(client.events("0"))
        db.acl_log_reset()
        maintainer.forget(QUEUE, force=True)
        process.wait_ready(operator, QUEUE)
        # A stock Celery producer has rights of its own here, to test that the worker's rights are enough for a chord.
        app = Celery(broker=server_url, backend=server_url)
        one = app.signature("pipeq.infer", kwargs={"pipeline": QUEUE, "inputs": 1}, queue=QUEUE, immutable=True)
        joined = chord([one, one])(one)
        assert joined.get(timeout=120) == "constant"
        assert app.control.inspect(timeout=10, limit=1).ping()
        assert refused(db) == []
    assert process.process.returncode == 0
    assert "NOPERM" not in process.text()
    with redis.Redis.from_url(urls["pipeq-worker"]) as own:
        for command in (("FLUSHALL",), ("GET", "somebody-else")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                own.execute_command(*command)


# -- what a producer may not ------------------------------------------------------------------------------------------

#: Commands without keys that a producer may run: about its connection, transactions, channels ...
ANYWHERE = {"auth", "hello", "ping", "quit", "reset", "select", "multi", "exec", "discard", "unwatch", "unsubscribe"}
#: ... and those of CLIENT that are about its own connection. Not TRACKING, which would reveal other clients' keys.
OF_CLIENT = {
    "id", "info", "help", "getname", "setname", "setinfo", "reply", "caching", "getredir", "trackinginfo", "no-touch",
    "capa", "import-source",
}  # fmt: skip
#: Allowed on channels of records only.
ON_CHANNELS = {"subscribe", "publish"}
RECORD = keys.record_key("5e7a2ccf-cc38-4d62-a716-5fe15bae5706")
ONCE = keys.once_key("invoices/17")
JOB, OUTCOMES, CURSOR = job.job_key("nightly"), job.outcomes_key("nightly"), job.cursor_key("nightly")
DONE, CLAIM = job.done_key("nightly"), job.claim_key("nightly")
OF_JOB = {JOB, OUTCOMES, job.open_key("nightly")}
#: Commands with keys, and the keys that a producer may name in each.
ON_KEYS = {
    "set": {RECORD, ONCE, CURSOR, CLAIM},
    "get": {RECORD, ONCE, keys.EVENTS_MAX, CURSOR, CLAIM},
    "mget": {RECORD, ONCE, keys.EVENTS_MAX},
    "exists": {RECORD, ONCE, keys.EVENTS_MAX},
    "watch": {RECORD, ONCE, keys.EVENTS_MAX, CURSOR} | OF_JOB,
    "xadd": {keys.EVENTS},
    "lpush": set(keys.list_keys(QUEUE)),
    "zadd": {keys.waiting_key(QUEUE), job.JOBS},
    "llen": set(keys.list_keys(QUEUE)),
    "zcard": {keys.fair_key(name) for name in keys.list_keys(QUEUE)},
    "hexists": {keys.PIPELINES},
    "hgetall": {keys.PIPELINES} | OF_JOB,
    "zcount": {keys.workers_key(QUEUE), keys.loading_key(QUEUE), keys.workers_key("another")},
    "hmget": {keys.RUNNING} | OF_JOB,
    # What a job's producer writes, and reads again when it is started again.
    **dict.fromkeys(("hsetnx", "hset", "hincrby", "hkeys", "hdel"), OF_JOB),
    "expire": {*OF_JOB, DONE},
    "rpush": {DONE},
    "lrange": {DONE},
    "sadd": {job.OPEN, job.FINAL},
    "srem": {job.OPEN, job.FINAL},
    "zremrangebyscore": {job.JOBS},
    "zrevrange": {job.JOBS},
}
#: Every kind of key, of ours and of Celery.
KEYS = [
    RECORD,
    ONCE,
    *OF_JOB,
    CURSOR,
    DONE,
    CLAIM,
    job.JOBS,
    job.OPEN,
    job.FINAL,
    *keys.list_keys(QUEUE),
    *keys.list_keys("another"),
    QUEUE + "-2",
    keys.waiting_key(QUEUE),
    keys.waiting_key("another"),
    keys.dead_letter_key(QUEUE),
    keys.workers_key(QUEUE),
    keys.workers_key("another"),
    keys.loading_key(QUEUE),
    keys.worker_key("w1"),
    keys.PIPELINES,
    keys.RUNNING,
    keys.UNACKED,
    keys.LEASES,
    keys.SIGNING_KEY,
    keys.EVENTS,
    keys.EVENTS_MAX,
    "unacked",
    "_kombu.binding.celery",
    "celery-taskset-meta-1",
]


def commands(db: redis.Redis) -> dict[str, int]:
    """Every command of the server, subcommands such as ``client|list`` included, with its least number of words."""
    connection = db.connection_pool.get_connection()
    try:
        connection.send_command("COMMAND")
        found: dict[str, int] = {}
        for name, arity, *rest in connection.read_response():
            for inner, inner_arity, *_ in (rest[-1] if len(rest) > 7 else []) or [(name, arity)]:
                found[inner] = abs(inner_arity)
        return found
    finally:
        db.connection_pool.release(connection)


def answer(db: redis.Redis, *command: Any, user: str = "pipeq-producer") -> str:
    try:
        return str(db.execute_command("ACL", "DRYRUN", user, *command))
    except redis.ResponseError as error:
        return str(error)


def test_a_producer_may_run_these_commands_and_no_other(db: redis.Redis, urls: dict[str, str]) -> None:
    allowed = set()
    for name, words in commands(db).items():
        command = name.split("|")
        said = answer(db, *command, *["x"] * (words - len(command)))
        if "no permissions to run" not in said:
            allowed.add(name)
    # A newer server has all of these, an older one some.
    own = {f"client|{name}" for name in OF_CLIENT}
    assert allowed - own == ANYWHERE | ON_CHANNELS | set(ON_KEYS)
    assert allowed & own >= {"client|id", "client|setname"}


def test_a_producer_may_name_these_keys_and_no_other(db: redis.Redis, urls: dict[str, str]) -> None:
    words = {"set": [1], "lpush": [1], "zadd": [1, "x"], "hexists": ["x"], "zcount": [0, 1], "hmget": ["x"]}
    words["xadd"] = ["*", "x", "y"]
    words |= {"hsetnx": ["x", "y"], "hset": ["x", "y"], "hincrby": ["x", 1], "expire": [1], "hdel": ["x"]}
    words |= {"sadd": ["x"], "srem": ["x"], "rpush": ["x"], "lrange": [0, 1]}
    words |= {"zremrangebyscore": [0, 1], "zrevrange": [0, 1]}
    for command, allowed in ON_KEYS.items():
        for key in KEYS:
            said = answer(db, command, key, *words.get(command, []))
            assert (said == "OK") is (key in allowed), (command, key, said)


#: Keys that an operator may read; not the key for signatures, and not the messages that workers hold.
OPERATOR = {
    RECORD,
    *keys.list_keys(QUEUE),
    QUEUE + "-2",
    *(
        key(name)
        for key in (keys.waiting_key, keys.dead_letter_key, keys.workers_key, keys.loading_key)
        for name in (QUEUE, "another")
    ),
    keys.worker_key("w1"),
    keys.PIPELINES,
    keys.RUNNING,
    keys.EVENTS,
    keys.EVENTS_MAX,
    JOB,
    OUTCOMES,
    DONE,
    job.JOBS,
}


def test_only_workers_reach_the_signing_key(db: redis.Redis, urls: dict[str, str]) -> None:
    """A client that can read this key can forge references to results, and read the store through them."""
    db.set(keys.SIGNING_KEY, "secret")
    for user, url in urls.items():
        with redis.Redis.from_url(url, decode_responses=True) as own:
            if user == "pipeq-worker":
                assert own.get(keys.SIGNING_KEY) == "secret"
                continue
            for command in (
                ("GET", keys.SIGNING_KEY), ("MGET", keys.PIPELINES, keys.SIGNING_KEY),
                ("GETRANGE", keys.SIGNING_KEY, 0, -1), ("STRLEN", keys.SIGNING_KEY),
                ("GETBIT", keys.SIGNING_KEY, 0), ("DUMP", keys.SIGNING_KEY), ("LCS", keys.SIGNING_KEY, RECORD),
                ("COPY", keys.SIGNING_KEY, RECORD), ("SORT_RO", keys.SIGNING_KEY),
                ("SORT_RO", keys.PIPELINES, "BY", "nosort", "GET", keys.SIGNING_KEY),
                ("SET", keys.SIGNING_KEY, "x"), ("GETEX", keys.SIGNING_KEY), ("GETDEL", keys.SIGNING_KEY),
            ):  # fmt: skip
                with pytest.raises(redis.exceptions.NoPermissionError):
                    own.execute_command(*command)


#: Keys that a maintainer may write: those of queues and tasks.
MAINTAINER = (OPERATOR - {keys.worker_key("w1")}) | OF_JOB | {CURSOR, CLAIM, job.OPEN, job.FINAL}


def test_a_maintainer_may_write_these_keys_and_no_other(db: redis.Redis, urls: dict[str, str]) -> None:
    readable = OPERATOR | MAINTAINER | {keys.UNACKED}  # to find the tasks of a pipeline that workers hold
    for key in {*KEYS, *OPERATOR}:
        assert (answer(db, "type", key, user="pipeq-maintainer") == "OK") is (key in readable), key
        said = answer(db, "del", key, user="pipeq-maintainer")
        assert (said == "OK") is (key in MAINTAINER), (key, said)
    for command in "flushall keys config|get client|kill function|load script|flush zadd".split():
        said = answer(db, *command.split("|"), "*", "*", "*", user="pipeq-maintainer")
        assert "no permissions" in said or "wrong number" in said, (command, said)


def test_an_operator_changes_nothing(urls: dict[str, str], db: redis.Redis) -> None:
    db.lpush(keys.dead_letter_key(QUEUE), "x")
    db.hset(keys.PIPELINES, QUEUE, "{}")
    with Client(urls["pipeq-operator"]) as operator:
        for call in (
            lambda: operator.dead(QUEUE).drop(),
            lambda: operator.purge(QUEUE) or operator.forget(QUEUE, force=True),
        ):
            with pytest.raises(PipeqError, match="does not let this user do that"):
                call()
    assert db.llen(keys.dead_letter_key(QUEUE)) == 1


def test_an_operator_may_read_these_keys_and_no_other(db: redis.Redis, urls: dict[str, str]) -> None:
    for key in {*KEYS, *OPERATOR}:
        said = answer(db, "type", key, user="pipeq-operator")
        assert (said == "OK") is (key in OPERATOR), (key, said)


def test_what_was_possible_once_is_refused_to_a_real_producer(producer: redis.Redis, db: redis.Redis) -> None:
    db.hset(keys.PIPELINES, QUEUE, "{}")
    db.lpush(QUEUE, "somebody's message")
    forbidden: list[tuple[Any, ...]] = [
        ("SCAN", 0), ("KEYS", "*"), ("RANDOMKEY",), ("DBSIZE",),
        ("DEL", keys.PIPELINES), ("SET", keys.PIPELINES, "x"), ("HSET", keys.PIPELINES, "x", "y"),
        ("HGETALL", keys.UNACKED), ("HGETALL", keys.RUNNING), ("HSET", keys.RUNNING, "x", "y"),
        ("LRANGE", QUEUE, 0, -1), ("LINDEX", QUEUE, 0), ("RPOP", QUEUE), ("BRPOP", QUEUE, 1), ("DEL", QUEUE),
        ("LMOVE", QUEUE, QUEUE, "LEFT", "RIGHT"), ("LPUSH", "another", "x"), ("RPUSH", QUEUE, "x"),
        ("LRANGE", keys.dead_letter_key(QUEUE), 0, -1), ("LPUSH", keys.dead_letter_key(QUEUE), "x"),
        ("ZRANGE", keys.waiting_key(QUEUE), 0, -1), ("ZREM", keys.waiting_key(QUEUE), "x"),
        ("ZADD", keys.waiting_key("another"), 1, "x"), ("ZADD", keys.workers_key(QUEUE), 1, "x"),
        ("ZADD", keys.LEASES, 1, "x"), ("GET", keys.worker_key("w1")), ("DEL", RECORD),
        ("GET", keys.SIGNING_KEY), ("SET", keys.SIGNING_KEY, "x"),
        ("EVAL", "while true do end", 0), ("EVAL_RO", "while true do end", 0), ("EVALSHA", "0" * 40, 0),
        ("SCRIPT", "LOAD", "return 1"), ("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"),
        ("FUNCTION", "LOAD", "#!lua name=a\nredis.register_function('a', function() end)"), ("FUNCTION", "FLUSH"),
        ("FCALL", "a", 0),
        ("PSUBSCRIBE", "*"), ("PSUBSCRIBE", "celery-task-meta-*"), ("PUBSUB", "CHANNELS"), ("SUBSCRIBE", "another"),
        ("PUBLISH", "/0.celery.pidbox", "x"), ("CLIENT", "TRACKING", "ON", "BCAST"), ("CLIENT", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "PAUSE", 1000), ("MONITOR",), ("SLOWLOG", "GET"),
        ("INFO",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("FLUSHALL",), ("FLUSHDB",), ("SWAPDB", 0, 1),
        ("SHUTDOWN",),
    ]  # fmt: skip
    for command in forbidden:
        with pytest.raises(redis.exceptions.NoPermissionError):
            producer.execute_command(*command)
    assert db.lrange(QUEUE, 0, -1) == ["somebody's message"]
    assert db.hgetall(keys.PIPELINES) == {QUEUE: "{}"}


def test_a_transaction_with_one_forbidden_command_does_nothing(producer: redis.Redis, db: redis.Redis) -> None:
    with producer.pipeline() as pipe, pytest.raises(redis.exceptions.NoPermissionError):
        pipe.lpush(QUEUE, "x").delete(keys.PIPELINES).execute()
    assert db.llen(QUEUE) == 0


def test_what_remains_needs_an_id(producer: redis.Redis, db: redis.Redis, urls: dict[str, str]) -> None:
    """A client that knows an id may read and overwrite its record, but no command reveals other ids to a producer."""
    db.hset(keys.PIPELINES, QUEUE, "{}")
    db.zadd(keys.workers_key(QUEUE), {"w1": time.time()})
    with Client(urls["pipeq-producer"]) as client, Client(urls["pipeq-producer"]) as other:
        task = client.submit(QUEUE, "x")
        assert other.status(task).state is State.QUEUED
        assert other.cancel(task).state is State.CANCELLED
        with pytest.raises(PipeqError, match=r"does not let this user do that .*redis-users\.acl"):
            other.queues()
