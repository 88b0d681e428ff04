"""A user's own observer, behind an entry point: its calls for tasks that succeed, fail, wait or are cancelled."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import redis
from pipeq import Client, State

from tests.worker_process import worker

PACKAGE = """
import json, os, threading
from pipeq_worker.observe.observer import EVENTS, Observer

class Written(Observer):
    pass

def writer(name):
    def write(self, *args):
        if name == os.environ.get("STUCK"):
            threading.Event().wait()
        with open(os.environ["TOLD"], "a") as file:
            file.write(json.dumps([name, *args], default=str) + "\\n")
    return write

for name in EVENTS:
    setattr(Written, name, writer(name))
"""


def install(folder: Path) -> None:
    """The files that pip leaves for a package with an entry point."""
    folder.mkdir()
    (folder / "my_observers.py").write_text(PACKAGE)
    about = folder / "my_observers-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-observers\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[pipeq.observers]\nmine = my_observers:Written\n")


def test_it_is_told_what_happens(redis_url: str, tmp_path: Path) -> None:
    install(tmp_path / "site")
    told_file = tmp_path / "told.jsonl"
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    config = tmp_path / "pipelines.toml"
    config.write_text('[pipelines.constant]\n[pipelines.slow]\ntask = "constant"\nparams = { seconds = 1.0 }\n')
    with (
        worker(
            tmp_path, redis_url, "--config", tmp_path / "pipelines.toml", PYTHONPATH=path, TOLD=told_file
        ) as process,
        Client(redis_url) as client,
    ):
        process.wait_ready(client, "constant", "slow")
        good = client.submit("constant", "hello")
        bad = client.submit("constant", "hello", params={"no_such_parameter": 1})
        first = client.submit("slow", "a")
        gone = client.submit("slow", "b")
        client.cancel(gone)
        for task_id in (good, bad, first, gone):
            client.wait(task_id, timeout_s=60)
        assert client.status(good).state is State.SUCCEEDED
        with redis.Redis.from_url(redis_url) as db:
            db.lpush("constant", "no message at all", '{"headers": {"id": "unusable"}}')
        deadline = time.monotonic() + 30
        while not {good, bad, first, gone, "unusable"} <= {
            event[1] for event in told(told_file) if event[0] == "task_ended"
        }:
            assert time.monotonic() < deadline, told_file.read_text()
            time.sleep(0.1)
    events = told(told_file)
    ended = {event[1]: event[2:5] for event in events if event[0] == "task_ended"}
    assert ended[good] == ["constant", "succeeded", None]
    assert ended[bad] == ["constant", "failed", "invalid_params"]
    assert ended[first] == ["slow", "succeeded", None]
    assert ended[gone][1:] == ["dropped", None]
    assert ended["unusable"] == ["constant", "failed", "invalid_message"]
    assert [event[1] for event in events if event[0] == "message_refused"] == ["constant"] * 2
    assert ["task_accepted", good, "constant"] in events
    assert {event[3] for event in events if event[0] == "stage_ended" and event[1] == good} == {
        "prepare",
        "wait_device",
        "infer",
        "deliver",
    }
    assert events.count(["batch_began", "constant", 1]) == 1
    ((_, name, size, padding, seconds, cost),) = [event for event in events if event[:2] == ["batch_ran", "constant"]]
    assert (name, size, padding, cost) == ("constant", 1, 0.0, 1)
    assert 0 <= seconds < 1


def test_one_that_never_returns_stops_nothing(redis_url: str, tmp_path: Path) -> None:
    install(tmp_path / "site")
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    more = {"PYTHONPATH": path, "TOLD": tmp_path / "told.jsonl", "STUCK": "task_accepted"}
    with worker(tmp_path, redis_url, "constant", **more) as process, Client(redis_url) as client:
        process.wait_ready(client, "constant")
        ids = client.submit_many("constant", [str(at) for at in range(200)])
        assert {one.state for one in client.as_completed(ids, timeout_s=60)} == {State.SUCCEEDED}
        assert process.stop() == 0, process.text()
    assert told(tmp_path / "told.jsonl") == []


def told(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
