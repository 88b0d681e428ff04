"""Nothing fails in silence: one WARNING for each failed task, at whichever stage, and the cause's traceback."""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from pipeq import Client, State
from pipeq.demo import embedded
from pipeq_worker.observe.failures import SPAN_S

from tests import tiny_models
from tests.frames import frame
from tests.worker_process import WorkerProcess, worker

TEXT, GENERATION = "text-classification", "text-generation"
SECRET = "the-secret-fox"
SOME_BYTES = {"base64": base64.b64encode(b"\xff\xfe\xfa" * 300).decode()}


@dataclass
class Served:
    process: WorkerProcess
    db: redis.Redis
    client: Client
    folder: Path

    def lines(self) -> list[dict[str, Any]]:
        """The records of the log; what is no JSON is not ours."""
        found = []
        for line in self.process.text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [one for one in found if isinstance(one, dict)]

    def about(self, task_id: str | None, *, count: int = 1) -> list[dict[str, Any]]:
        """The records of one task, from warnings on, when there are as many."""
        deadline = time.monotonic() + 30
        while True:
            found = [
                one
                for one in self.lines()
                if one.get("action") == "failed" and one.get("task_id") == task_id and "left_out" not in one
            ]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.05)


@pytest.fixture(
    scope="module", params=[pytest.param(0, marks=pytest.mark.long), 1], ids=["one child", "prepare process"]
)
def served(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("said")
    config = folder / "pipelines.toml"
    models = {TEXT: "classifier", GENERATION: "gpt2"}
    lines = ["max_attempts = 2", "retry_backoff_s = 0.05", "retry_backoff_max_s = 0.1"]
    lines += [f'[inputs]\nallow = ["file://{folder}/"]', f'[results]\nallow = ["file://{folder}/"]']
    lines += [f'[pipelines.{task}]\nmodel = "{tiny_models.build(model, tiny)}"' for task, model in models.items()]
    config.write_text("\n".join(lines))
    (folder / "a-file").write_text("x")
    with (
        embedded.valkey() as url,
        worker(folder, url, "--config", config, log_format="json", prepare_processes=request.param) as process,
        Client(url) as client,
        redis.Redis.from_url(url, decode_responses=True) as db,
    ):
        process.wait_ready(client, *models)
        yield Served(process, db, client, folder)


#: Stage and code -> pipeline, message, and a word of the cause's traceback where a library raised it.
KINDS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "receipt invalid_message": (TEXT, {"nothing": 1}, None),
    "accept invalid_params": (TEXT, {"inputs": SECRET, "params": {"topk": 1}}, None),
    "accept invalid_input": (TEXT, {"inputs": [SECRET, 5]}, None),
    "accept input_forbidden": (TEXT, {"inputs": {"uri": "file:///nowhere/a.txt"}}, None),
    "fetch input_not_found": (TEXT, {"inputs": {"uri": "file://{folder}/gone.txt"}}, "FileNotFoundError"),
    "decode input_undecodable": (TEXT, {"inputs": SOME_BYTES}, None),
    "prepare invalid_input": (TEXT, {"inputs": "fox " * 600}, None),
    "forward inference_failed": (
        GENERATION,
        {"inputs": SECRET, "params": {"max_new_tokens": 2, "do_sample": False, "num_return_sequences": 3}},
        "transformers/",
    ),
    "deliver output_failed": (TEXT, {"inputs": SECRET, "output": {"uri": "file://{folder}/a-file/"}}, None),
}


def put(served: Served, task_id: str, kind: str) -> str:
    pipeline, kwargs, _ = KINDS[kind]
    kwargs = json.loads(json.dumps(kwargs).replace("{folder}", str(served.folder)))
    served.db.lpush(pipeline, frame(task_id, pipeline, kwargs))
    return pipeline


