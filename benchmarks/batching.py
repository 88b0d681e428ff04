"""Texts of log-normal length, MiniLM: the queue, the plain loop at 1, 8 and 32, and a global sort as the limit.

All arms run the same classifier on one torch thread, never at the same time. The queue's time runs from the first
submit to the last result, so it includes Redis, JSON and Celery; that of the others includes none of them. The global
sort knows all texts beforehand, sorts them by length, and uses the best of several budgets of padded tokens. With the
linear layers that the worker takes it is the limit: no queue can do better than that. With torch's own it shows how
much of the queue's speed comes from choosing batches, and how much from the layers.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeq import Client
from pipeq.demo.embedded import valkey

from benchmarks import workers
from benchmarks.report import Options, Result, against, alternate, best

MOST_TEXTS = 2000
MEDIAN_WORDS = 20
SIGMA = 1.0
#: Longest text, in words: the model takes 512 tokens, and each word here is one token.
MOST_WORDS = 480
BATCH_SIZES = (1, 8, 32)
BUDGETS = (512, 1024, 2048, 4096)
GPU_BUDGETS = (4096, 16384, 65536)
PIPELINE = "text-classification"
LIMIT = "global sort, the worker's layers"


def texts(count: int, seed: int = 0) -> list[str]:
    """Makes texts of whole words with a log-normal number of words: median 20, sigma 1, cut at the model's limit."""
    rng = random.Random(seed)
    words = (
        "the of and to in a is that for it as was with be by on not he his but at are this have from or had"
    ).split()
    lengths = [min(MOST_WORDS, max(1, round(rng.lognormvariate(0, SIGMA) * MEDIAN_WORDS))) for _ in range(count)]
    return [" ".join(rng.choices(words, k=length)) for length in lengths]


def budgets(options: Options) -> tuple[int, ...]:
    """Budgets of padded tokens, one of which is the best for the device."""
    return GPU_BUDGETS if options.is_gpu else BUDGETS


def sorted_batches(pipe: Any, inputs: Sequence[str], budget: int) -> list[list[str]]:
    """Batches of neighbours by length, each of at most ``budget`` padded tokens."""
    lengths = [len(ids) for ids in pipe.tokenizer(list(inputs))["input_ids"]]
    batches: list[list[str]] = [[]]
    for length, text in sorted(zip(lengths, inputs, strict=True)):
        if batches[-1] and length * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(text)
    return batches


def run_sorted(pipe: Any, inputs: Sequence[str], budget: int) -> float:
    """Runs the limit; the sorting is in its time. Returns items a second."""
    began = time.perf_counter()
    for batch in sorted_batches(pipe, inputs, budget):
        pipe(batch, batch_size=len(batch))
    return len(inputs) / (time.perf_counter() - began)


def main(options: Options) -> list[Result]:
    """Runs all arms in turn."""
    with tempfile.TemporaryDirectory() as name, valkey() as url:
        folder = workers.classifier(Path(name))
        pipe, limit = workers.plain_pipeline(folder), workers.plain_pipeline(folder, layers=True)
        config = f'[pipelines.{PIPELINE}]\nmodel = "{folder}"\n'
        with workers.worker(url, config) as process, Client(url) as client:
            workers.wait_ready(client, PIPELINE, [process])
            some = texts(2000 if options.is_gpu else 100, seed=1)
            workers.run(client, PIPELINE, some)
            rates = {budget: run_sorted(limit, some, budget) for budget in budgets(options)}
            budget = max(rates, key=lambda one: rates[one])
            # The slowest arm takes nine times as long as this one, and there are six arms.
            inputs = texts(workers.as_many_as(rates[budget], options.seconds / 5, 100, MOST_TEXTS))
            plain: dict[str, Callable[[], float]] = {
                f"plain loop, {size}": partial(workers.run_plain, pipe, inputs, size) for size in BATCH_SIZES
            }
            arms: dict[str, Callable[[], float]] = {
                **plain,
                f"global sort, {budget} tokens": partial(run_sorted, pipe, inputs, budget),
                LIMIT: partial(run_sorted, limit, inputs, budget),
                "queue": partial(workers.run, client, PIPELINE, inputs),
            }
            found = alternate(arms, options.rounds)
    best_plain = best({name: found[name] for name in plain})
    return [
        Result(
            "a",
            "Texts of log-normal length, MiniLM",
            "texts/s",
            found,
            [
                against("queue / best plain loop", found["queue"], best_plain, ">= 1.6"),
                against("queue / global sort with the worker's layers", found["queue"], found[LIMIT], ">= 0.85"),
            ],
            f"{len(inputs)} texts, median {MEDIAN_WORDS} words, sigma {SIGMA:g}, at most {MOST_WORDS}; one torch "
            "thread in each arm. The queue's time includes Redis, JSON and Celery.",
        )
    ]
