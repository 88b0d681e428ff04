"""Two workers serve one name with other models: both say so, `pipeq queues` does, and a strict one does not start."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from pipeq import Client
from pipeq.cli import main
from pipeq.contract import keys
from pipeq.contract.errors import SettingsError
from pipeq.contract.heartbeat import Beat
from pipeq.contract.status import ModelInfo
from pipeq.demo import embedded
from pipeq_worker.children.served import Served
from pipeq_worker.host import others
from pipeq_worker.models.pipeline import BatchLimits

from tests.worker_process import WorkerProcess, worker

NAME = "sentiment"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url


@pytest.fixture
def db(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield client


@pytest.fixture
def client(db: redis.Redis, url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def config(folder: Path, name: str, **settings: Any) -> Path:
    """A file of settings with one pipeline."""
    path = folder / f"{name}.toml"
    lines = [f"{key} = {value}" for key, value in settings.items()]
    path.write_text("\n".join([f"[pipelines.{NAME}]", *lines]))
    return path


def wait_for(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 200
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def name_of(process: WorkerProcess, db: redis.Redis) -> str:
    beats = {name: Beat.read(db.get(name)) for name in db.scan_iter(keys.worker_key("*"))}
    return next(name for name, beat in beats.items() if beat.pid == process.process.pid).decode()[
        len("pipeq:worker:") :
    ]


def queues(url: str) -> str:
    found = CliRunner().invoke(main, ["queues", "--redis-url", url])
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.fixture(scope="module")
def first(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A worker that serves the name all the time, until the last of its tests ends it."""
    folder = tmp_path_factory.mktemp("first")
    with (
        Client(url) as client,
        worker(folder, url, "--config", config(folder, "old", task='"constant"')) as process,
    ):
        process.wait_ready(client, NAME)
        yield process


@pytest.fixture
def beside(first: WorkerProcess, url: str) -> Iterator[redis.Redis]:
    """The database as it is with that worker."""
    with redis.Redis.from_url(url) as db:
        yield db


def test_both_workers_and_the_queues_say_it_until_one_is_gone(
    first: WorkerProcess, beside: redis.Redis, url: str, tmp_path: Path
) -> None:
    old = config(tmp_path, "old", task='"constant"')
    new = config(tmp_path, "new", task='"constant"', params="{ seconds = 0.01 }")
    with Client(url) as client, worker(tmp_path, url, "--config", old) as like:
        wait_for(lambda: client.queue(NAME).workers == 2 or like.process.poll() is not None, "the second worker")
        assert like.process.poll() is None, like.text()
        assert client.queue(NAME).unlike == {}
        with worker(tmp_path, url, "--config", new) as second:
            wait_for(lambda: client.queue(NAME).workers == 3, "the third worker")
            its, likes, seconds = (name_of(one, beside) for one in (first, like, second))
            says = "params.seconds 0.01 (not unset)"
            for one, other, how in ((first, seconds, says), (like, seconds, says), (second, its, "(not 0.01)")):
                line = f"{NAME} by {other}"
                wait_for(lambda one=one, line=line: line in one.text(), line)
                assert how in one.text()
            assert set(client.queue(NAME).unlike) == {seconds}
            assert f"{NAME}: {seconds} serves another model: {says}" in queues(url)
        assert f"{NAME} by {likes}" not in first.text()
        wait_for(lambda: "no longer served otherwise" in first.text(), "that it is over")
        assert client.queue(NAME).unlike == {}
        assert first.text().count("is served with another model") == 1


def test_a_strict_worker_refuses_to_start_beside_another_model(
    first: WorkerProcess, beside: redis.Redis, url: str, tmp_path: Path
) -> None:
    other = config(tmp_path, "other", task='"constant"', params="{ seconds = 0.002 }")
    with Client(url) as client:
        wait_for(lambda: client.queue(NAME).workers == 1, "that the others are gone")
        with worker(tmp_path, url, "--config", other, strict=True) as second:
            assert second.process.wait(200) == 2, second.text()
        assert f"pipeline {NAME!r}: the worker {name_of(first, beside)} serves it" in second.text()
        assert "with params.seconds 0.002 (not unset): give the pipeline another name" in second.text()
        assert "(`strict = true` here)" in second.text()
        assert client.queue(NAME).workers == 1
        assert client.queue(NAME).loading == 0
        # One that is alike starts; and while it runs nobody joins it, whatever the newcomer's settings say.
        old = config(tmp_path, "old", task='"constant"')
        with worker(tmp_path, url, "--config", old, strict=True) as like:
            wait_for(lambda: client.queue(NAME).workers == 2 or like.process.poll() is not None, "the second worker")
            with worker(tmp_path, url, "--config", other) as third:
                assert third.process.wait(200) == 2, third.text()
                assert "(`strict = true` there)" in third.text()
            assert like.process.poll() is None, like.text()
        assert client.queue(NAME).workers == 1