@pytest.mark.parametrize("kind", KINDS)
def test_each_failure_is_one_warning(served: Served, kind: str) -> None:
    task_id = f"id of {kind}"
    pipeline = put(served, task_id, kind)
    status = served.client.wait(task_id, 60)
    assert (status.state, status.error and status.error.code) == (State.FAILED, kind.split()[1]), status.error
    assert status.error is not None
    (line,) = served.about(task_id)
    time.sleep(0.2)
    assert served.about(task_id) == [line]
    assert (line["level"], line["code"], line["pipeline"]) == ("WARNING", status.error.code, pipeline)
    assert line["worker"] in served.process.text()
    assert status.error.message[:200] in line["message"]
    assert (line["attempts"] > 0) or kind.startswith("receipt")
    library = KINDS[kind][2]
    if library is not None:
        assert library in line["traceback"]
        assert status.error.traceback is not None
        assert library in status.error.traceback
        (letter,) = served.client.dead(ids=[task_id])
        assert letter.traceback == status.error.traceback
    # Nothing else in the log is as loud about it.
    loud = [one for one in served.lines() if one["level"] in ("WARNING", "ERROR") and task_id in json.dumps(one)]
    assert loud == [line]
    assert SECRET not in (status.error.traceback or "")


@pytest.mark.parametrize("raw", ["no json", '{"headers": {"id": "odd-1"'])
def test_a_message_that_cannot_be_read_is_one_warning(served: Served, raw: str) -> None:
    before = len(served.about(None, count=0))
    served.db.lpush(TEXT, raw)
    found = served.about("odd-1") if "odd-1" in raw else served.about(None, count=before + 1)[before:]
    assert [(one["level"], one["code"], one["pipeline"]) for one in found] == [("WARNING", "invalid_message", TEXT)]


def test_an_expired_task_is_one_warning(served: Served) -> None:
    served.db.lpush(TEXT, frame("late", TEXT, {"inputs": "x"}, headers={"expires": "2020-01-01T00:00:00+00:00"}))
    assert served.client.wait("late", 30).state is State.EXPIRED
    (line,) = served.about("late")
    assert (line["level"], line["code"]) == ("WARNING", "expired")


def test_what_succeeds_is_not_a_warning(served: Served) -> None:
    task = served.client.submit(TEXT, "fine")
    assert served.client.wait(task, 30).state is State.SUCCEEDED
    assert not [one for one in served.lines() if task in json.dumps(one) and one["level"] != "INFO"]


def test_thousands_of_failures_are_some_lines_and_a_count(served: Served) -> None:
    count = 2000
    ids = served.client.submit_many(TEXT, ["x"] * count, params={"nonsense": 1}, priority=0)
    assert all(one.state is State.FAILED for one in served.client.as_completed(ids, 120))
    wanted = set(ids)
    deadline, said = time.monotonic() + 3 * SPAN_S, 0
    # What was left out is said at the end of a span.
    while said < count and time.monotonic() < deadline:
        time.sleep(0.2)
        lines = [one for one in served.lines() if one.get("action") == "failed" and one.get("code") == "invalid_params"]
        single = [one for one in lines if one.get("task_id") in wanted and "left_out" not in one]
        said = len(single) + sum(one["left_out"] for one in lines if "left_out" in one)
    assert said == count
    assert len(lines) < 100


def test_signals_and_the_end_are_said_with_what_was_left_out(served: Served) -> None:
    ids = served.client.submit_many(TEXT, ["x"] * 50, params={"nonsense": 1}, priority=0)
    assert all(one.state is State.FAILED for one in served.client.as_completed(ids, 60))
    served.process.process.send_signal(signal.SIGTERM)
    assert served.process.process.wait(60) == 0
    said = [(one.get("action"), one["message"]) for one in served.lines()]
    actions = [action for action, _ in said]
    assert actions.index("signal") < actions.index("drain") < actions.index("end")
    assert ("signal", "got SIGTERM") in said
    assert sum(one.get("left_out", 0) for one in served.lines()[-10:]) > 0
