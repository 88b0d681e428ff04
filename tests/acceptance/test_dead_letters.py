"""Real workers: what fails leaves a letter, and a retry is a new life under the old id."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import redis
from pipeq import Client, State
from pipeq.contract import keys
from pipeq.demo import embedded

from tests.worker_process import WorkerProcess, worker

CONSTANT, READS = "constant", "reads"
CONFIG = """
max_attempts = 2
retry_backoff_s = 0.05
retry_backoff_max_s = 0.1
[inputs]
allow = ["file://{folder}/"]
[pipelines.constant]
task = "constant"
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def served(url: str, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("worker")
    config = folder / "pipelines.toml"
    config.write_text(CONFIG.format(folder=folder))
    with worker(folder, url, "--config", config) as process:
        process.wait_ready(client, CONSTANT)
        yield process


@pytest.fixture
def db(url: str, served: WorkerProcess) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, decode_responses=True) as db:
        db.delete(keys.dead_letter_key(CONSTANT))
        yield db


def test_a_letter_says_what_happened(client: Client, db: redis.Redis) -> None:
    before = time.time()
    task = client.submit(CONSTANT, {"nonsense": 1}, params={"also": "nonsense"}, priority=6)
    status = client.wait(task, 30)
    assert status.state is State.FAILED
    (letter,) = client.dead(CONSTANT)
    assert (letter.task_id, letter.pipeline, letter.queue) == (task, CONSTANT, CONSTANT)
    assert status.error is not None
    assert (letter.code, letter.reason) == (status.error.code, status.error.message)
    assert (letter.inputs, letter.params) == ({"nonsense": 1}, {"also": "nonsense"})
    assert (letter.worker, letter.attempts) == (status.worker, 1)
    assert before <= (letter.failed_at or 0) <= time.time()
    assert letter.obstacle is None


def test_each_life_counts_on(client: Client, db: redis.Redis) -> None:
    task = client.submit(CONSTANT, 1, params={"nonsense": 1})
    for life in range(1, 4):
        assert client.wait(task, 30).state is State.FAILED
        (letter,) = client.dead(ids=[task])
        assert (letter.attempts, client.status(task).attempts) == (life, life)
        assert [one.refused for one in client.dead(ids=[task]).retry()] == [None]
    assert client.wait(task, 30).attempts == 4


def test_a_retry_after_the_cause_is_gone_succeeds(client: Client, db: redis.Redis) -> None:
    """The message is changed in its letter, as if the worker had been mended meanwhile."""
    task = client.submit(CONSTANT, "x", params={"nonsense": 1})
    client.wait(task, 30)
    (raw,) = db.lrange(keys.dead_letter_key(CONSTANT), 0, -1)
    db.delete(keys.dead_letter_key(CONSTANT))
    letter = json.loads(raw)
    del letter["message"]["body"][1]["params"]
    db.lpush(keys.dead_letter_key(CONSTANT), json.dumps(letter))
    assert [one.refused for one in client.dead(code="invalid_params").retry()] == [None]
    status = client.wait(task, 30)
    assert (status.state, status.result, status.attempts, status.error) == (State.SUCCEEDED, "constant", 2, None)
    assert client.dead().list() == ()
    assert not db.hexists(keys.RUNNING, task)


def test_an_expired_message_lives_again(client: Client, db: redis.Redis) -> None:
    task = client.submit(CONSTANT, "x", params={"nonsense": 1}, expires_s=3, fair_key="one", deadline_s=9)
    client.wait(task, 30)
    time.sleep(3.1)
    client.dead(ids=[task]).retry()
    status = client.wait(task, 30)
    assert status.state is State.FAILED
    assert status.error is not None
    assert status.error.code == "invalid_params"


def test_what_cannot_be_read_is_a_letter_without_a_way_back(client: Client, db: redis.Redis) -> None:
    for raw in ("this is no json", "[" * 1000, '{"headers": {"task": "pipeq.infer", "id": "odd"}, "properties": {}}'):
        db.lpush(CONSTANT, raw)
    deadline = time.monotonic() + 30
    while len(client.dead().list()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    letters = client.dead().list()
    assert {letter.code for letter in letters} == {"invalid_message"}
    assert all(letter.obstacle and letter.reason and letter.text for letter in letters)
    assert all(letter.worker for letter in letters)
    assert all(one.refused for one in client.dead().retry())
    assert all(one.refused is None for one in client.dead().drop())


def test_a_purge_and_a_worker_share_a_queue(client: Client, db: redis.Redis) -> None:
    ids = client.submit_many(CONSTANT, range(5000), priority=0)
    ids += client.submit_many(CONSTANT, range(50), delay_s=600, priority=0)
    purged = client.purge(CONSTANT)
    states = [one.state for one in client.as_completed(ids, 60)]
    assert states.count(State.CANCELLED) == purged
    assert states.count(State.SUCCEEDED) == len(ids) - purged
    assert purged >= 50


def test_a_pipeline_that_is_served_comes_back(client: Client, served: WorkerProcess) -> None:
    client.forget(CONSTANT, force=True)
    served.wait_ready(client, CONSTANT)
    assert client.submit(CONSTANT, 1)
