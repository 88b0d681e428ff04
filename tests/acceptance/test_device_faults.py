"""Faults of a GPU, through a real device process: a fake raises what torch raises, where torch raises it.

No machine of the tests has a GPU. In the device process a ``sitecustomize`` module puts the fake around the forward
pass of a tiny classifier: it has too little memory for large batches, or one input breaks the CUDA context, after which
every call fails, whoever makes it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pipeq import Client, State
from pipeq.demo import embedded
from pipeq_worker.schedule.memory_limit import CREEP
from transformers import AutoTokenizer

from tests import tiny_models
from tests.worker_process import WorkerProcess, worker

#: The pipeline whose context breaks.
BREAKS = "breaks"
#: A batch of more tokens than this does not fit.
FITS = 400
#: What is asked of a batch at most, so that halving it once is enough.
LARGEST = 2 * FITS
FAKE = """
import sys

if "pipeq_worker.children.main" in sys.orig_argv:
    import json, os, time
    import torch
    import transformers

    real = transformers.BertForSequenceClassification.forward
    stays = {int(token): error for token, error in json.loads(os.environ["STAYS"]).items()}
    full = json.loads(os.environ["FULL"])
    broken = []

    def forward(self, input_ids=None, **more):
        while os.path.exists(os.environ["HOLD"]):
            time.sleep(0.01)
        # Each pipeline has a folder of its own.
        name = os.path.basename(self.config._name_or_path)
        if not broken and name == os.environ["BREAKS"]:
            broken.extend(eval(error) for token, error in stays.items() if (input_ids == token).any())
        if broken:
            raise broken[0]
        if name in full and input_ids.numel() > int(os.environ["FITS"]):
            raise eval(full[name])
        return real(self, input_ids=input_ids, **more)

    transformers.BertForSequenceClassification.forward = forward
"""
#: While this file exists, the device stays at its batch, and those behind it gather.
HOLD = "hold"
#: What torch says when a kernel has failed.
HINTS = "CUDA kernel errors might be asynchronously reported at some other API call"
#: A word of an input, one token -> the error from which on the context is broken.
STAYS = {
    "fox": f'torch.AcceleratorError("CUDA error: device-side assert triggered\\n{HINTS}")',
    "lazy": f'RuntimeError("CUDA error: an illegal memory access was encountered\\n{HINTS}")',
}
#: Pipeline -> the error when a batch does not fit.
FULL = {
    "torch": 'torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.")',
    "driver": 'torch.AcceleratorError("CUDA error: out of memory")',
    "cublas": 'RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")',
}

#: How often texts are submitted until a batch does not fit: they gather, but nobody says which were prepared in time.
ROUNDS = 10


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerProcess, Client]]:
    """One worker with a pipeline that breaks, and one for each way to say that a batch does not fit."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "sitecustomize.py").write_text(FAKE)
    model = tiny_models.build("classifier", tiny)
    sections = ["max_deaths = 2\n"]
    for name in (BREAKS, *FULL):
        shutil.copytree(model, folder / name)
        sections.append(
            f'[pipelines.{name}]\ntask = "text-classification"\nmodel = "{folder / name}"\nmax_batch_cost = {LARGEST}\n'
        )
    config = folder / "pipelines.toml"
    config.write_text("".join(sections))
    token = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids
    env = {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "BREAKS": BREAKS,
        "STAYS": json.dumps({token(word): error for word, error in STAYS.items()}),
        "FULL": json.dumps(FULL),
        "FITS": FITS,
        "HOLD": folder / HOLD,
    }
    with (
        embedded.valkey() as url,
        Client(url) as client,
        worker(folder, url, "--config", config, log_format="json", **env) as process,
    ):
        process.wait_ready(client, BREAKS, *FULL)
        yield process, client


@pytest.fixture
def logged(served: tuple[WorkerProcess, Client]) -> Callable[[str], list[dict[str, Any]]]:
    """Returns the worker's log lines about an action since the test began."""
    process, _ = served
    begin = len(process.text())

    def lines(action: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in process.text()[begin:].splitlines() if line.startswith("{")]
        return [line for line in found if line.get("action") == action]

    return lines


@contextmanager
def gathering(process: WorkerProcess, client: Client, pipeline: str) -> Iterator[None]:
    """The device waits until the worker has taken what is submitted inside, or as much as it holds, and prepared it."""
    hold = process.log.parent / HOLD
    hold.touch()
    try:
        yield
        until = time.monotonic() + 2
        while any(one.waiting for one in client.queues() if one.pipeline == pipeline) and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.2)
    finally:
        hold.unlink()


def memory_limits(client: Client, pipeline: str) -> list[float]:
    """What is known of the most that fits into a batch."""
    queues = [queue for queue in client.queues() if queue.pipeline == pipeline]
    found = [costs.get("memory_limit") for queue in queues for costs in queue.costs.values()]
    return [limit for limit in found if limit is not None]


@pytest.mark.parametrize("pipeline", ["torch", pytest.param("driver", marks=pytest.mark.long), "cublas"])
def test_too_little_memory_halves_batches_and_teaches_a_limit(
    served: tuple[WorkerProcess, Client], logged: Callable[[str], list[dict[str, Any]]], pipeline: str
) -> None:
    process, client = served
    texts = ["the dog " * (2 + at % 10) for at in range(200)]
    for _ in range(ROUNDS):
        with gathering(process, client, pipeline):
            ids = client.submit_many(pipeline, texts, priority=0)
        statuses = [client.wait(one, timeout_s=120) for one in ids]
        assert {one.state for one in statuses} == {State.SUCCEEDED}, process.text()[-5000:]
        assert max(one.attempts for one in statuses) == 1
        if logged("split"):
            break
    # The batches that lay ready when the first one failed are halved, too; those after them fit.
    halved = len(logged("split"))
    assert 1 <= halved <= 12
    # The worker says it with its next heartbeat.
    deadline = time.monotonic() + 30
    while not (limits := memory_limits(client, pipeline)):
        assert time.monotonic() < deadline, client.queues()
        time.sleep(0.1)
    # Half of what failed, and a thousandth more for each full batch that has fitted since then.
    assert max(limits) <= FITS * (1 + CREEP) ** len(texts)
    again = [client.wait(one, timeout_s=120) for one in client.submit_many(pipeline, texts, priority=0)]
    assert {one.state for one in again} == {State.SUCCEEDED}
    assert len(logged("split")) <= halved + 1
    assert logged("child_died") == []


@pytest.mark.parametrize("word", ["fox", pytest.param("lazy", marks=pytest.mark.long)])
def test_a_fault_that_stays_ends_the_process_and_its_cause_goes_alone(
    served: tuple[WorkerProcess, Client], logged: Callable[[str], list[dict[str, Any]]], word: str
) -> None:
    process, client = served
    good = client.submit_many(BREAKS, ["the dog"] * 40, priority=0)
    bad = client.submit(BREAKS, f"the {word}")
    good += client.submit_many(BREAKS, ["the dog"] * 40, priority=0)
    status = client.wait(bad, timeout_s=120)
    assert status.error is not None, process.text()[-5000:]
    assert status.error.code == "worker_lost"
    statuses = [client.wait(one, timeout_s=120) for one in good]
    assert {one.state for one in statuses} == {State.SUCCEEDED}, process.text()[-5000:]
    assert max(one.attempts for one in statuses) <= 2
    deaths = logged("child_died")
    assert len(deaths) == 2
    assert all(re.search("the device is beyond use: .*CUDA error", one["message"]) for one in deaths)
    # The second time it was alone.
    assert deaths[1]["tasks"] == [bad]
    assert process.text().count("ready: serving") == 1
