"""Three pipelines on a device that holds two of them at a time: all tasks succeed, and loading takes little time.

The device here is the CPU. What the weights take is measured by the setting alone, so any device would do.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pipeq import Client, State
from safetensors import safe_open

from tests import tiny_models
from tests.parity import assert_same
from tests.worker_process import worker

NAMES = ("first", "second", "third")
#: How long all three have work, in seconds.
WORK_S = 25
STAY_S = 10


def weight_bytes(model: Path) -> int:
    with safe_open(model / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118


def config(folder: Path, model: Path, most: int) -> Path:
    path = folder / "pipelines.toml"
    sections = [f'[pipelines.{name}]\ntask = "text-classification"\nmodel = "{model}"\n' for name in NAMES]
    path.write_text(f"max_loaded_bytes = {most}\n" + "".join(sections))
    return path


@pytest.mark.parametrize("prepare_processes", [0, pytest.param(1, marks=pytest.mark.long)])
def test_three_pipelines_where_two_fit(redis_url: str, tiny: Path, tmp_path: Path, prepare_processes: int) -> None:
    model = tiny_models.build("classifier", tiny)
    settings = config(tmp_path, model, int(2.5 * weight_bytes(model)))
    with (
        Client(redis_url) as client,
        worker(tmp_path, redis_url, "--config", settings, prepare_processes=prepare_processes) as process,
    ):
        process.wait_ready(client, *NAMES)
        began, ids, seen = time.monotonic(), list[str](), set[str]()
        while (now := time.monotonic()) - began < WORK_S:
            for name in NAMES:
                ids += client.submit_many(name, [f"the fox {at}" for at in range(5)])
            seen |= {queue.pipeline for queue in client.queues() if queue.loading}
            time.sleep(max(0.0, now + 0.5 - time.monotonic()))
        statuses = [client.wait(one, timeout_s=120) for one in ids]
        took_s = time.monotonic() - began
        assert {one.state for one in statuses} == {State.SUCCEEDED}, process.text()[-5000:]
        # One model behind all three: whoever ran without weights, or with another's, would not agree.
        texts = [f"the fox {at}" for at in range(5)]
        want = [client.result(one, timeout_s=60) for one in client.submit_many("first", texts)]
        for at, status in enumerate(statuses):
            assert_same(status.result, want[at % 5])
        again = process.text().count(" again")
        # Each of the two that are loaded makes room once in that time; at first and at last they have no work.
        assert 1 <= again <= 2 * took_s / STAY_S + 3, process.text()[-5000:]
        assert seen
        assert "starting another one" not in process.text()


def test_a_pipeline_that_never_fits_stops_the_start(redis_url: str, tiny: Path, tmp_path: Path) -> None:
    model = tiny_models.build("classifier", tiny)
    settings = config(tmp_path, model, weight_bytes(model) // 2)
    with worker(tmp_path, redis_url, "--config", settings) as process:
        assert process.process.wait(120) != 0
        assert "max_loaded_bytes" in process.text()
        assert "'first'" in process.text()
