"""Texts of one length, a small model: the queue against the plain loop at 32. There is nothing to win by choosing.

What is left is what the queue costs: with a small model that is the most that it can cost. The model has 4 layers of
width 128 and random weights.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from pipeq import Client
from pipeq.demo.embedded import valkey

from benchmarks import workers
from benchmarks.report import Options, Result, against, alternate

BATCH_SIZE = 32
WORDS = 30
MOST_TEXTS = 8000
LAYERS, WIDTH = 4, 128
PIPELINE = "text-classification"
WITH_LAYERS = "plain loop, the worker's layers"


def texts(count: int) -> list[str]:
    """Makes texts of :data:`WORDS` words, each of which is one token."""
    return [" ".join(["the queue was not here"] * (WORDS // 5))] * count


def config(folder: Path) -> str:
    """The settings of the worker: batches as large as those of the plain loop."""
    return f'[pipelines.{PIPELINE}]\nmodel = "{folder}"\nmax_batch_size = {BATCH_SIZE}\n'


def main(options: Options) -> list[Result]:
    """Runs both arms in turn."""
    with tempfile.TemporaryDirectory() as name, valkey() as url:
        folder = workers.classifier(Path(name), layers=LAYERS, width=WIDTH)
        pipe, quick = workers.plain_pipeline(folder), workers.plain_pipeline(folder, layers=True)
        with workers.worker(url, config(folder)) as process, Client(url) as client:
            workers.wait_ready(client, PIPELINE, [process])
            rate = workers.run_plain(pipe, texts(256), BATCH_SIZE)
            workers.run(client, PIPELINE, texts(256))
            inputs = texts(workers.as_many_as(rate, options.seconds, 500, MOST_TEXTS))
            found = alternate(
                {
                    f"plain loop, {BATCH_SIZE}": partial(workers.run_plain, pipe, inputs, BATCH_SIZE),
                    WITH_LAYERS: partial(workers.run_plain, quick, inputs, BATCH_SIZE),
                    "queue": partial(workers.run, client, PIPELINE, inputs),
                },
                options.rounds,
            )
    return [
        Result(
            "b",
            "Texts of one length, a small model",
            "texts/s",
            found,
            [
                against("queue / plain loop", found["queue"], found[f"plain loop, {BATCH_SIZE}"], ">= 0.95"),
                against("queue / plain loop with the worker's layers", found["queue"], found[WITH_LAYERS], ""),
            ],
            f"{len(inputs)} texts of {WORDS} words; {LAYERS} layers of width {WIDTH}; one torch thread in each arm.",
        )
    ]
