"""Workers share the tasks of a pipeline: each holds little, and gives what it has not begun to those that have none.

The tests take the workers over from each other, in their order.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from pipeq import Client, State, TaskStatus
from pipeq.contract import keys
from pipeq.demo import embedded

from tests.worker_process import WorkerProcess, worker

CONFIG = '[pipelines.constant]\ntask = "constant"\nmax_batch_size = 1\nmax_wait_ms = 0\n'


class Fleet:
    """Workers of one Valkey that run one task at a time."""

    def __init__(self, folder: Path, url: str, stack: ExitStack) -> None:
        self._folder, self._url, self._stack = folder, url, stack
        self.client = stack.enter_context(Client(url))
        self._db = stack.enter_context(redis.Redis.from_url(url))
        self._config = folder / "pipelines.toml"
        self._config.write_text(CONFIG)
        #: The workers that run, the first one first, and their settings.
        self._running: list[tuple[WorkerProcess, dict[str, object]]] = []

    def has(self, *wanted: dict[str, object]) -> list[WorkerProcess]:
        """Has exactly workers with these settings; those that run already stay. Waits until all serve."""
        keep = 0
        for (_, settings), wants in zip(self._running, wanted, strict=False):
            if settings != wants:
                break
            keep += 1
        for process, _ in self._running[keep:]:
            process.stop()
        del self._running[keep:]
        for settings in wanted[keep:]:
            process = worker(self._folder, self._url, "--config", self._config, **settings)
            self._running.append((self._stack.enter_context(process), settings))
        self.until(lambda: sum(queue.workers for queue in self.client.queues()) == len(wanted))
        return [process for process, _ in self._running]

    def kill(self, process: WorkerProcess) -> None:
        process.process.kill()
        process.process.wait()
        self._running = [one for one in self._running if one[0] is not process]

    def until(self, condition: object, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def submit(self, number: int, seconds: float) -> list[str]:
        return self.client.submit_many("constant", ["x"] * number, params={"seconds": seconds}, priority=0)

    def leased(self) -> int:
        return int(self._db.hlen(keys.UNACKED))

    def marks(self) -> int:
        return int(self._db.zcard(keys.idle_key("constant")))

    def results(self, ids: list[str]) -> list[TaskStatus]:
        """Waits for tasks. Each must have succeeded in its first attempt."""
        found = [self.client.wait(one, 120) for one in ids]
        assert {(one.state, one.attempts) for one in found} == {(State.SUCCEEDED, 1)}
        return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with embedded.valkey() as url, ExitStack() as stack:
        yield Fleet(tmp_path_factory.mktemp("fleet"), url, stack)


def shares(results: list[TaskStatus]) -> list[int]:
    """The number of tasks of each worker, largest first."""
    return [number for _, number in Counter(one.worker for one in results).most_common()]


#: Settings of a worker that believes that it will be quick, so that it takes all; of one whose leases lapse soon.
HOARDS, SOON = {"prefetch_s": 1000}, {"lease_s": 2, "sweep_s": 0.5}


@pytest.mark.timeout(300)
def test_a_late_second_worker_gets_its_share(fleet: Fleet) -> None:
    # On a busy machine a worker takes long to start: one that comes when most is done shows nothing.
    for number in (60, 180):
        fleet.has({})
        began = time.time()
        ids = fleet.submit(number, 0.5)
        fleet.has({}, {})
        late_s = time.time() - began
        results = fleet.results(ids)
        if late_s < number * 0.5 / 2:
            break
    makespan_s = max(one.finished_at or 0 for one in results) - began
    # On a busy machine a task takes longer than it was to.
    each_s = sum((one.timing_ms or {})["infer"] for one in results) / 1000 / len(results)
    ideal_s = (number * each_s + late_s) / 2
    first, second = shares(results)
    print(f"late by {late_s:.1f} s: shares {first} and {second}, {makespan_s:.1f} s, ideal {ideal_s:.1f} s")
    assert second >= 0.7 * (ideal_s - late_s) / each_s
    assert makespan_s / ideal_s < 1.3


@pytest.mark.timeout(300)
def test_many_idle_workers_and_one_task_after_the_other(fleet: Fleet) -> None:
    """What is being worked on stays where it is, and nothing is handed to and fro."""
    fleet.has({}, {}, {})
    ids, seconds = [], 0.8
    for _ in range(20):
        ids += fleet.submit(1, seconds)
        time.sleep(seconds / 2)
    results = fleet.results(ids)
    waited_s = sorted((one.started_at or 0) - (one.submitted_at or 0) for one in results)
    print(f"shares {shares(results)}, waited {waited_s[len(ids) // 2]:.3f} s, at most {waited_s[-1]:.3f} s")
    # Two of three workers are always busy, so a task that waits for another one went to the wrong worker.
    assert waited_s[len(ids) // 2] < seconds / 3
    assert waited_s[-1] < seconds


@pytest.mark.timeout(300)
def test_what_was_hoarded_is_given_back(fleet: Fleet) -> None:
    """Also if a worker holds everything, because it believed that it would be quick."""
    hoards = {**HOARDS, **SOON}
    fleet.has(hoards)
    fleet.results(fleet.submit(3, 0.01))
    ids = fleet.submit(150, 0.3)
    fleet.until(lambda: fleet.leased() > 140, 20)
    fleet.has(hoards, {}, {})
    left = sum(one.state is State.QUEUED for one in fleet.client.status_many(ids))
    results = fleet.results(ids)
    print(f"{left} were left when the other two came: shares {shares(results)}")
    assert len(shares(results)) == 3
    assert sum(shares(results)[1:]) >= 0.4 * left
    # Nobody has work any more, and everybody has said so.
    fleet.until(lambda: fleet.marks() == 3, 10)
    assert fleet.leased() == 0


@pytest.mark.timeout(300)
def test_a_dead_workers_tasks_do_not_all_go_to_one_survivor(fleet: Fleet) -> None:
    (victim,) = fleet.has({**HOARDS, **SOON})
    fleet.results(fleet.submit(3, 0.01))
    ids = fleet.submit(40, 1)
    fleet.until(lambda: fleet.leased() >= 40, 20)
    fleet.kill(victim)
    fleet.has(SOON, SOON)
    found = [fleet.client.wait(one, 120) for one in ids]
    assert {one.state for one in found} == {State.SUCCEEDED}
    rest = shares([one for one in found if one.attempts == 1])
    print(f"shares {rest}")
    assert len(rest) == 2
    assert min(rest) >= 0.3 * sum(rest)
