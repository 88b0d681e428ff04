"""Child processes that die or hang, from outside and from within: who is charged, who waits, and what comes after.

The inputs that kill are those of tests/evil.py.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from pipeq import Client, State, TaskStatus
from pipeq.demo import embedded

from tests import tiny_models
from tests.evil import python_path
from tests.parity import assert_same
from tests.worker_process import WorkerProcess, worker

STAGES = ("prepare", "forward", "finish")
#: Kills from outside; `make chaos` kills more often.
KILLS = 20 if int(os.environ.get("CHILD_KILLS", "0")) >= 100 else 4
#: How often the device process goes because it is idle; `make chaos` lets it go more often.
GOES = 12 if int(os.environ.get("CHILD_KILLS", "0")) >= 100 else 5


@contextmanager
def serving(folder: Path, redis_url: str, **settings: object) -> Iterator[tuple[WorkerProcess, Client]]:
    """A worker with that pipeline, named ``constant``."""
    with (
        Client(redis_url) as client,
        worker(folder, redis_url, "constant", PYTHONPATH=python_path(folder), **settings) as process,
    ):
        process.wait_ready(client, "constant")
        yield process, client


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerProcess, Client]]:
    """One worker for all the deaths that it must survive, with little patience."""
    limits = {"hard_timeout_s": 1, "step_timeout_s": 1}
    with embedded.valkey() as url, serving(tmp_path_factory.mktemp("served"), url, **limits) as (process, client):
        yield process, client


def child_of(process: WorkerProcess) -> int:
    """Process id of the worker's child, once it has one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := process.children():
            return found[0]
        time.sleep(0.01)
    raise AssertionError(process.text())


def ends(client: Client, ids: list[str]) -> list[TaskStatus]:
    """Waits for tasks, and returns their statuses in this order."""
    found = {one.id: one for one in client.as_completed(ids, timeout_s=200)}
    return [found[one] for one in ids]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("what", ["dies", pytest.param("breaks", marks=pytest.mark.long), "spins"])
def test_a_task_that_ends_its_process_ends_alone(served: tuple[WorkerProcess, Client], what: str, stage: str) -> None:
    process, client = served
    told = len(process.text())
    before = client.submit_many("constant", [f"good {at}" for at in range(40)], priority=0)
    evil = client.submit("constant", f"{what} at {stage}")
    after = client.submit_many("constant", [f"good {at}" for at in range(40)], priority=0)
    status = client.wait(evil, timeout_s=120)
    assert status.state is State.FAILED, process.text()
    assert status.error is not None
    assert status.error.code == ("timeout" if what == "spins" else "worker_lost"), process.text()
    good = ends(client, [*before, *after])
    assert [one.state for one in good] == [State.SUCCEEDED] * 80, process.text()
    # Nobody else has met more than the one death that they could not be told apart at.
    assert max(one.attempts for one in good) <= 2
    # The host stays: it is the same worker, and no lease has lapsed.
    assert process.process.poll() is None
    assert process.text().count("ready: serving") == 1
    died = re.findall(r"ERROR +.*starting another one", process.text()[told:])
    assert 1 <= len(died) <= (2 if what == "spins" else 3), died


def test_kills_from_outside_lose_nothing(redis_url: str, tmp_path: Path) -> None:
    with (
        serving(tmp_path, redis_url, max_deaths=5 * KILLS) as (process, client),
        redis.Redis.from_url(redis_url) as db,
    ):
        ids: list[str] = []
        for at in range(KILLS):
            ids += client.submit_many("constant", [f"good {at} {one}" for one in range(200)], priority=0)
            time.sleep(0.5 * at / KILLS)
            os.kill(child_of(process), signal.SIGKILL)
        statuses = ends(client, ids)
        assert [one.state for one in statuses] == [State.SUCCEEDED] * 200 * KILLS, process.text()
        assert [client.result(one) for one in ids[:3]] == [f"good 0 {at}" for at in range(3)]
        assert process.process.poll() is None
        assert db.hlen("pipeq:running") == 0


