"""SIGTERM: waiting tasks go back at once, running ones have ``drain_s``, and the log reports both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from pipeq import Client, State
from pipeq.contract import keys

from tests.waiting import until
from tests.worker_process import WorkerProcess, worker

LINE = "stopping: 9 tasks go back on their queues, 1 that run have"


def one_runs_nine_wait(client: Client, process: WorkerProcess, seconds: float) -> list[str]:
    process.wait_ready(client, "constant")
    # Until a worker knows better, it holds two tasks; one that takes no time lets it take all.
    client.wait(client.submit("constant", "quick"), 60)
    ids = [client.submit("constant", at, params={"seconds": seconds}) for at in range(10)]
    deadline = time.monotonic() + 60
    while client.status(ids[0]).state is not State.RUNNING or process.holds(client.redis_url).get("constant") != 10:
        assert time.monotonic() < deadline, process.text()
        time.sleep(0.02)
    return ids


def config(folder: Path) -> Path:
    path = folder / "pipelines.toml"
    path.write_text("[pipelines.constant]\nmax_batch_size = 1\n")
    return path


def test_what_waits_goes_back_while_the_device_still_runs(redis_url: str, tmp_path: Path) -> None:
    db = redis.Redis.from_url(redis_url)
    with (
        Client(redis_url) as client,
        worker(tmp_path, redis_url, "--config", config(tmp_path), drain_s=60) as process,
    ):
        first, *waiting = one_runs_nine_wait(client, process, 6)
        process.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 3
        while db.llen("constant") < len(waiting):
            assert time.monotonic() < deadline, process.text()
            time.sleep(0.02)
        # The forward pass is finished, and its result is kept.
        assert client.status(first).state is State.RUNNING
        assert process.process.wait(30) == 0
        assert client.status(first).state is State.SUCCEEDED
        assert [client.status(one).state for one in waiting] == [State.QUEUED] * 9
        assert (db.llen("constant"), db.hlen(keys.UNACKED), db.hlen(keys.RUNNING)) == (9, 0, 0)
        for line in (f"{LINE} 60 s", "every task that ran has ended", "ended"):
            assert line in process.text()
    # Another worker takes the others, each once.
    with worker(tmp_path, redis_url, "constant") as process, Client(redis_url) as client:
        assert {client.wait(one, timeout_s=60).attempts for one in waiting} == {1}


@pytest.mark.parametrize("drain_s", [0, 1])
def test_the_wait_is_what_drain_s_says(redis_url: str, tmp_path: Path, drain_s: float) -> None:
    db = redis.Redis.from_url(redis_url)
    with (
        Client(redis_url) as client,
        worker(tmp_path, redis_url, "--config", config(tmp_path), drain_s=drain_s) as process,
    ):
        ids = one_runs_nine_wait(client, process, 300)
        process.process.send_signal(signal.SIGTERM)
        # Much less than the forward pass, even on a busy machine.
        assert process.process.wait(60) == 0
        assert (db.llen("constant"), db.hlen(keys.UNACKED), db.hlen(keys.RUNNING)) == (10, 0, 0)
        assert [client.status(one).state for one in ids] == [State.QUEUED] * 10
        assert f"{LINE} {drain_s} s" in process.text()
        assert "1 tasks did not end in time and go back on their queues" in process.text()


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            found += map(int, path.read_text().split())
    return found


def is_child(pid: int) -> bool:
    with suppress(OSError):
        return b"pipeq_worker.children.main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def test_ctrl_c_while_the_children_start_is_one_line(valkey_url: str) -> None:
    command = [sys.executable, "-m", "pipeq", "worker", "constant", "--redis-url", valkey_url]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A suite that runs in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        until(lambda: any(map(is_child, children_of(process.pid))), every_s=0.001)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "pipeq: interrupted: ended by Ctrl-C\n")
