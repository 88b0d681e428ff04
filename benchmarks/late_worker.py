"""60 tasks of half a second, and a second worker that starts late: the time until all are done, against the ideal.

The first worker must not hoard. The ideal is that each works without a pause from the moment at which it is ready: half
of what the first one would need alone, and half of the time by which the second one is late.
"""

from __future__ import annotations

import sys
import time

from pipeq import Client
from pipeq.demo.embedded import valkey

from benchmarks import workers
from benchmarks.report import Options, Ratio, Result

TASKS = 60
TASK_S = 0.5
#: The second worker is started so much later, in seconds; it is ready some seconds after that.
LATE_S = 3.0
CONFIG = f'[pipelines.slow]\ntask = "constant"\nmax_batch_size = 1\nparams = {{ seconds = {TASK_S} }}\n'


def one_round() -> tuple[float, float, float]:
    """Returns the time until all tasks are done, the ideal, and the share of the second worker."""
    with valkey() as url, Client(url) as client, workers.worker(url, CONFIG) as first:
        workers.wait_ready(client, "slow", [first])
        began = time.time()
        ids = client.submit_many("slow", range(TASKS), check=False)
        time.sleep(LATE_S)
        with workers.worker(url, CONFIG) as second:
            workers.wait_ready(client, "slow", [first, second])
            ready = time.time()
            statuses = list(client.as_completed(ids, timeout_s=workers.WAIT_S))
        if failed := [one for one in statuses if one.error]:
            sys.exit(f"{len(failed)} tasks failed, for instance: {failed[0].error}")
        ended = max(one.finished_at or 0 for one in statuses)
        names = [one.worker for one in statuses]
        share = 1 - max(names.count(name) for name in set(names)) / TASKS
        return ended - began, (TASKS * TASK_S + ready - began) / 2, share


def main(options: Options) -> list[Result]:
    """Runs all rounds. A round takes about 20 s, and cannot be made shorter."""
    rounds = [one_round() for _ in range(options.rounds)]

    spans, ideals, shares = ([one[at] for one in rounds] for at in range(3))
    return [
        Result(
            "g",
            "60 tasks of 0.5 s, and a second worker that starts late",
            "s until all are done",
            {"the ideal": ideals, "two workers": spans},
            [
                Ratio("makespan / ideal", [one / other for one, other in zip(spans, ideals, strict=True)], "<= 1.15"),
                Ratio("share of the worker with fewer tasks", shares),
            ],
            f"Batches of one. The second worker is started {LATE_S:g} s after the submit, and counts from when "
            "it is ready.",
        )
    ]
