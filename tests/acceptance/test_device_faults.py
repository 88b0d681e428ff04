"""Faults of a GPU, through a real device process: a fake raises what torch raises, where torch raises it.

No machine of the tests has a GPU. In the device process a ``sitecustomize`` module puts the fake around the forward
pass of a tiny classifier: it has too little memory for large batches, or one input breaks the CUDA context, after which
every call fails, whoever makes it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pipeq import Client, State
from transformers import AutoTokenizer

from tests import tiny_models
from tests.worker_process import WorkerProcess, worker

PIPELINE = "text-classification"
#: An input with this word breaks the context.
WORD = "fox"
FAKE = """
import sys

if "pipeq_worker.children.main" in sys.orig_argv:
    import os
    import torch
    import transformers

    real = transformers.BertForSequenceClassification.forward
    broken = []

    def forward(self, input_ids=None, **more):
        if not broken and (input_ids == int(os.environ["BREAKS"])).any():
            broken.append(eval(os.environ["FAULT"]))
        if broken:
            raise broken[0]
        if input_ids.numel() > int(os.environ.get("FITS", 10**9)):
            raise eval(os.environ["FULL"])
        return real(self, input_ids=input_ids, **more)

    transformers.BertForSequenceClassification.forward = forward
"""
#: What torch says when a kernel has failed.
HINTS = "CUDA kernel errors might be asynchronously reported at some other API call"
STICKY = [
    f'torch.AcceleratorError("CUDA error: device-side assert triggered\\n{HINTS}")',
    f'RuntimeError("CUDA error: an illegal memory access was encountered\\n{HINTS}")',
]
FULL = [
    'torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.")',
    'torch.AcceleratorError("CUDA error: out of memory")',
    'RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")',
]


@contextmanager
def serving(folder: Path, redis_url: str, tiny: Path, **env: Any) -> Iterator[tuple[WorkerProcess, Client]]:
    (folder / "sitecustomize.py").write_text(FAKE)
    model = tiny_models.build("classifier", tiny)
    breaks = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(WORD)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    with (
        Client(redis_url) as client,
        worker(
            folder, redis_url, f"{PIPELINE}={model}", PYTHONPATH=path, BREAKS=breaks, log_format="json", **env
        ) as process,
    ):
        process.wait_ready(client, PIPELINE)
        yield process, client


def logged(process: WorkerProcess, action: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in process.text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("action") == action]


def memory_limits(client: Client) -> list[float]:
    """What is known of the most that fits into a batch."""
    found = [costs.get("memory_limit") for queue in client.queues() for costs in queue.costs.values()]
    return [limit for limit in found if limit is not None]


@pytest.mark.parametrize("error", FULL, ids=["torch", "driver", "cublas"])
def test_too_little_memory_halves_batches_and_teaches_a_limit(
    redis_url: str, tiny: Path, tmp_path: Path, error: str
) -> None:
    texts = ["the dog " * (2 + at % 10) for at in range(600)]
    with serving(tmp_path, redis_url, tiny, FULL=error, FITS=400) as (process, client):
        ids = client.submit_many(PIPELINE, texts)
        statuses = [client.wait(one, timeout_s=120) for one in ids]
        assert {one.state for one in statuses} == {State.SUCCEEDED}, process.text()[-5000:]
        assert max(one.attempts for one in statuses) == 1
        # The batches that lay ready when the first one failed are halved, too; those after them fit.
        halved = len(logged(process, "split"))
        assert 1 <= halved <= 12
        # The worker says it with its next heartbeat.
        deadline = time.monotonic() + 30
        while not (limits := memory_limits(client)):
            assert time.monotonic() < deadline, client.queues()
            time.sleep(0.1)
        assert max(limits) <= 400
        again = [client.wait(one, timeout_s=120) for one in client.submit_many(PIPELINE, texts)]
        assert {one.state for one in again} == {State.SUCCEEDED}
        assert len(logged(process, "split")) <= halved + 1
        assert logged(process, "child_died") == []


@pytest.mark.parametrize("error", STICKY, ids=["assert", "access"])
def test_a_fault_that_stays_ends_the_process_and_its_cause_goes_alone(
    redis_url: str, tiny: Path, tmp_path: Path, error: str
) -> None:
    with serving(tmp_path, redis_url, tiny, FAULT=error, max_deaths=2) as (process, client):
        good = client.submit_many(PIPELINE, ["the dog"] * 40)
        bad = client.submit(PIPELINE, f"the {WORD}")
        good += client.submit_many(PIPELINE, ["the dog"] * 40)
        status = client.wait(bad, timeout_s=120)
        assert status.error is not None, process.text()[-5000:]
        assert status.error.code == "worker_lost"
        statuses = [client.wait(one, timeout_s=120) for one in good]
        assert {one.state for one in statuses} == {State.SUCCEEDED}, process.text()[-5000:]
        assert max(one.attempts for one in statuses) <= 2
        deaths = logged(process, "child_died")
        assert len(deaths) == 2
        assert all(re.search("the device is beyond use: .*CUDA error", one["message"]) for one in deaths)
        # The second time it was alone.
        assert deaths[1]["tasks"] == [bad]
        assert process.text().count("ready: serving") == 1