def test_a_worker_that_died_does_not_count(first: WorkerProcess, beside: redis.Redis, url: str, tmp_path: Path) -> None:
    first.process.kill()
    first.process.wait()
    # Its heartbeat lapses by itself.
    wait_for(lambda: not list(beside.scan_iter(keys.worker_key("*"))), "that it lapses")
    other = config(tmp_path, "other", task='"constant"', params="{ seconds = 0.002 }")
    with Client(url) as client, worker(tmp_path, url, "--config", other, strict=True) as second:
        wait_for(lambda: client.queue(NAME).workers == 1 or second.process.poll() is not None, "the other")
        assert second.process.poll() is None, second.text()


def test_of_two_strict_workers_that_start_together_one_serves(client: Client, url: str, tmp_path: Path) -> None:
    ones = [config(tmp_path, f"w{at}", task='"constant"', params=f"{{ seconds = 0.00{at} }}") for at in (1, 2)]
    with (
        worker(tmp_path, url, "--config", ones[0], strict=True) as first,
        worker(tmp_path, url, "--config", ones[1], strict=True) as second,
    ):
        both = (first.process, second.process)
        wait_for(lambda: any(one.poll() is not None for one in both), "that one ends")
        wait_for(
            lambda: client.queue(NAME).workers == 1 if NAME in client.pipelines() else False, "that the other serves"
        )
        assert sorted(one.poll() or 0 for one in both) == [0, 2]
        assert client.result(client.submit(NAME, "x"), timeout_s=30) == "constant"


def served(value: str) -> dict[str, Served]:
    return {NAME: Served(NAME, "constant", ModelInfo(id="x"), BatchLimits(1, 1), identity={"model": value})}


@pytest.mark.parametrize("models", [2, 3, 16])
def test_claims_race(db: redis.Redis, url: str, models: int) -> None:
    """Whatever the order: the first one stays, and nobody serves beside another model."""
    for _ in range(20):
        db.flushdb()
        barrier = threading.Barrier(16)

        def start(at: int, barrier: threading.Barrier = barrier) -> str:
            with redis.Redis.from_url(url) as own:
                own.ping()
                barrier.wait()
                try:
                    others.claim(own, f"w{at}", served(f"m{at % models}"), strict=True)
                except SettingsError as error:
                    return error.message
                return f"m{at % models}"

        with ThreadPoolExecutor(16) as threads:
            said = list(threads.map(start, range(16)))
        assert len({one for one in said if one.startswith("m")}) == 1
        assert all("the worker w" in one for one in said if not one.startswith("m"))


@pytest.mark.parametrize("strict", [0, 7, 15])
def test_one_strict_claim_is_enough(db: redis.Redis, strict: int) -> None:
    """It stands with those before it that are like it; of the others, who come later are refused."""
    for at in range(16):
        if at <= strict:
            others.claim(db, f"w{at}", served("m0"), strict=at == strict)
            continue
        with pytest.raises(SettingsError) as refused:
            others.claim(db, f"w{at}", served("m1"), strict=False)
        assert f"the worker w{strict} serves it" in refused.value.message
        assert "(`strict = true` there)" in refused.value.message


def test_keys_of_another_type_and_strangers_heartbeats_stop_nobody(db: redis.Redis) -> None:
    db.set(keys.workers_key(NAME), "x")
    db.set(keys.loading_key(NAME), "x")
    others.claim(db, "w1", served("m1"), strict=True)
    db.delete(keys.workers_key(NAME))
    db.zadd(keys.workers_key(NAME), {"w2": time.time(), "w3": time.time(), "w4": time.time()})
    db.set(keys.worker_key("w2"), "no heartbeat")
    db.set(keys.worker_key("w3"), Beat(models={"another": {"model": "m2"}}).encode())
    others.claim(db, "w1", served("m1"), strict=True)
    db.set(keys.worker_key("w4"), Beat(models={NAME: {"model": "m2"}}).encode())
    with pytest.raises(SettingsError, match="the worker w4 serves it, and this one would serve it with model m1"):
        others.claim(db, "w1", served("m1"), strict=True)
    others.claim(db, "w1", served("m1"), strict=False)
