"""The life of tasks and workers: cancelled, retried, drained, restarted, killed."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from pipeq import Client, Ref, State, TaskStatus
from pipeq.contract import keys
from pipeq.demo import embedded

from tests import slow_worker, tiny_models
from tests.chaos.redis_server import server
from tests.ports import refusing
from tests.worker_process import WorkerProcess, worker

CONSTANT, GENERATION = "constant", "text-generation"


def test_a_cancel_survives_with_no_worker_up(redis_url: str, tmp_path: Path) -> None:
    with Client(redis_url) as client:
        ids = client.submit_many("constant", ["fox"] * 20, check=False, priority=0)
        for task in ids[::2]:
            assert client.cancel(task).state is State.CANCELLED
        expiring = client.submit("constant", "fox", expires_s=0.2, check=False)
        time.sleep(0.3)
        assert client.status(expiring).state is State.EXPIRED
        with worker(tmp_path, redis_url, "constant"):
            states = [client.wait(task, timeout_s=120).state for task in ids]
            assert states == [State.CANCELLED, State.SUCCEEDED] * 10
            assert client.wait(expiring, timeout_s=30).state is State.EXPIRED
            # Cancelled messages are gone, too.
            deadline = time.monotonic() + 10
            raw = redis.Redis.from_url(redis_url)
            while raw.hlen("pipeq:unacked") or raw.llen("constant"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert raw.hlen(keys.RUNNING) == 0


def test_an_unreachable_store_is_retried_until_it_is_back(redis_url: str, tmp_path: Path) -> None:
    env = {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
        "retry_backoff_s": 0.2,
        "max_attempts": 3,
        "inputs__allow": "s3://inputs/",
    }
    with (
        refusing() as port,
        slow_worker.serving(tmp_path, redis_url, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", **env) as process,
        Client(redis_url) as client,
    ):
        process.wait_ready(client, slow_worker.PIPELINE)
        client.keep_events(1000)
        task = client.submit(slow_worker.PIPELINE, Ref("s3://inputs/a.txt"))
        good = client.submit(slow_worker.PIPELINE, "fox")
        status = client.wait(task, timeout_s=120)
        seen = [one.state for one in client.events("0", timeout_s=0) if one.task_id == task]
        assert seen == [State.QUEUED, State.RETRYING, State.RETRYING, State.FAILED]
        assert status.error is not None
        assert (status.error.code, status.error.retryable) == ("input_unavailable", True)
        assert status.attempts == 3
        assert client.wait(good, timeout_s=60).state is State.SUCCEEDED


#: Takes its time without a model: batches of 8, each of which runs for so long, in seconds.
SLOW_BATCHES, BATCH_S = "[pipelines.constant]\nmax_batch_size = 8\nmax_wait_ms = 0\n", 0.3


class Relay:
    """Workers with one pipeline, one after the other: a test stops the one that runs, and the next has the rest."""

    def __init__(self, folder: Path, url: str, pipeline: str, model: Path | None, stack: ExitStack) -> None:
        self.client = stack.enter_context(Client(url))
        self.db = stack.enter_context(redis.Redis.from_url(url))
        self.pipeline = pipeline
        config = folder / "pipelines.toml"
        config.write_text(SLOW_BATCHES if model is None else f'[pipelines.{pipeline}]\nmodel = "{model}"\n')
        self._params = {"seconds": BATCH_S} if model is None else {"max_new_tokens": 100, "do_sample": False}
        self._start = lambda drain_s: stack.enter_context(worker(folder, url, "--config", config, drain_s=drain_s))
        #: The one that runs, and its ``drain_s``.
        self.running: tuple[WorkerProcess, float] | None = None

    def start(self, drain_s: float) -> WorkerProcess:
        """A worker that serves; the one that runs if it has these settings."""
        if self.running is None or self.running[1] != drain_s or self.running[0].process.poll() is not None:
            if self.running is not None:
                self.running[0].stop()
            self.running = self._start(drain_s), drain_s
        self.running[0].wait_ready(self.client, self.pipeline)
        return self.running[0]

    def submit(self, count: int) -> list[str]:
        """Submits tasks that take some time, and waits until the first of them run."""
        texts = ["the fox " * (at % 9 + 1) for at in range(count)]
        ids = self.client.submit_many(self.pipeline, texts, params=self._params, priority=0)
        while not any(status.state is State.RUNNING for status in self.client.status_many(ids)):
            time.sleep(0.02)
        return ids

    def left(self, ids: list[str]) -> list[TaskStatus]:
        """What a worker that has stopped did not finish."""
        left = [status for status in self.client.status_many(ids) if not status.is_final]
        assert left, "the first worker finished everything: the test shows nothing"
        assert self.db.hlen("pipeq:unacked") == 0
        return left


# A worker that generates is stopped in test_generation.py, too.
@pytest.fixture(scope="module", params=[CONSTANT, pytest.param(GENERATION, marks=pytest.mark.long)])
def relay(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    model = None if request.param == CONSTANT else tiny_models.build("gpt2", tiny)
    with embedded.valkey() as url, ExitStack() as stack:
        yield Relay(tmp_path_factory.mktemp("relay"), url, request.param, model, stack)


def test_sigterm_with_two_hundred_tasks_in_flight(relay: Relay) -> None:
    """The first worker stops within its limit, a second one finishes the rest, and each task is published once."""
    published: Counter[str] = Counter()
    listener = relay.db.pubsub(ignore_subscribe_messages=True)
    listener.psubscribe(**{"celery-task-meta-*": lambda message: published.update([message["channel"].decode()])})
    thread = listener.run_in_thread(sleep_time=0.05, daemon=True)
    first = relay.start(drain_s=1)
    ids = relay.submit(200)
    began = time.monotonic()
    assert first.stop() == 0
    assert time.monotonic() - began < 1 + 8
    assert relay.db.llen(relay.pipeline) == len(relay.left(ids))
    relay.start(drain_s=300)
    done = list(relay.client.as_completed(ids, timeout_s=120))
    assert Counter(status.state for status in done) == {State.SUCCEEDED: 200}
    # The client's own subscription may have been told before this one.
    deadline = time.monotonic() + 30
    while len(published) < 200:
        assert time.monotonic() < deadline, len(published)
        time.sleep(0.05)
    thread.stop()
    thread.join()
    assert set(published.values()) == {1}
    assert len(published) == 200


@pytest.mark.parametrize("signals", [(signal.SIGQUIT,), (signal.SIGTERM, signal.SIGTERM)], ids=["quit", "term-term"])
def test_a_hurried_stop_loses_nothing(signals: tuple[signal.Signals, ...], relay: Relay) -> None:
    """Signals arrive together with messages. All tasks inside, also the batch on the device, go back on the queue."""
    first = relay.start(drain_s=300)
    ids = relay.submit(80)
    began = time.monotonic()
    for number in signals:
        first.process.send_signal(number)
        time.sleep(0.2)
    assert first.process.wait(60) == 0
    assert time.monotonic() - began < 30
    assert relay.db.llen(relay.pipeline) >= len(relay.left(ids))
    relay.start(drain_s=300)
    ended = list(relay.client.as_completed(ids, timeout_s=120))
    assert [status for status in ended if status.state is not State.SUCCEEDED] == [], first.text()


def test_redis_is_restarted_under_load(tmp_path: Path) -> None:
    """Redis restarts with its append-only file: the worker reconnects, and every task ends."""
    config = tmp_path / "pipelines.toml"
    config.write_text(SLOW_BATCHES)
    with (
        server(tmp_path) as valkey,
        worker(tmp_path, valkey.url, "--config", config) as process,
        Client(valkey.url) as client,
    ):
        process.wait_ready(client, CONSTANT)
        ids = client.submit_many(CONSTANT, range(300), params={"seconds": 0.1}, priority=0)
        while sum(status.is_final for status in client.status_many(ids)) < 20:
            time.sleep(0.05)
        valkey.stop()
        time.sleep(3)
        valkey.start()
        # Messages that were unacknowledged when the connection broke come back after the visibility timeout of the
        # stock Redis transport, unless the worker still held them; then they end all the same.
        states = Counter(status.state for status in client.as_completed(ids, timeout_s=90))
        assert states == {State.SUCCEEDED: 300}
        assert process.process.poll() is None, process.text()
        assert client.result(client.submit(CONSTANT, "fox"), timeout_s=30)


def test_a_forward_pass_that_hangs_ends_its_process(redis_url: str, tmp_path: Path) -> None:
    """That of a model: test_bounds_lifted.py."""
    with Client(redis_url) as client, worker(tmp_path, redis_url, CONSTANT, hard_timeout_s=1) as process:
        process.wait_ready(client, CONSTANT)
        task = client.submit(CONSTANT, "fox", params={"seconds": 300})
        # It waits for another process, and for nothing else.
        good = client.submit(CONSTANT, "fox")
        status = client.wait(task, timeout_s=60)
        assert status.state is State.FAILED
        assert status.error is not None
        assert status.error.code == "timeout"
        assert "hard_timeout_s" in status.error.message
        status = client.wait(good, timeout_s=60)
        assert (status.state, status.attempts) == (State.SUCCEEDED, 1)
        assert "starting another one" in process.text()
        assert process.text().count("ready: serving") == 1


def test_a_killed_child_is_started_again(redis_url: str, tmp_path: Path) -> None:
    with (
        Client(redis_url) as client,
        worker(tmp_path, redis_url, "constant", "--devices", "cpu,cpu") as supervised,
    ):
        deadline = time.monotonic() + 90
        while client.queues()[0].workers < 2 if client.queues() else True:
            assert time.monotonic() < deadline, supervised.text()
            time.sleep(0.1)
        children = subprocess.check_output(["pgrep", "-P", str(supervised.process.pid)]).split()
        assert len(children) == 2
        subprocess.run(["kill", "-9", children[0]], check=True)
        while supervised.text().count("started a worker on cpu") < 3:
            assert time.monotonic() < deadline, supervised.text()
            time.sleep(0.1)
        assert "ended with signal SIGKILL" in supervised.text()
        assert client.result(client.submit("constant", "fox"), timeout_s=60)


def test_a_model_that_cannot_be_loaded_stops_the_start(redis_url: str, tmp_path: Path) -> None:
    with worker(tmp_path, redis_url, f"text-classification={tmp_path / 'nothing'}") as process:
        assert process.process.wait(90) == 2
        assert "pipeline 'text-classification': model" in process.text()
        assert "there is no such folder" in process.text()
        assert "Traceback" not in process.text()
