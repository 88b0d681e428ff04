"""A task's life: cancelled, expired, retried, run with its own parameters, drained."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import redis
import transformers
from pipeq import Client, PipeqError, Ref, State
from pipeq.contract import keys
from pipeq.demo import embedded

from tests import tiny_models
from tests.acceptance.conftest import Service
from tests.parity import assert_same, plain
from tests.worker_process import worker


def test_a_parameter_is_overridden_by_one_task_and_back_for_the_next(service: Service) -> None:
    submit, result = service.client.submit, service.client.result
    assert len(result(submit("top-two", "fox"), 30)) == 2
    assert len(result(submit("top-two", "fox", params={"top_k": 1}), 30)) == 1
    assert len(result(submit("top-two", "fox"), 30)) == 2
    mixed = [submit("top-two", f"fox {at}", params={"top_k": at % 3 + 1}) for at in range(60)]
    assert [len(result(task, 30)) for task in mixed] == [at % 3 + 1 for at in range(60)]


def test_status_tells_the_whole_story(service: Service) -> None:
    status = service.client.wait(service.client.submit("text-classification", "fox"), timeout_s=30)
    assert status.state is State.SUCCEEDED
    assert status.submitted_at is not None
    assert status.started_at is not None
    assert status.finished_at is not None
    assert status.submitted_at <= status.started_at <= status.finished_at
    assert status.attempts == 1
    assert status.timing_ms is not None
    assert {"queue", "prepare", "batch", "infer", "deliver"} <= status.timing_ms.keys()
    assert status.model is not None
    assert (status.model.dtype, status.model.device) == ("float32", "cpu")
    assert status.worker is not None
    assert status.worker.startswith("pipeq-")


def test_text_by_reference_and_inline_is_the_same(service: Service) -> None:
    (service.inputs / "text.txt").write_text("the quick brown fox")
    by_reference = service.client.submit("text-embedding", Ref.from_path(service.inputs / "text.txt"))
    inline = service.client.submit("text-embedding", "the quick brown fox")
    assert_same(service.client.result(by_reference, 30), service.client.result(inline, 30))


def test_chats(service: Service) -> None:
    chat = [{"role": "user", "content": "hello"}]
    params = {"max_new_tokens": 8, "do_sample": False}
    pipe = transformers.pipeline("text-generation", model=str(service.models / "llama"), device="cpu")
    one = service.client.submit("chat", chat, params=params)
    several = service.client.submit("chat", [chat, chat], params=params)
    assert_same(service.client.result(one, 30), plain(pipe(chat, **params)))
    assert_same(service.client.result(several, 30), plain(pipe([chat, chat], **params)))


def test_an_empty_list_gives_an_empty_list(service: Service) -> None:
    assert service.client.result(service.client.submit("text-classification", []), timeout_s=30) == []


def test_a_cancel_survives_with_no_worker_up(redis_url: str, tiny: Path, tmp_path: Path) -> None:
    model = tiny_models.build("classifier", tiny)
    with Client(redis_url) as client:
        ids = client.submit_many("text-classification", ["fox"] * 20, check=False)
        for task in ids[::2]:
            assert client.cancel(task).state is State.CANCELLED
        expiring = client.submit("text-classification", "fox", expires_s=0.2, check=False)
        time.sleep(0.3)
        assert client.status(expiring).state is State.EXPIRED
        with worker(tmp_path, redis_url, f"text-classification={model}"):
            states = [client.wait(task, timeout_s=60).state for task in ids]
            assert states == [State.CANCELLED, State.SUCCEEDED] * 10
            assert client.wait(expiring, timeout_s=30).state is State.EXPIRED
            # Cancelled messages are gone, too.
            deadline = time.monotonic() + 10
            raw = redis.Redis.from_url(redis_url)
            while raw.hlen("pipeq:unacked") or raw.llen("text-classification"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert raw.hlen(keys.RUNNING) == 0


def test_an_unreachable_store_is_retried_until_it_is_back(redis_url: str, tiny: Path, tmp_path: Path) -> None:
    model = tiny_models.build("classifier", tiny)
    (port,) = embedded.free_ports(1)
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
        "retry_backoff_s": 0.2,
        "max_attempts": 3,
    }
    arguments = (f"text-classification={model}", "--allow", "s3://inputs/")
    with worker(tmp_path, redis_url, *arguments, **env) as process, Client(redis_url) as client:
        process.wait_ready(client, "text-classification")
        task = client.submit("text-classification", Ref("s3://inputs/a.txt"))
        good = client.submit("text-classification", "fox")
        seen = set()
        while not (status := client.status(task)).is_final:
            seen.add(status.state)
            time.sleep(0.02)
        assert State.RETRYING in seen
        assert status.error is not None
        assert (status.error.code, status.error.retryable) == ("input_unavailable", True)
        assert status.attempts == 3
        assert client.status(good).state is State.SUCCEEDED


def test_sigterm_with_two_hundred_tasks_in_flight(redis_url: str, tiny: Path, tmp_path: Path) -> None:
    """The first worker stops within its limit, a second one finishes the rest, and each task is published once."""
    model = tiny_models.build("gpt2", tiny)
    published: Counter[str] = Counter()
    listener = redis.Redis.from_url(redis_url).pubsub(ignore_subscribe_messages=True)
    listener.psubscribe(**{"celery-task-meta-*": lambda message: published.update([message["channel"].decode()])})
    thread = listener.run_in_thread(sleep_time=0.05, daemon=True)
    params = {"max_new_tokens": 100, "do_sample": False}
    arguments = (f"text-generation={model}",)
    with Client(redis_url) as client:
        with worker(tmp_path, redis_url, *arguments, drain_s=1, log_level="DEBUG") as first:
            first.wait_ready(client, "text-generation")
            ids = client.submit_many("text-generation", ["the fox " * (at % 9 + 1) for at in range(200)], params=params)
            while not any(status.state is State.RUNNING for status in client.status_many(ids)):
                time.sleep(0.02)
            began = time.monotonic()
            assert first.stop() == 0
            assert time.monotonic() - began < 1 + 8
        left = [status for status in client.status_many(ids) if not status.is_final]
        assert left, "the first worker finished everything: the test shows nothing"
        raw = redis.Redis.from_url(redis_url)
        assert raw.hlen("pipeq:unacked") == 0
        assert raw.llen("text-generation") == len(left)
        with worker(tmp_path, redis_url, *arguments):
            done = list(client.as_completed(ids, timeout_s=120))
    assert Counter(status.state for status in done) == {State.SUCCEEDED: 200}
    thread.stop()
    thread.join()
    assert set(published.values()) == {1}
    assert len(published) == 200


@pytest.mark.parametrize("signals", [(signal.SIGQUIT,), (signal.SIGTERM, signal.SIGTERM)], ids=["quit", "term-term"])
def test_a_hurried_stop_loses_nothing(
    signals: tuple[signal.Signals, ...], redis_url: str, tiny: Path, tmp_path: Path
) -> None:
    """Signals arrive together with messages. All tasks inside, also the batch on the device, go back on the queue."""
    model = tiny_models.build("gpt2", tiny)
    params = {"max_new_tokens": 100, "do_sample": False}
    with Client(redis_url) as client:
        with worker(tmp_path, redis_url, f"text-generation={model}", drain_s=300) as first:
            first.wait_ready(client, "text-generation")
            ids = client.submit_many("text-generation", ["the fox " * (at % 9 + 1) for at in range(80)], params=params)
            while not any(status.state is State.RUNNING for status in client.status_many(ids)):
                time.sleep(0.02)
            began = time.monotonic()
            for number in signals:
                first.process.send_signal(number)
                time.sleep(0.2)
            assert first.process.wait(60) == 0
            assert time.monotonic() - began < 30
        left = [status for status in client.status_many(ids) if not status.is_final]
        assert left, "the first worker finished everything: the test shows nothing"
        raw = redis.Redis.from_url(redis_url)
        assert raw.hlen("pipeq:unacked") == 0
        assert raw.llen("text-generation") >= len(left)
        with worker(tmp_path, redis_url, f"text-generation={model}"):
            ended = list(client.as_completed(ids, timeout_s=120))
            assert [status for status in ended if status.state is not State.SUCCEEDED] == [], first.text()


def test_redis_is_restarted_under_load(tiny: Path, tmp_path: Path) -> None:
    """Redis restarts with its append-only file: the worker reconnects, and every task ends."""
    model = tiny_models.build("gpt2", tiny)
    (port,) = embedded.free_ports(1)
    options = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", str(tmp_path)]
    command = [str(embedded._valkey_program()), "--port", str(port), "--bind", "127.0.0.1", *options]
    url = f"redis://127.0.0.1:{port}/0"
    params = {"max_new_tokens": 60, "do_sample": False}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with worker(tmp_path, url, f"text-generation={model}") as process, Client(url) as client:
            process.wait_ready(client, "text-generation")
            ids = client.submit_many("text-generation", ["the fox " * (at % 9 + 1) for at in range(300)], params=params)
            while sum(status.is_final for status in client.status_many(ids)) < 20:
                time.sleep(0.05)
            server.terminate()
            server.wait(30)
            time.sleep(3)
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            # Messages that were unacknowledged when the connection broke come back after the visibility timeout of the
            # stock Redis transport, unless the worker still held them; then they end all the same.
            states = Counter(status.state for status in client.as_completed(ids, timeout_s=90))
            assert states == {State.SUCCEEDED: 300}
            assert process.process.poll() is None, process.text()
            assert client.result(client.submit("text-generation", "fox", params={"max_new_tokens": 2}), timeout_s=30)
    finally:
        server.kill()
        server.wait()


def test_a_forward_pass_that_hangs_ends_its_process(redis_url: str, tiny: Path, tmp_path: Path) -> None:
    model = tiny_models.build("gpt2", tiny)
    # This takes about six seconds on a fast machine, even if a random model stops early.
    slow = {"max_new_tokens": 450, "min_new_tokens": 450, "do_sample": False, "num_beams": 128}
    many = {"param_limits__max_beams": 128}
    with (
        Client(redis_url) as client,
        worker(tmp_path, redis_url, f"text-generation={model}", hard_timeout_s=1, **many) as process,
    ):
        process.wait_ready(client, "text-generation")
        task = client.submit("text-generation", "fox", params=slow)
        # It waits for another process, and for nothing else.
        good = client.submit("text-generation", "fox", params={"max_new_tokens": 2})
        status = client.wait(task, timeout_s=60)
        assert status.state is State.FAILED
        assert status.error is not None
        assert status.error.code == "timeout"
        assert "hard_timeout_s" in status.error.message
        status = client.wait(good, timeout_s=60)
        assert (status.state, status.attempts) == (State.SUCCEEDED, 1)
        assert "starting another one" in process.text()
        assert process.text().count("ready: serving") == 1


def test_a_killed_child_is_started_again(redis_url: str, tiny: Path, tmp_path: Path) -> None:
    model = tiny_models.build("classifier", tiny)
    with (
        Client(redis_url) as client,
        worker(tmp_path, redis_url, f"text-classification={model}", "--devices", "cpu,cpu") as supervised,
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
        assert client.result(client.submit("text-classification", "fox"), timeout_s=60)


def test_a_model_that_cannot_be_loaded_stops_the_start(redis_url: str, tmp_path: Path) -> None:
    with worker(tmp_path, redis_url, f"text-classification={tmp_path / 'nothing'}") as process:
        assert process.process.wait(90) == 2
        assert "pipeline 'text-classification': model" in process.text()
        assert "there is no such folder" in process.text()
        assert "Traceback" not in process.text()


def test_wait_is_woken_not_polled(service: Service) -> None:
    """A result can be read within a few milliseconds of its publication."""
    late = []

    def wait(task: str) -> None:
        status = service.client.wait(task, timeout_s=30)
        late.append(time.time() - (status.finished_at or 0))

    ids = [service.client.submit("text-classification", f"fox {at}", delay_s=0.5) for at in range(4)]
    threads = [threading.Thread(target=wait, args=(task,)) for task in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(late) == 4
    assert max(late) < 1.0


def test_result_raises_the_tasks_own_error(service: Service) -> None:
    task = service.client.submit("text-classification", 5)
    with pytest.raises(PipeqError) as caught:
        service.client.result(task, timeout_s=30)
    assert caught.value.code == "invalid_input"
    assert json.loads(service.client.status(task).model_dump_json())["error"]["code"] == "invalid_input"
