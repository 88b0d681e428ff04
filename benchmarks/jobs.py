"""Rows of a job: `constant` against single tasks, and MiniLM against a global sort.

A job's time runs from the beginning of its submit, which reads the rows, to the end of its last row; that of single
tasks from the first submit to the last result. On `constant` a row costs only its way through the worker.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeq import Client
from pipeq.demo.embedded import valkey

from benchmarks import workers
from benchmarks.batching import MOST_TEXTS, PIPELINE, budgets, run_sorted, texts
from benchmarks.report import Options, Result, against, alternate

#: Single tasks, and rows, for each second that an arm is to run.
TASKS_A_SECOND, ROWS_A_SECOND = 700, 8000


def run_job(client: Client, pipeline: str, inputs: Sequence[str]) -> float:
    """Runs a job. Returns rows a second."""
    began = time.perf_counter()
    status = client.jobs.wait(client.jobs.submit(pipeline, inputs))
    assert (status.succeeded, status.failed) == (len(inputs), 0), status
    return len(inputs) / (time.perf_counter() - began)


def constant(options: Options) -> list[Result]:
    """Rows against single tasks, on a pipeline that computes nothing."""
    with valkey() as url, workers.worker(url, "[pipelines.constant]\n") as process, Client(url) as client:
        workers.wait_ready(client, "constant", [process])
        run_job(client, "constant", ["warm up"] * 2000)
        single = ["a text of a few words"] * int(TASKS_A_SECOND * options.seconds)
        rows = ["a text of a few words"] * int(ROWS_A_SECOND * options.seconds)
        found = alternate(
            {
                "single tasks": partial(workers.run, client, "constant", single),
                "rows of a job": partial(run_job, client, "constant", rows),
            },
            options.rounds,
        )
    return [
        Result(
            "l",
            "Rows of a job, `constant`",
            "rows/s",
            found,
            [against("rows of a job / single tasks", found["rows of a job"], found["single tasks"], ">= 10")],
            f"{len(single)} tasks, {len(rows)} rows; from the beginning of the submit to the last result.",
        )
    ]


def minilm(options: Options) -> list[Result]:
    """Rows against a sort of all texts by length, the best that is possible."""
    with tempfile.TemporaryDirectory() as name, valkey() as url:
        folder = workers.classifier(Path(name))
        pipe = workers.plain_pipeline(folder, layers=True)
        config = f'[pipelines.{PIPELINE}]\nmodel = "{folder}"\n'
        with workers.worker(url, config) as process, Client(url) as client:
            workers.wait_ready(client, PIPELINE, [process])
            some = texts(2000 if options.is_gpu else 100, seed=1)
            run_job(client, PIPELINE, some)
            rates = {budget: run_sorted(pipe, some, budget) for budget in budgets(options)}
            budget = max(rates, key=lambda one: rates[one])
            inputs = texts(workers.as_many_as(rates[budget], options.seconds, 100, MOST_TEXTS))
            limit = f"global sort, {budget} tokens"
            found = alternate(
                {
                    limit: partial(run_sorted, pipe, inputs, budget),
                    "rows of a job": partial(run_job, client, PIPELINE, inputs),
                },
                options.rounds,
            )
    return [
        Result(
            "m",
            "Rows of a job, MiniLM",
            "rows/s",
            found,
            [against("rows of a job / global sort", found["rows of a job"], found[limit], ">= 0.95")],
            f"{len(inputs)} texts as in (a); the sort with the worker's linear layers. The job's time has reading, "
            "Redis and JSON in it.",
        )
    ]
