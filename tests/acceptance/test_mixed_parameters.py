"""Texts with different parameters, through many threads: each gets the answer for its own parameters.

A tokenizer that threads share truncates to another thread's length, silently. `TASKS` in the environment says how many
(`make long` takes 100,000).
"""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeq import Client
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.settings.sections import PipelineSettings

from tests import samples, tiny_models
from tests.parity import assert_same
from tests.worker_process import worker

torch.set_num_threads(1)

TASKS = int(os.environ.get("TASKS") or 1500)
#: Parameters with different lengths, and functions for the scores.
PARAMS = [
    {"truncation": True, "max_length": length, "top_k": top_k, "function_to_apply": function}
    for length, top_k, function in itertools.product((4, 7, 12, 20, 33, 64), (1, 3), ("softmax", "sigmoid"))
]


@pytest.mark.timeout(max(240, TASKS / 100))
def test_nobody_gets_the_answer_for_anothers_parameters(redis_url: str, tiny: Path, tmp_path: Path) -> None:
    model = tiny_models.build("classifier", tiny)
    texts = [" ".join(samples.texts(20)[at:][:4]) for at in range(16)]
    alone = load_pipeline("it", PipelineSettings(task="text-classification", model=str(model)), "cpu")
    want = {
        (text, at): alone.alone(text, dict(alone.merge(params).params))
        for text in texts
        for at, params in enumerate(PARAMS)
    }
    assert len({str(answer) for answer in want.values()}) > 0.7 * len(want), "the answers tell too little apart"
    rng = random.Random(0)
    wrong: list[Any] = []
    with (
        worker(tmp_path, redis_url, f"text-classification={model}", prepare_threads=8) as process,
        Client(redis_url) as client,
    ):
        process.wait_ready(client, "text-classification")
        sent: dict[str, tuple[str, int]] = {}
        while len(sent) < TASKS:
            # A few at a time, so that the window always has tasks of many kinds.
            at, some = rng.randrange(len(PARAMS)), rng.choices(texts, k=min(10, TASKS - len(sent)))
            ids = client.submit_many("text-classification", some, params=PARAMS[at])
            sent |= {task: (text, at) for task, text in zip(ids, some, strict=True)}
        for status in client.as_completed(sent, timeout_s=max(200, TASKS / 100)):
            assert status.error is None, status.error
            try:
                assert_same(status.result, want[sent[status.id]])
            except AssertionError as error:
                wrong.append((sent[status.id], str(error)))
    print(f"{len(wrong)} wrong of {TASKS}")
    assert wrong == []
