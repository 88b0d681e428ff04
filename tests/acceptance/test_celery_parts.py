"""Transport, pool and backend work as parts of any Celery app, together with stock parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group
from pipeq import Client, State
from pipeq.demo import embedded

from tests.waiting import promptly, until
from tests.worker_process import WorkerProcess, worker

TASKS = """
import time
from celery import shared_task

@shared_task
def add(*numbers):
    return sum(numbers[0]) if len(numbers) == 1 else sum(numbers)

@shared_task
def fail():
    raise ValueError("on purpose")

@shared_task(bind=True, max_retries=2)
def once_more(self):
    if self.request.retries < 1:
        raise self.retry(countdown=0.1)
    return self.request.retries

@shared_task
def nap(seconds):
    time.sleep(seconds)
    return seconds

@shared_task
def shout(text):
    return text.upper()
"""

APP = """
from celery import Celery
import pipeq_worker
app = Celery("somebody", include=["somebodys_tasks"])
app.conf.update(
    broker_url="{transport}{url}", result_backend="{backend}{url}", worker_pool="{pool}", task_acks_late=True,
    worker_concurrency=4, broker_connection_retry_on_startup=True, worker_consumer="{consumer}",
)
"""

#: A module of a user who listens to Celery's signals.
LISTENERS = """
import redis
from celery import signals

db = redis.Redis.from_url("{url}")

@signals.task_prerun.connect
def prerun(**_):
    db.rpush("heard", "task_prerun")

@signals.task_success.connect
def success(**_):
    db.rpush("heard", "task_success")

@signals.task_postrun.connect
def postrun(**_):
    db.rpush("heard", "task_postrun")
"""

OURS = {
    "transport": "pipeq+",
    "backend": "pipeq_worker:Backend+",
    "pool": "pipeq_worker:TaskPool",
    "consumer": "pipeq_worker:Consumer",
}
STOCK = {"transport": "", "backend": "", "pool": "threads", "consumer": "celery.worker.consumer:Consumer"}


@pytest.fixture
def redis_url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url


@contextmanager
def somebodys_worker(folder: Path, url: str, parts: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "somebodys_tasks.py").write_text(TASKS)
    (folder / "somebodys_app.py").write_text(APP.format(url=url, **parts))
    command = [sys.executable, "-m", "celery", "-A", "somebodys_app", "worker", "-l", "WARNING"]
    log = (folder / "worker.log").open("wb")
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()


def named(app: Celery, name: str, *args: Any, **options: Any) -> Any:
    return app.signature(f"somebodys_tasks.{name}", args=args, **options)


@pytest.mark.parametrize(
    "ours",
    [
        *(pytest.param((one,), marks=pytest.mark.long) for one in ("transport", "backend", "pool")),
        tuple(OURS),
    ],
    ids=lambda names: "+".join(names),
)
def test_each_part_works_beside_stock_ones(redis_url: str, tmp_path: Path, ours: tuple[str, ...]) -> None:
    parts = {**STOCK, **{name: OURS[name] for name in ours}}
    app = Celery("producer", broker=redis_url, backend=redis_url)
    with somebodys_worker(tmp_path, redis_url, parts) as process:
        many = group(named(app, "add", at, 1) for at in range(50)).apply_async()
        # The worker is just starting.
        assert many.get(timeout=120) == [at + 1 for at in range(50)], (tmp_path / "worker.log").read_text()
        assert (
            chord([named(app, "add", at, 1) for at in range(5)], named(app, "add")).apply_async().get(timeout=30) == 15
        )
        assert chain(named(app, "add", 1, 1), named(app, "add", 1)).apply_async().get(timeout=30) == 3
        assert named(app, "once_more").apply_async().get(timeout=30) == 1
        with pytest.raises(ValueError, match="on purpose"):
            named(app, "fail").apply_async().get(timeout=30)
        assert named(app, "add", 2, 2).apply_async(countdown=2).get(timeout=30) == 4
        left = [named(app, "nap", 0.2).apply_async() for _ in range(40)]
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    with somebodys_worker(tmp_path, redis_url, parts):
        assert [one.get(timeout=60) for one in left] == [0.2] * 40
    with redis.Redis.from_url(redis_url) as db:
        assert db.hlen("pipeq:unacked") == db.hlen("unacked") == db.llen("celery") == 0


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerProcess, Client]]:
    """A worker with a pipeline and a user's own Celery tasks."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "somebodys_tasks.py").write_text(TASKS)
    with (
        embedded.valkey() as url,
        worker(folder, url, "constant", "--include", "somebodys_tasks", PYTHONPATH=importable(folder)) as process,
        Client(url) as client,
    ):
        process.wait_ready(client, "constant")
        yield process, client


