"""A worker takes messages again after any failure of its connections, and reports while it does not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection, Consumer, Producer, Queue
from pipeq import Client, State
from pipeq.contract import keys
from pipeq.demo import embedded
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserved import Wanted

from tests.waiting import until
from tests.worker_process import WorkerProcess, worker


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url
    for leases in Leases.every():
        leases.close()


@pytest.fixture(scope="module")
def db(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        yield client


@pytest.fixture(scope="module")
def process(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A worker with two pipelines. Each test restores its state."""
    folder = tmp_path_factory.mktemp("receiving")
    (folder / "pipelines.toml").write_text('[pipelines.constant]\n[pipelines.other]\ntask = "constant"\n')
    with worker(folder, url, "--config", folder / "pipelines.toml", lease_s=3, sweep_s=1) as process:
        with Client(url) as client:
            process.wait_ready(client, "constant", "other")
            yield process
        assert process.stop() == 0, process.text()


@pytest.fixture
def log(process: WorkerProcess) -> Iterator[Callable[[], str]]:
    """The worker's output since the test began."""
    begin = len(process.text())
    yield lambda: process.text()[begin:]
    assert process.process.poll() is None, process.text()


def deaf(db: redis.Redis) -> dict[str, Any]:
    """Queue -> its entry in the worker's heartbeat."""
    (key,) = db.keys("pipeq:worker:*")
    return json.loads(db.get(key) or "{}").get("deaf", {})


def serves(url: str, pipeline: str = "constant") -> bool:
    message = {"pipeline": pipeline, "inputs": 1}
    with Celery(broker=url, backend=url) as app, Client(url) as client:
        task = app.send_task("pipeq.infer", kwargs=message, queue=pipeline).id
        return client.wait(task, timeout_s=20).state is State.SUCCEEDED


def test_its_connections_are_killed_fifty_times(url: str, db: redis.Redis) -> None:
    got: list[Any] = []
    others = tracked(db)
    with Connection(url, transport="pipeq_worker:Transport") as connection, Connection(url) as stock:
        consuming = Consumer(connection.channel(), [Queue("killed", routing_key="killed")], accept=["json"])
        consuming.register_callback(lambda body, message: (got.append(body), message.ack()))
        consuming.consume()
        for at in range(50):
            until(lambda: tracked(db) - others)
            for number in tracked(db) - others:
                db.client_kill_filter(_id=number)
            if at % 10 == 9:
                Producer(stock).publish({"at": at}, routing_key="killed")
                until(lambda at=at: drained(connection) and len(got) > at // 10, every_s=0)  # type: ignore[misc]


def drained(connection: Connection) -> bool:
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.05)
    return True


def tracked(db: redis.Redis) -> set[str]:
    """The connections for which Redis tracks keys."""
    return {one["id"] for one in db.client_list() if "t" in one["flags"]}


def test_more_threads_claim_at_once_than_a_pool_has_connections(url: str) -> None:
    with Connection(url, transport="pipeq_worker:Transport") as connection:
        leases, errors = connection.channel().leases, []
        begin = threading.Barrier(60)

        def claim() -> None:
            begin.wait()
            try:
                for _ in range(20):
                    leases.renew(["none"])
                    leases.reserve_one(Wanted("nothing", ["nothing"], 1, 100, [0]))
            except redis.RedisError as error:
                errors.append(error)

        threads = [threading.Thread(target=claim) for _ in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


@pytest.mark.parametrize("refusal", ["READONLY", "NOREPLICAS"])
def test_redis_refuses_for_some_time(process: WorkerProcess, url: str, db: redis.Redis, log: Any, refusal: str) -> None:
    def refused() -> int:
        found = db.info("errorstats").get(f"errorstat_{refusal}", {"count": 0})
        return int(found["count"])

    assert serves(url)
    before = refused()
    if refusal == "READONLY":
        # Without an owner, so that it keeps its connections.
        db.execute_command("REPLICAOF", "127.0.0.1", "1")
    else:
        db.config_set("min-replicas-to-write", 1)
    # A moment after the test before this one, it is told of only if it lasts: it may be an echo of that one's outage.
    until(lambda: refused() > before + 5 and "Redis does not serve" in log())
    db.execute_command("REPLICAOF", "NO", "ONE")
    db.config_set("min-replicas-to-write", 0)
    assert serves(url)
    assert log().count("Redis does not serve") == 1
    until(lambda: "Redis serves again" in log())


def test_keys_that_are_no_lists_stop_their_own_queues_alone(
    process: WorkerProcess, url: str, db: redis.Redis, log: Any
) -> None:
    bulk, beside = keys.list_key("constant", 9), [keys.PIPELINES, keys.waiting_key("constant")]
    for key in (bulk, *beside):
        db.delete(key)
        db.set(key, "somebody's")
    until(lambda: deaf(db).keys() == {"constant"})
    assert "WRONGTYPE" in deaf(db)["constant"]["reason"]
    assert repr(bulk) in deaf(db)["constant"]["reason"]
    assert serves(url, "other")
    # From the list whose key is one.
    assert serves(url)
    # Messages of the other queue are not delayed.
    db.zadd(keys.waiting_key("other"), {json.dumps({"list": "other", "message": "text"}): 1})
    until(lambda: not db.exists(keys.waiting_key("other")))
    db.delete(bulk, *beside)
    until(lambda: not deaf(db))
    until(lambda: db.hlen(keys.PIPELINES) == 2)
    for once in ("no messages are taken from constant: ", "messages are taken from constant again", "goes on"):
        until(lambda once=once: once in log())  # type: ignore[misc]
        assert log().count(once) == 1, log()
    until(lambda: log().count("the key pipeq:pipelines is ") == 2)


def test_keys_that_all_queues_need(process: WorkerProcess, url: str, db: redis.Redis, log: Any) -> None:
    broken = (keys.UNACKED, keys.LEASES)
    for key in broken:
        db.set(key, "somebody's")
    db.lpush("other", "a message")
    until(lambda: deaf(db).keys() == {"constant", "other"})
    db.delete(*broken)
    until(lambda: not deaf(db))
    assert serves(url)


def test_a_consumer_that_a_remote_control_cancels_is_seen(
    process: WorkerProcess, url: str, db: redis.Redis, log: Any
) -> None:
    control = Celery(broker=url).control
    until(lambda: control.inspect(timeout=1, limit=1).ping(), 120)
    control.cancel_consumer("constant")
    until(lambda: "constant" in deaf(db))
    assert "cancel_consumer" in deaf(db)["constant"]["reason"]
    until(lambda: "no messages are taken from constant" in log())
    assert serves(url, "other")
    shown = subprocess.check_output([sys.executable, "-m", "pipeq", "queues", "--redis-url", url], text=True)
    assert re.search(r"constant: pipeq-\S+ takes no messages: a remote control", shown)
    assert "other: " not in shown
    control.add_consumer("constant")
    until(lambda: not deaf(db))
    assert serves(url)


def test_a_worker_that_a_remote_control_shuts_down_is_started_again(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The supervisor restarts the worker: one that takes no messages looks like an idle one."""
    folder = tmp_path_factory.mktemp("supervised")
    with embedded.valkey() as url, Client(url) as client, worker(folder, url, "constant", "--devices", "cpu") as parent:
        parent.wait_ready(client, "constant")
        control = Celery(broker=url).control
        # A broadcast reaches only who listens already.
        until(lambda: control.inspect(timeout=1, limit=1).ping(), 120)
        control.shutdown()
        until(lambda: "ended with code 0; starting it again" in parent.text(), 120)
        assert serves(url)
        assert parent.stop() == 0
