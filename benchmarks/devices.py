"""Simulated devices, 20 ms for 32 items and 10 ms for 64: the share of the time that the queue keeps them busy.

A pass of the pipeline ``constant`` sleeps, as a device does that computes while the CPU is free. The ceiling is the
size of a batch over the time of a pass, times the number of workers. A stock Celery solo worker with no-ops runs in the
same rounds, because the ceiling of the second device is beyond what most machines can take from Redis.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from pipeq import Client
from pipeq.demo.embedded import valkey

from benchmarks import delivery, workers
from benchmarks.report import Options, Ratio, Result, alternate

#: Seconds of a pass, and size of a batch.
DEVICES = ((0.020, 32), (0.010, 64))
STOCK = "stock Celery solo, no-op"


def run(workers_at_once: int, seconds: float, size: int, for_s: float) -> float:
    """Lets fresh workers work off a full queue. Returns tasks a second."""
    config = f'[pipelines.simulated]\ntask = "constant"\nmax_batch_size = {size}\nparams = {{ seconds = {seconds} }}\n'
    with valkey() as url, ExitStack() as stack, Client(url) as client:
        processes = [stack.enter_context(workers.worker(url, config)) for _ in range(workers_at_once)]
        workers.wait_ready(client, "simulated", processes)
        workers.work_off(url, "simulated", 10 * size, processes)
        rate = workers.work_off(url, "simulated", 40 * size, processes)
        count = workers.as_many_as(rate, for_s, 40 * size, 100_000)
        return workers.work_off(url, "simulated", count, processes)


def run_stock(for_s: float) -> float:
    """Runs a stock worker with as much. Returns tasks a second."""
    count = workers.as_many_as(600, for_s, 500, 20_000)
    with valkey() as url:
        return delivery.throughput(STOCK, 0, url, url, count).values["messages/s"]


def main(options: Options) -> list[Result]:
    """Runs all devices with one and two workers, and the stock worker, in turn."""
    arms: dict[str, Callable[[], float]] = {STOCK: partial(run_stock, options.seconds / 4)}
    ceilings: dict[str, float] = {}
    for seconds, size in DEVICES:
        for count in (1, 2):
            name = f"{seconds * 1000:g} ms for {size}, {'one worker' if count == 1 else 'two workers'}"
            arms[name] = partial(run, count, seconds, size, options.seconds / 4)
            ceilings[name] = count * size / seconds
    found = alternate(arms, options.rounds)
    ratios = [
        # Only the first is asked for; what the others can reach is bounded by the no-ops that the machine can take.
        Ratio(
            f"{name}: share of {ceiling:,.0f}/s",
            [rate / ceiling for rate in found[name]],
            ">= 0.9" if name == "20 ms for 32, one worker" else "",
        )
        for name, ceiling in ceilings.items()
    ]
    return [
        Result(
            "c",
            "Simulated devices",
            "tasks/s",
            found,
            ratios,
            "The queue is full when the workers begin. 90% is asked for where stock Celery solo reaches 400 no-ops a "
            "second; the other devices take what the machine can take from Redis.",
        )
    ]