def importable(folder: Path) -> str:
    """A ``PYTHONPATH`` with this folder."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_everything_a_stock_producer_may_ask_for(mixed: tuple[WorkerProcess, Client]) -> None:
    process, client = mixed
    app = Celery("producer", broker=client.redis_url, backend=client.redis_url)

    def infer(seconds: float = 0, **options: Any) -> Any:
        kwargs = {"pipeline": "constant", "inputs": 1, "params": {"seconds": seconds}}
        return app.signature("pipeq.infer", kwargs=kwargs, queue="constant", immutable=True, **options)

    # Post-processing in a chain, on the same machine.
    assert chain(infer(), named(app, "shout")).apply_async().get(timeout=30) == "CONSTANT"
    # A task without inputs takes the result of the previous task in a chain.
    second = app.signature("pipeq.infer", kwargs={"pipeline": "constant"}, queue="constant")
    assert chain(named(app, "shout", "x"), second).apply_async().get(timeout=30) == "constant"
    after = named(app, "shout", "x", immutable=True)
    assert chord([infer()] * 3, after).apply_async().get(timeout=30) == "X"
    linked = infer().apply_async(link=named(app, "shout", task_id="linked"))
    assert linked.get(timeout=30) == "constant"
    assert app.AsyncResult("linked").get(timeout=30) == "CONSTANT"
    broken = app.signature("pipeq.infer", kwargs={"pipeline": "constant"}, queue="constant")
    broken.apply_async(link_error=named(app, "shout", "sorry", task_id="sorry", immutable=True))
    assert app.AsyncResult("sorry").get(timeout=30) == "SORRY"
    # An ordinary task, too, ends in time.
    assert named(app, "shout", "later").apply_async(countdown=2).get(timeout=30) == "LATER"
    for when in (lambda: {"countdown": 2}, lambda: {"eta": datetime.now(UTC) + timedelta(seconds=2)}):
        later = infer().apply_async(**when())
        took_s, _ = promptly(later.ready, 5)
        assert took_s > 1.5
        assert later.get(timeout=30) == "constant"
    assert client.wait(infer().apply_async(expires=-1).id, 30).state is State.EXPIRED
    assert client.wait(infer().apply_async(countdown=1, expires=0.5).id, 30).state is State.EXPIRED
    revoked = infer().apply_async(countdown=2)
    app.control.revoke(revoked.id)
    assert client.wait(revoked.id, 30).state is State.CANCELLED
    # Through Celery's remote control.
    slow = infer(4.0).apply_async()
    queued = [infer(0.001 * (at + 1)).apply_async() for at in range(3)]
    inspect = app.control.inspect(timeout=10, limit=1)

    def ids(answer: dict[str, Any]) -> set[str]:
        return {request["id"] for request in next(iter(answer.values()))}

    deadline = time.monotonic() + 3
    while (found := (ids(inspect.active()), ids(inspect.reserved()))) != ({slow.id}, {one.id for one in queued}):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    assert next(iter(inspect.stats().values()))["pool"]["processes"] == [process.process.pid]
    # A reserved task can still be revoked.
    app.control.revoke(queued[0].id)
    assert slow.get(timeout=30) == "constant"
    assert client.wait(queued[0].id, 30).state is State.CANCELLED
    assert [one.get(timeout=30) for one in queued[1:]] == ["constant"] * 2


def test_a_task_that_ends_without_the_tracer_leaves_what_the_tracer_would(mixed: tuple[WorkerProcess, Client]) -> None:
    _, client = mixed
    app = Celery("producer", broker=client.redis_url, backend=client.redis_url)
    inspect = app.control.inspect(timeout=10, limit=1)
    ran = next(iter(inspect.stats().values()))["total"].get("pipeq.infer", 0)
    kwargs = {"pipeline": "constant", "inputs": 1}
    plain, traced = (
        app.send_task("pipeq.infer", kwargs=kwargs, queue="constant", group_id="g", parent_id="p", root_id="r", **more)
        for more in ({}, {"link": named(app, "shout", "x", immutable=True)})
    )
    found = []
    for one in (plain, traced):
        assert one.get(timeout=30) == "constant"
        assert (one.state, one.traceback, one.date_done.tzinfo is not None) == ("SUCCESS", None, True)
        with redis.Redis.from_url(client.redis_url) as db:
            found.append(json.loads(db.get(f"celery-task-meta-{one.id}")))
    mine, celerys = found
    assert len(celerys.pop("children")) == 1
    assert mine.pop("children") == []
    for name in ("started_at", "finished_at", "timing_ms"):
        assert type(mine["pipeq"].pop(name)) is type(celerys["pipeq"].pop(name))
    for record in found:
        assert datetime.fromisoformat(record.pop("date_done")).utcoffset() == timedelta(0)
        assert record.pop("task_id") in (plain.id, traced.id)
    assert mine == celerys
    # Nothing of either is left in the worker, once the linked task has run, too.
    deadline = time.monotonic() + 30
    while (left := [next(iter(one.values())) for one in (inspect.active(), inspect.reserved())]) != [[], []]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert next(iter(inspect.stats().values()))["total"]["pipeq.infer"] == ran + 2


def test_receivers_of_signals_are_called(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "listeners.py").write_text(LISTENERS.format(url=redis_url))
    with (
        worker(tmp_path, redis_url, "constant", "--include", "listeners", PYTHONPATH=importable(tmp_path)) as process,
        Client(redis_url) as client,
        redis.Redis.from_url(redis_url, decode_responses=True) as db,
    ):
        process.wait_ready(client, "constant")
        tasks = client.submit_many("constant", range(3), priority=0)
        assert [client.wait(one, 30).result for one in tasks] == ["constant"] * 3
        while db.llen("heard") < 9:
            time.sleep(0.05)
        assert sorted(db.lrange("heard", 0, -1)) == sorted(["task_prerun", "task_success", "task_postrun"] * 3)


def test_events_as_flower_reads_them(mixed: tuple[WorkerProcess, Client]) -> None:
    _, client = mixed
    app = Celery("producer", broker=client.redis_url, backend=client.redis_url)
    seen: dict[str, set[str]] = {}
    succeeded: list[dict[str, Any]] = []

    def note(event: dict[str, Any]) -> None:
        seen.setdefault(event.get("uuid", event.get("hostname", "")), set()).add(event["type"])
        if event["type"] == "task-succeeded":
            succeeded.append(event)

    def send() -> None:
        # This receiver hears the worker, and the worker says that it tells of tasks from now on.
        until(lambda: seen)
        assert app.control.enable_events(reply=True, timeout=10, limit=1)
        kwargs = {"pipeline": "constant", "inputs": 1}
        app.send_task("pipeq.infer", kwargs=kwargs, queue="constant", task_id="watched")

    thread = threading.Thread(target=send)
    thread.start()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": note})
        for _ in receiver.itercapture(limit=None, timeout=15, wakeup=True):
            if {"task-received", "task-started", "task-succeeded"} <= seen.get("watched", set()):
                break
    thread.join()
    assert any("worker-heartbeat" in kinds for kinds in seen.values())
    assert seen["watched"] >= {"task-received", "task-started", "task-succeeded"}
    assert [(one["uuid"], one["result"]) for one in succeeded] == [("watched", "'constant'")]
    assert 0 <= succeeded[0]["runtime"] < 10


def test_control_shutdown(mixed: tuple[WorkerProcess, Client]) -> None:
    """The last one, because the worker that the tests above share ends here."""
    process, client = mixed
    app = Celery("producer", broker=client.redis_url, backend=client.redis_url)
    app.control.shutdown()
    assert process.process.wait(30) == 0
