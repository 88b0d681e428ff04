"""Unloaded latency: one text at a time through the queue, against a direct call of transformers' pipeline.

The queue's time runs from the submit until the result is in the caller's hands. Both arms take turns within a round,
text by text, so that they meet the same machine.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeq import Client
from pipeq.demo.embedded import valkey

from benchmarks import workers
from benchmarks.report import Options, Ratio, Result

PIPELINE = "text-classification"
TEXT = "the queue was not here " * 4
MOST_CALLS = 500


def one_round(client: Client, pipe: Any, calls: int) -> tuple[list[float], list[float]]:
    """Returns the milliseconds of each direct call, and of each task."""
    direct, queue = [], []
    for _ in range(calls):
        began = time.perf_counter()
        pipe(TEXT)
        direct.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        client.result(client.submit(PIPELINE, TEXT, check=False), timeout_s=workers.WAIT_S)
        queue.append((time.perf_counter() - began) * 1000)
    return direct, queue


def main(options: Options) -> list[Result]:
    """Runs all rounds."""
    found: dict[str, list[float]] = {"direct call": [], "queue": [], "queue, 95th percentile": []}
    with tempfile.TemporaryDirectory() as name, valkey() as url:
        folder = workers.classifier(Path(name))
        pipe = workers.plain_pipeline(folder)
        with (
            workers.worker(url, f'[pipelines.{PIPELINE}]\nmodel = "{folder}"\n') as process,
            Client(url) as client,
        ):
            workers.wait_ready(client, PIPELINE, [process])
            direct, queue = one_round(client, pipe, 10)
            both_s = (statistics.median(direct) + statistics.median(queue)) / 1000
            calls = workers.as_many_as(1 / both_s, options.seconds, 20, MOST_CALLS)
            for _ in range(options.rounds):
                direct, queue = one_round(client, pipe, calls)
                found["direct call"].append(statistics.median(direct))
                found["queue"].append(statistics.median(queue))
                found["queue, 95th percentile"].append(statistics.quantiles(queue, n=20)[-1])
    more = [one - other for one, other in zip(found["queue"], found["direct call"], strict=True)]
    return [
        Result(
            "f",
            "Unloaded latency, MiniLM",
            "ms (median of a round)",
            found,
            [Ratio("queue - direct call", more, "<= 6", " ms")],
            f"{calls} texts of 20 words a round, one at a time; one torch thread in each arm.",
        )
    ]
