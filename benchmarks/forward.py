"""A forward pass of 32 texts in a busy worker, against the same pass alone in this process while the worker idles.

The worker's is the time of the stage ``infer`` of full batches, while it works off a full queue: what everything else
in the worker takes from the device. Alone, the pass runs through pipeq's own pipeline, and through transformers' own,
whose linear layers may be slower (docs/decisions/linear-layers.md). The model is that of the texts of one length.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeq import Client
from pipeq.demo.embedded import valkey

from benchmarks import workers
from benchmarks.one_length import BATCH_SIZE, LAYERS, PIPELINE, WIDTH, config, texts
from benchmarks.report import Options, Result, against, alternate

PLAIN = "alone, transformers"


def in_worker(client: Client, count: int) -> float:
    """Returns the median time of a full batch in the worker, in milliseconds."""
    ids = client.submit_many(PIPELINE, texts(count), check=False)
    statuses = list(client.as_completed(ids, timeout_s=workers.WAIT_S))
    found = [
        one.timing_ms["infer"]
        for one in statuses
        if one.timing_ms is not None and one.batch is not None and one.batch.size == BATCH_SIZE
    ]
    if not found:
        sys.exit("no batch was full")
    return statistics.median(found)


def alone(pipeline: Any, passes: int) -> float:
    """Returns the median time of the same pass through pipeq's own pipeline, in milliseconds."""
    call = pipeline.merge({})
    items = [prepared.features for text in texts(BATCH_SIZE) for prepared in pipeline.prepare(text, call)]
    return _median_ms(lambda: pipeline.forward(items, call), passes)


def in_transformers(pipe: Any, passes: int) -> float:
    """Returns the median time of the same pass through transformers' own pipeline, in milliseconds."""
    batch = pipe.tokenizer(texts(BATCH_SIZE), padding=True, truncation=True, return_tensors="pt")
    return _median_ms(lambda: pipe.forward(batch), passes)


def _median_ms(act: Callable[[], Any], times: int) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        found.append((time.perf_counter() - began) * 1000)
    return statistics.median(found)


def main(options: Options) -> list[Result]:
    """Runs both arms in turn."""
    from pipeq_worker.models.loading import load_pipeline
    from pipeq_worker.settings.sections import ParamLimits, PipelineSettings, S3Settings

    with tempfile.TemporaryDirectory() as name, valkey() as url:
        folder = workers.classifier(Path(name), layers=LAYERS, width=WIDTH)
        pipe = workers.plain_pipeline(folder)  # it sets one torch thread here, as in the worker
        section = PipelineSettings(model=str(folder), max_batch_size=BATCH_SIZE)
        pipeline = load_pipeline(PIPELINE, section, workers.DEVICE, S3Settings(), ParamLimits())
        with workers.worker(url, config(folder)) as process, Client(url) as client:
            workers.wait_ready(client, PIPELINE, [process])
            pass_ms = alone(pipeline, 10)
            in_worker(client, 10 * BATCH_SIZE)
            passes = workers.as_many_as(1000 / pass_ms, options.seconds / 2, 20, 400)
            found = alternate(
                {
                    "alone": partial(alone, pipeline, passes),
                    PLAIN: partial(in_transformers, pipe, passes),
                    "in the worker": partial(in_worker, client, passes * BATCH_SIZE),
                },
                options.rounds,
            )
    return [
        Result(
            "d",
            "A forward pass in the worker, against alone",
            "ms for 32 texts",
            found,
            [
                against("in the worker / alone", found["in the worker"], found["alone"], "<= 1.15"),
                against(f"in the worker / {PLAIN}", found["in the worker"], found[PLAIN], ""),
            ],
            f"{LAYERS} layers of width {WIDTH}, one torch thread; medians of about {passes} passes.",
        )
    ]
