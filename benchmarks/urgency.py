"""An urgent task among 2,000 of bulk, and one tenant's task among another's 20,000, against a task on an idle worker.

The simulated device takes 50 ms for a batch of four, so the bulk takes half a minute, and the tenant's tasks four. The
time runs from the submit of the one task until its result is in the caller's hands. Each part has a worker of its own,
which is stopped when its round is over.
"""

from __future__ import annotations

import time

from pipeq import Client
from pipeq.demo.embedded import valkey

from benchmarks import workers
from benchmarks.report import Options, Ratio, Result

BATCH_S = 0.05
BULK = 2_000
TENANT = 20_000
PIPELINE = "slow"
CONFIG = f'[pipelines.{PIPELINE}]\ntask = "constant"\nmax_batch_size = 4\nparams = {{ seconds = {BATCH_S} }}\n'
#: How long the worker is left with the others' tasks before the one comes, in seconds.
BEFORE_S = 1.5


def _seconds(client: Client, **options: object) -> float:
    began = time.perf_counter()
    client.result(client.submit(PIPELINE, 0, check=False, **options), timeout_s=workers.WAIT_S)  # type: ignore[arg-type]
    return time.perf_counter() - began


def one_round(others: int, bulk: dict[str, object], one: dict[str, object]) -> tuple[float, float]:
    """Returns the seconds of one task on the idle worker (of five, the middle one), and among others."""
    with valkey() as url, Client(url) as client, workers.worker(url, "drain_s = 0\n" + CONFIG) as process:
        workers.wait_ready(client, PIPELINE, [process])
        idle = sorted(_seconds(client) for _ in range(5))[2]
        client.submit_many(PIPELINE, range(others), check=False, **{"priority": 0, **bulk})  # type: ignore[arg-type]
        time.sleep(BEFORE_S)
        return idle, _seconds(client, **one)


def main(options: Options) -> list[Result]:
    """Runs all rounds. A round takes about 30 s, most of it for starting workers and for submitting."""
    urgent = [one_round(BULK, {"priority": 9}, {"priority": 0}) for _ in range(options.rounds)]
    tenant = [one_round(TENANT, {"fair_key": "big"}, {"fair_key": "small"}) for _ in range(options.rounds)]
    return [
        Result(
            "h",
            "An urgent task among bulk, and a tenant's task among another's",
            "s until the task's result",
            {
                "on an idle worker": [idle for idle, _ in urgent],
                f"urgent, among {BULK:,}": [among for _, among in urgent],
                f"a tenant's, among {TENANT:,}": [among for _, among in tenant],
            },
            [
                Ratio("urgent: batches that it took", [among / BATCH_S for _, among in urgent], "<= 5"),
                Ratio("tenant: seconds", [among for _, among in tenant], "<= 3", " s"),
                Ratio("urgent / idle", [among / idle for idle, among in urgent]),
            ],
            f"A simulated device, {BATCH_S * 1000:g} ms for a batch of 4. The one task comes {BEFORE_S:g} s after the "
            "others.",
        )
    ]
