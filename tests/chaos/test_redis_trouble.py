"""Redis dies, falls silent, is full, and its connections break; every task ends, and the log reports it once."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from pipeq import State
from pipeq.demo import embedded

from tests.chaos.account import Account
from tests.chaos.redis_server import server
from tests.proxy import proxy
from tests.waiting import promptly, until
from tests.worker_process import WorkerProcess, worker

#: Seconds of silence; `make chaos` uses the longer one.
SILENCE_S = 30 if int(os.environ.get("KILLS", "0")) >= 100 else 8


def ended(account: Account, more: int) -> Callable[[], bool]:
    """Whether so many tasks more have ended."""
    wanted = account.done() + more
    return lambda: account.done() >= wanted


def said(process: WorkerProcess) -> tuple[int, int]:
    return process.text().count("Redis does not serve"), process.text().count("Redis serves again")


def test_redis_is_killed_and_comes_back(tmp_path: Path) -> None:
    with server(tmp_path) as valkey:
        with worker(tmp_path, valkey.url, "constant", lease_s=3, sweep_s=1, prefetch=128) as process:
            with Account(valkey.url) as account:
                process.wait_ready(account.client, "constant")
                account.submit(3000, seconds=0.05)
                until(ended(account, 100))
            # Publishes while the counting connection is down cannot be counted, so a new count is opened.
            ids = account.ids
            valkey.kill()
            time.sleep(3)
            valkey.start()
            with Account(valkey.url) as again:
                took, _ = promptly(ended(again, 64), 5)
                print(f"working again {took:.1f} s after Redis")
                again.ids = ids
                states = {status.state for status in again.client.as_completed(ids, timeout_s=90)}
                assert states == {State.SUCCEEDED}
        assert said(process) == (1, 1), process.text()
        assert process.process.returncode == 0


def test_redis_falls_silent(tmp_path: Path) -> None:
    with embedded.valkey() as url, proxy(url) as (between, through):
        with Account(url) as account, worker(tmp_path, through, "constant", lease_s=3, sweep_s=1) as process:
            process.wait_ready(account.client, "constant")
            account.submit(3000, seconds=0.1)
            until(ended(account, 100))
            between.is_silent = True
            time.sleep(SILENCE_S)
            between.is_silent = False
            took, _ = promptly(ended(account, 64), 5 + 5)
            print(f"working again {took:.1f} s after the silence")
            assert set(account.settle()) == {State.SUCCEEDED}
        assert said(process)[0] <= 1, process.text()


def test_connections_are_cut_half_closed_and_slow(tmp_path: Path) -> None:
    rng = random.Random(2)
    with (
        embedded.valkey() as url,
        proxy(url) as (between, through),
        Account(url) as account,
        worker(tmp_path, through, "constant", lease_s=3, sweep_s=1) as process,
    ):
        process.wait_ready(account.client, "constant")
        for _ in range(15):
            account.submit(rng.randrange(300), seconds=rng.choice([0, 0.02]))
            time.sleep(rng.random() / 2)
            rng.choice([between.cut, between.half_close, between.cut])()
            between.delay_s = rng.choice([0, 0.01, 0.05])
        between.delay_s = 0
        assert set(account.settle()) == {State.SUCCEEDED}
        assert process.process.poll() is None


def test_redis_is_full(tmp_path: Path) -> None:
    with embedded.valkey() as url, Account(url) as account, redis.Redis.from_url(url) as db:
        account.submit(2000)
        db.config_set("maxmemory-policy", "noeviction")
        db.config_set("maxmemory", "1mb")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            db.lpush("other", "x")
        # Redis is full before the worker starts.
        with worker(tmp_path, url, "constant", lease_s=3, sweep_s=1) as process:
            # Waiting tasks can be finished, because ending a task needs no more memory than its message took.
            assert set(account.settle()) == {State.SUCCEEDED}
            db.config_set("maxmemory", "0")
            process.wait_ready(account.client, "constant")
            account.submit(100)
            assert set(account.settle()) == {State.SUCCEEDED}
            until(lambda: said(process) == (1, 1), 10)
        assert process.process.returncode == 0
