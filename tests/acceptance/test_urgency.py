"""Who comes first, with real workers on a simulated device: urgent tasks, tenants, and pipelines with weights."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from statistics import median

import pytest
from celery import Celery
from pipeq import Client, TaskStatus

from tests.worker_process import worker

#: Seconds that the simulated device takes for a batch of four.
BATCH_S = 0.05
PIPELINE = """
[pipelines.{name}]
task = "constant"
max_batch_size = 4
weight = {weight}
params = {{ seconds = {seconds} }}
"""


def config(folder: Path, *pipelines: tuple[str, float, float]) -> Path:
    path = folder / "pipelines.toml"
    parts = (PIPELINE.format(name=name, seconds=seconds, weight=weight) for name, seconds, weight in pipelines)
    path.write_text("drain_s = 0\n" + "".join(parts))
    return path


def took_s(client: Client, pipeline: str, **options: object) -> float:
    began = time.monotonic()
    client.result(client.submit(pipeline, 0, **options), timeout_s=60)  # type: ignore[arg-type]
    return time.monotonic() - began


def test_urgent_tasks_do_not_wait_for_bulk(redis_url: str, tmp_path: Path) -> None:
    with (
        worker(tmp_path, redis_url, "--config", config(tmp_path, ("slow", BATCH_S, 1))) as process,
        Client(redis_url) as client,
    ):
        process.wait_ready(client, "slow")
        bulk = client.submit_many("slow", range(1000), priority=9)
        time.sleep(1)
        times = [took_s(client, "slow", priority=0) for _ in range(5)]
        # Half a minute of bulk lies before them; five batches take 0.25 s.
        assert median(times) < 10 * BATCH_S, times
        # A nearer deadline goes before bulk of the same priority.
        times = [took_s(client, "slow", priority=9, deadline_s=0.1) for _ in range(3)]
        assert median(times) < 5, times
        done = [status for status in client.status_many(bulk) if status.is_final]
        assert 20 < len(done) < 1000


def test_a_tenants_task_does_not_wait_for_anothers_20_000(redis_url: str, tmp_path: Path) -> None:
    """Those of one client of ours, and those of a stock Celery app."""
    with (
        worker(tmp_path, redis_url, "--config", config(tmp_path, ("slow", BATCH_S, 1))) as process,
        Client(redis_url) as client,
    ):
        process.wait_ready(client, "slow")
        client.submit_many("slow", range(20_000), fair_key="big", priority=0)
        time.sleep(1)
        assert took_s(client, "slow", fair_key="small") < 3
        app = Celery("stock", broker=redis_url, backend=redis_url, set_as_current=False)
        began = time.monotonic()
        headers, message = {"fair_key": "stock"}, {"pipeline": "slow", "inputs": 0}
        assert app.send_task("pipeq.infer", kwargs=message, queue="slow", headers=headers).get(timeout=30) == "constant"
        assert time.monotonic() - began < 3
        [queue] = client.queues()
        assert 15_000 < queue.depth + queue.in_flight < 20_000


@pytest.mark.parametrize(("weights", "share"), [((1, 1), 0.5), ((3, 1), 0.75)])
def test_pipelines_share_the_device_by_weight(
    redis_url: str, tmp_path: Path, weights: tuple[float, float], share: float
) -> None:
    """The slow one was there first, and takes five times as long for a batch."""
    path = config(tmp_path, ("slow", 0.2, weights[0]), ("fast", 0.04, weights[1]))
    with worker(tmp_path, redis_url, "--config", path) as process, Client(redis_url) as client:
        process.wait_ready(client, "slow", "fast")
        slow = client.submit_many("slow", range(400), priority=0)
        time.sleep(1)
        fast = client.submit_many("fast", range(2000), priority=0)
        time.sleep(8)
        began = time.time() - 6

        def seconds(ids: list[str], batch_s: float) -> float:
            ended = [one for one in client.status_many(ids) if ended_after(one, began)]
            return sum(batch_s / one.batch.size for one in ended if one.batch)

        spent = Counter({"slow": seconds(slow, 0.2), "fast": seconds(fast, 0.04)})  # type: ignore[call-overload]
        assert spent.total() > 2, spent
        assert spent["slow"] / spent.total() == pytest.approx(share, abs=0.12), spent


def ended_after(status: TaskStatus, moment: float) -> bool:
    return status.is_final and status.finished_at is not None and status.finished_at > moment
