"""A worker's own faults: tasks go to another worker, the worker takes none for a while, and says why."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from pipeq import Client, Ref, State
from pipeq.contract import keys
from pipeq.demo import embedded

from tests import slow_worker, tiny_models
from tests.worker_process import worker

PIPELINE, CONSTANT = "text-classification", "constant"
TASKS = int(os.environ.get("S3_TASKS", "1000"))
#: No credentials: neither in the environment, nor in a file, nor from a machine's role.
WITHOUT = {
    "AWS_ACCESS_KEY_ID": "",
    "AWS_SECRET_ACCESS_KEY": "",
    "AWS_SESSION_TOKEN": "",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere/credentials",
    "AWS_CONFIG_FILE": "/nowhere/config",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def end_quietly(error: BaseException, pubsub: object, thread: Any) -> None:
    """The server ends before the listener if the test fails."""
    thread.stop()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(600)
def test_a_worker_without_credentials_beside_a_good_one(
    redis_url: str, tmp_path: Path, s3_server: embedded.S3Server
) -> None:
    s3_server.client().put_object(Bucket="inputs", Key="own/a.txt", Body=b"the quick fox")
    env = {"retry_backoff_s": 0.5, "own_fault_pause_s": 1, "prefetch": 64, "inputs__allow": "s3://inputs/"}
    with (
        slow_worker.serving(tmp_path, redis_url, **env, **s3_server.env()) as good,
        slow_worker.serving(tmp_path, redis_url, **env, **{**s3_server.env(), **WITHOUT}) as bad,
        Client(redis_url) as client,
        redis.Redis.from_url(redis_url) as db,
    ):
        wait_for(lambda: any(queue.workers == 2 for queue in client.queues()), 240)
        published: Counter[str] = Counter()
        listener = db.pubsub(ignore_subscribe_messages=True)
        ended = [f'"status": "{word}"' for word in ("SUCCESS", "FAILURE")] + ['"status":"SUCCESS"']
        listener.psubscribe(
            **{
                "celery-task-meta-*": lambda message: published.update(
                    [message["channel"]] if any(one.encode() in message["data"] for one in ended) else []
                )
            }
        )
        thread = listener.run_in_thread(sleep_time=0.05, daemon=True, exception_handler=end_quietly)
        ids = client.submit_many(slow_worker.PIPELINE, [Ref("s3://inputs/own/a.txt")] * TASKS, priority=0)
        began = time.monotonic()
        wait_for(lambda: any(queue.deaf for queue in client.queues()), 60)
        (queue,) = client.queues()
        (reason,) = queue.deaf.values()
        states = Counter(client.wait(task, timeout_s=300).state for task in ids)
        print(f"{TASKS} tasks took {time.monotonic() - began:.1f} s")
        assert states == {State.SUCCEEDED: TASKS}
        # The client may have been told before the listener.
        wait_for(lambda: len(published) >= TASKS)
        thread.stop()
        thread.join()
        assert sorted(published.values()) == [1] * TASKS
        assert {status.worker.split("-")[1] for status in client.status_many(ids)} == {str(good.process.pid)}
        assert all(status.attempts == 1 for status in client.status_many(ids))
        assert "no AWS credentials" in reason
        assert bad.text().count(f"no messages are taken from {slow_worker.PIPELINE}") == 1
        assert good.text().count("no messages are taken") == 0
        assert db.zcard(keys.waiting_key(slow_worker.PIPELINE)) == 0


def test_a_worker_that_gets_its_credentials_late(redis_url: str, tmp_path: Path, s3_server: embedded.S3Server) -> None:
    """It cannot write what it computes, and leaves the tasks to the other one; when it can, it takes tasks again."""
    file = tmp_path / "credentials"
    late = {**s3_server.env(), **WITHOUT, "AWS_SHARED_CREDENTIALS_FILE": str(file)}
    late = {name: value for name, value in late.items() if "KEY" not in name and "TOKEN" not in name}
    env = {
        "retry_backoff_s": 0.2,
        "own_fault_pause_s": 0.5,
        "retry_backoff_max_s": 1,
        "RESULTS__ALLOW": "s3://results/",
    }
    env = {f"PIPEQ_{name.upper()}": value for name, value in env.items()}
    output = {"output": "s3://results/own/"}
    with ExitStack() as stack:
        client = stack.enter_context(Client(redis_url))
        without = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
        stack.callback(os.environ.update, without)
        bad = stack.enter_context(worker(tmp_path, redis_url, CONSTANT, **env, **late))
        bad.wait_ready(client, CONSTANT)
        assert "results.allow: s3://results/ cannot be used now: " in bad.text()
        # Alone, it keeps what it cannot do for a worker that can.
        ids = client.submit_many(CONSTANT, range(100), **output, priority=0)
        wait_for(lambda: bool(client.queues()[0].deaf))
        # None ends. It tries one now and then, which runs at that moment.
        wait_for(lambda: client.queues()[0].in_flight == 0)
        wait_for(lambda: {one.state for one in client.status_many(ids)} <= {State.QUEUED, State.RETRYING})
        good = stack.enter_context(worker(tmp_path, redis_url, CONSTANT, **env, **s3_server.env()))
        assert Counter(client.wait(task, timeout_s=120).state for task in ids) == {State.SUCCEEDED: 100}
        assert "results.allow: s3://results/ is in order" in good.text()
        assert good.stop() == 0
        file.write_text(
            f"[default]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
        )
        more = client.submit_many(CONSTANT, range(100), **output, priority=0)
        assert Counter(client.wait(task, timeout_s=120).state for task in more) == {State.SUCCEEDED: 100}
        wait_for(lambda: not client.queues()[0].deaf)
        assert bad.text().count("no messages are taken from constant: 5 tasks in a row failed by a fault of") == 1
        # It says so to Redis first, and then in its log.
        wait_for(lambda: "messages are taken from constant again" in bad.text())
        assert bad.text().count("messages are taken from constant again") == 1


@pytest.mark.timeout(600)  # it imports torch five times
@pytest.mark.parametrize("prepare_processes", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_model_that_went_away(redis_url: str, tiny: Path, tmp_path: Path, prepare_processes: int) -> None:
    """When its process starts anew, the other pipeline is served on, and the tasks wait until the model is back."""
    model = tmp_path / "model"
    shutil.copytree(tiny_models.build("classifier", tiny), model)
    env = {"retry_backoff_s": 0.2, "own_fault_pause_s": 0.3, "retry_backoff_max_s": 1}
    with (
        worker(
            tmp_path, redis_url, f"{PIPELINE}={model}", CONSTANT, prepare_processes=prepare_processes, **env
        ) as process,
        Client(redis_url) as client,
        redis.Redis.from_url(redis_url) as db,
    ):
        process.wait_ready(client, PIPELINE, CONSTANT)
        want = client.result(client.submit(PIPELINE, "the fox"), timeout_s=60)
        model.rename(tmp_path / "elsewhere")
        (device,) = process.roles()["device"]
        os.kill(device, signal.SIGKILL)
        ids = client.submit_many(PIPELINE, ["the fox"] * 30, priority=0)
        assert client.wait(client.submit(CONSTANT, 1), timeout_s=60).state is State.SUCCEEDED
        wait_for(lambda: any("cannot be loaded any more" in str(queue.deaf) for queue in client.queues()))
        wait_for(lambda: {one.state for one in client.status_many(ids)} <= {State.QUEUED, State.RETRYING})
        assert client.wait(client.submit(CONSTANT, 2), timeout_s=60).state is State.SUCCEEDED
        (tmp_path / "elsewhere").rename(model)
        found = list(client.as_completed(ids, timeout_s=120))
        assert [one.result for one in found] == [want] * 30, process.text()[-5000:]
        wait_for(lambda: not any(queue.deaf for queue in client.queues()))
        # The device process is still the one that found no model.
        (again,) = process.roles()["device"]
        assert f"{PIPELINE} cannot be loaded any more" in process.text()
        assert len(re.findall("starting another one", process.text())) == 1
        assert again != device
        assert process.process.poll() is None
        assert db.hlen(keys.UNACKED) == db.hlen(keys.RUNNING) == 0