def test_a_worker_that_dies_takes_its_child_with_it(redis_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, redis_url) as (process, client):
        spinning = client.submit("constant", "spins at forward")
        child = child_of(process)
        while client.status(spinning).state is not State.RUNNING:
            time.sleep(0.01)
        process.process.kill()
        process.process.wait()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{child}/stat").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{child}/stat").exists()


@pytest.mark.long
def test_kills_of_device_and_prepare_processes(redis_url: str, tiny: Path, tmp_path: Path) -> None:
    model = tiny_models.build("classifier", tiny)
    texts = [f"the quick brown fox jumps {at} times " + "over the lazy dog " * (at % 7) for at in range(150)]
    with (
        Client(redis_url) as client,
        worker(tmp_path, redis_url, f"text-classification={model}", prepare_processes=1, max_deaths=50) as process,
        redis.Redis.from_url(redis_url) as db,
    ):
        process.wait_ready(client, "text-classification")
        want = [
            client.result(one, timeout_s=60) for one in client.submit_many("text-classification", texts, priority=0)
        ]
        ids: list[str] = []
        for role in ("prepare", "device") * (KILLS // 4):
            ids += client.submit_many("text-classification", texts * 2, priority=0)
            client.wait(ids[-len(texts) * 2], timeout_s=120)
            deadline = time.monotonic() + 60
            while not (found := process.roles()[role]):
                assert time.monotonic() < deadline, process.text()
                time.sleep(0.01)
            os.kill(found[0], signal.SIGKILL)
        statuses = ends(client, ids)
        assert [one.state for one in statuses] == [State.SUCCEEDED] * len(ids), process.text()
        got = [one.result for one in statuses]
        # Whoever read a row or an output that another process had overwritten would give another answer.
        for at, result in enumerate(got):
            assert_same(result, want[at % len(texts)])
        assert process.process.poll() is None
        assert db.hlen("pipeq:running") == 0
        assert process.text().count("ready: serving") == 1


def test_an_idle_device_process_ends_and_comes_back(redis_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, redis_url, idle_unload_s=1) as (process, client):
        for at in range(2):
            assert client.result(client.submit("constant", f"good {at}"), timeout_s=60) == f"good {at}"
            deadline = time.monotonic() + 30
            while process.children():
                assert time.monotonic() < deadline, process.text()
                time.sleep(0.05)
        # Its end is no death, and the worker serves all the time.
        assert "starting another one" not in process.text()
        assert process.text().count("until the next task comes") >= 2
        assert process.text().count("ready: serving") == 1


def test_tasks_that_come_while_the_device_process_goes_are_done(redis_url: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    with serving(tmp_path, redis_url, idle_unload_s=0.1) as (process, client):
        for at in range(GOES):
            time.sleep(rng.uniform(0.2, 1.0))
            assert client.result(client.submit("constant", f"good {at}"), timeout_s=90) == f"good {at}", process.text()


def test_a_process_has_no_more_memory_than_it_is_allowed(redis_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, redis_url, process_max_bytes="600MiB") as (process, client):
        too_large, good = client.submit("constant", "fills at prepare"), client.submit("constant", "good")
        status = client.wait(too_large, timeout_s=60)
        assert status.state is State.FAILED
        assert status.error is not None
        assert "MemoryError" in status.error.message
        assert client.result(good, timeout_s=60) == "good"
        assert "starting another one" not in process.text()


#: In the child only: the pipeline never finishes loading, and may keep Python's lock all the time.
HANGING = """
import sys

if "pipeq_worker.children.main" in sys.orig_argv:
    import os, re, time
    from pipeq_worker.models import constant_pipeline

    def never(*_):
        if os.environ["HOW"] == "locked":
            re.match("(a+)+$", "a" * 64 + "b")
        time.sleep(1000)

    constant_pipeline.load_constant_pipeline = never
"""


@pytest.mark.parametrize("how", ["waiting", "locked"])
def test_a_process_that_hangs_while_it_loads_is_ended_and_the_worker_says_so(
    redis_url: str, tmp_path: Path, how: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with worker(tmp_path, redis_url, "constant", PYTHONPATH=path, HOW=how, load_timeout_s=0.5) as process:
        assert process.process.wait(150) != 0
        said = "died 3 times while loading: loading a pipeline took over load_timeout_s (0.5 s)"
        assert said in process.text(), process.text()
