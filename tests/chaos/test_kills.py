"""Workers are killed, stopped and continued; every task must end exactly once.

`KILLS` in the environment says how often (`make chaos KILLS=1000`).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis
from pipeq import State
from pipeq.demo import embedded

from tests.chaos.account import Account
from tests.waiting import promptly
from tests.worker_process import WorkerProcess, worker

KILLS = int(os.environ.get("KILLS", "8"))
#: High enough that a task that meets three kills by chance does not fail.
SUSPECT_NOBODY = 1_000_000
#: Number of kills at default settings, where a task that meets three of them fails as `worker_lost`.
DEFAULT_KILLS = 20 if KILLS >= 100 else 3


@pytest.fixture
def redis_url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url


class Fleet:
    """Workers that are restarted when they are killed."""

    def __init__(self, start: Callable[[], WorkerProcess], size: int) -> None:
        self._start = start
        self.workers = [start() for _ in range(size)]

    def kill(self, at: int) -> WorkerProcess:
        victim = self.workers[at]
        victim.process.kill()
        victim.process.wait()
        self.workers[at] = self._start()
        return victim


@contextmanager
def fleet(folder: Path, redis_url: str, size: int, **env: float) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(lambda: stack.enter_context(worker(folder, redis_url, "constant", **env)), size)


@pytest.mark.timeout(max(240, KILLS * 4))
def test_nothing_is_lost_or_published_twice_when_workers_are_killed(redis_url: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    with (
        Account(redis_url) as account,
        fleet(tmp_path, redis_url, 2, lease_s=1, sweep_s=0.5, max_deaths=SUSPECT_NOBODY, prefetch=64) as workers,
    ):
        account.submit(50)
        for kill in range(KILLS):
            # Workers never idle: some tasks take no time, others stay on the device for long enough to meet a kill.
            account.submit(rng.randrange(200))
            account.submit(rng.randrange(20), seconds=rng.choice([0.01, 0.1]))
            time.sleep(rng.random() * 1.2)
            workers.kill(rng.randrange(2))
            if kill % 50 == 49:
                print(f"{kill + 1} kills, {len(account.ids)} submitted, {account.done()} ended", flush=True)
        ended = account.settle()
        print(f"{KILLS} kills: {len(account.ids)} submitted, {dict(ended)}")
        assert set(ended) == {State.SUCCEEDED}


@pytest.mark.long
@pytest.mark.timeout(240 + DEFAULT_KILLS * 10)
def test_the_books_balance_at_default_settings(redis_url: str, tmp_path: Path) -> None:
    rng = random.Random(3)
    with Account(redis_url) as account, fleet(tmp_path, redis_url, 2) as workers:
        for _ in range(DEFAULT_KILLS):
            at = rng.randrange(2)
            workers.workers[at].wait_ready(account.client, "constant")
            account.submit(rng.randrange(300))
            account.submit(rng.randrange(1, 20), seconds=rng.choice([0.01, 0.1, 0.5]))
            time.sleep(rng.random() * 0.5)
            workers.kill(at)
        ended = account.settle()
        print(f"{DEFAULT_KILLS} kills at default settings: {len(account.ids)} submitted, {dict(ended)}")
        for status in account.client.status_many(account.ids):
            assert status.error is None or status.error.code == "worker_lost"


def test_a_killed_workers_messages_are_elsewhere_within_a_lease_a_sweep_and_two_seconds(
    redis_url: str, tmp_path: Path
) -> None:
    """With default settings."""
    with (
        Account(redis_url) as account,
        worker(tmp_path, redis_url, "constant") as first,
        redis.Redis.from_url(redis_url) as db,
    ):
        first.wait_ready(account.client, "constant")
        account.submit(5, seconds=600)
        while not (tags := db.zrange("pipeq:leases", 0, -1)):
            time.sleep(0.05)
        of_first = tags[0].partition(b"-")[0]
        with worker(tmp_path, redis_url, "constant") as second:
            while "ready" not in second.text() or db.zcard("pipeq:leases") < 5:
                time.sleep(0.05)
            # The second one, which is idle, may have got some of them already.
            firsts = {tag for tag in db.zrange("pipeq:leases", 0, -1) if tag.startswith(of_first)}
            assert firsts
            first.process.kill()

            def recovered() -> bool:
                tags = set(db.zrange("pipeq:leases", 0, -1))
                return len(tags) >= 5 and not firsts & tags

            took_s, late_s = promptly(recovered, 15 + 5 + 2)
            print(f"recovered after {took_s:.1f} s, of which {late_s:.1f} s were the machine's")
            second.process.kill()


def test_who_was_stopped_for_two_leases_publishes_nothing_of_what_another_took(redis_url: str, tmp_path: Path) -> None:
    with Account(redis_url) as account, worker(tmp_path, redis_url, "constant", lease_s=1, sweep_s=0.5) as first:
        first.wait_ready(account.client, "constant")
        account.submit(200, seconds=0.4)
        while account.done() < 64:
            time.sleep(0.01)
        first.process.send_signal(signal.SIGSTOP)
        with worker(tmp_path, redis_url, "constant", lease_s=1, sweep_s=0.5) as second:
            deadline = time.monotonic() + 60
            # The second worker has taken over messages of the first one. What is done says nothing: the first one may
            # have sent results just before it was stopped.
            while "of a worker that is gone are back on their queues" not in second.text():
                assert time.monotonic() < deadline, second.text()
                time.sleep(0.01)
            first.process.send_signal(signal.SIGCONT)
            assert set(account.settle()) == {State.SUCCEEDED}
            deadline = time.monotonic() + 10
            while "leases are gone" not in first.text():
                assert time.monotonic() < deadline, first.text()
                time.sleep(0.05)


@pytest.mark.parametrize(("seconds", "lease_s"), [(6, 0.5), *([(60, 2)] if KILLS >= 100 else [])])
def test_a_task_longer_than_its_lease_runs_once(redis_url: str, tmp_path: Path, seconds: float, lease_s: float) -> None:
    with Account(redis_url) as account, fleet(tmp_path, redis_url, 2, lease_s=lease_s, sweep_s=0.2) as workers:
        for process in workers.workers:
            process.wait_ready(account.client, "constant")
        account.submit(1, seconds=seconds)
        account.settle()
        assert account.client.status(account.ids[0]).attempts == 1
        assert not any("leases are gone" in process.text() for process in workers.workers)
