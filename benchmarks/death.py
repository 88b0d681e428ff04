"""Death of the device process under load: how long until the next result, and whether a task is lost.

The process is killed as the OOM killer would do it, while a worker works off a full queue. Its id is in the worker's
metrics. Every task must end, and be neither failed nor lost; what was in the batch runs once more.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from itertools import pairwise
from pathlib import Path

from pipeq import Client, State, TaskStatus
from pipeq.demo.embedded import valkey

from benchmarks import workers
from benchmarks.one_length import LAYERS, PIPELINE, WIDTH, config, texts
from benchmarks.report import Options, Ratio, Result

#: Tasks in the queue when the process is killed.
MOST_TEXTS = 20_000
#: The role of the process that holds the weights, in the metrics.
ROLE = "device"


def metrics(port: int) -> dict[str, float]:
    """Reads a worker's metrics: series, as Prometheus writes it -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


def device_pid(port: int) -> int | None:
    """Returns the id of the process that holds the weights; None while there is none."""
    return next(
        (int(pid) for name, pid in metrics(port).items() if name.startswith("pipeq_process_pid") and ROLE in name), None
    )


def one_round(folder: Path, seconds: float) -> dict[str, float]:
    """Kills the device process once. Returns seconds and counts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = f"[metrics]\nport = {port}\n{config(folder)}"
    with valkey() as url, workers.worker(url, settings) as process, Client(url) as client:
        workers.wait_ready(client, PIPELINE, [process])
        pid = device_pid(port)
        if pid is None:
            sys.exit("the worker names no device process in its metrics (pipeq_process_pid)")
        rate = workers.run(client, PIPELINE, texts(256))
        ids = client.submit_many(PIPELINE, texts(workers.as_many_as(rate, seconds, 500, MOST_TEXTS)), check=False)
        time.sleep(seconds / 4)
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        reloaded_s = _reloaded(port, pid) - killed
        statuses = list(client.as_completed(ids, timeout_s=workers.WAIT_S))
    return {"reload": reloaded_s, **_judged(statuses, killed)}


def _reloaded(port: int, old: int) -> float:
    """Waits for another device process with a loaded pipeline. Returns when it was there."""
    loaded = f'pipeq_pipeline_loaded{{pipeline="{PIPELINE}"}}'
    while True:
        pid = device_pid(port)
        if pid not in (None, old) and metrics(port)[loaded]:
            return time.time()
        time.sleep(0.02)


def _judged(statuses: list[TaskStatus], killed: float) -> dict[str, float]:
    ends = sorted(one.finished_at or 0.0 for one in statuses)
    # Results that the host had already come after the kill; the pause is the longest time without any.
    after = [killed, *(one for one in ends if one > killed)]
    pause_s = max((later - one for one, later in pairwise(after)), default=0.0)
    return {
        "pause": pause_s,
        "lost": float(sum(one.state is not State.SUCCEEDED for one in statuses)),
        "run again": float(sum((one.attempts or 1) > 1 for one in statuses)),
    }


def main(options: Options) -> list[Result]:
    """Runs all rounds, each with a fresh worker."""
    with tempfile.TemporaryDirectory() as name:
        folder = workers.classifier(Path(name), layers=LAYERS, width=WIDTH)
        rounds = [one_round(folder, options.seconds) for _ in range(options.rounds)]
    found = {key: [one[key] for one in rounds] for key in rounds[0]}
    beyond = [pause - reload for pause, reload in zip(found["pause"], found["reload"], strict=True)]
    return [
        Result(
            "j",
            "Death of the device process under load",
            "s, or tasks",
            {
                "until another one is loaded, s": found["reload"],
                "longest time without a result, s": found["pause"],
                "tasks that ran again": found["run again"],
            },
            [
                Ratio("time without a result beyond the reload", beyond, "<= 1", " s"),
                Ratio("tasks lost or failed", found["lost"], "<= 0"),
            ],
            "SIGKILL while a worker works off a full queue; the model is that of (b).",
        )
    ]
