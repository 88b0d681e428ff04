"""The device process and the prepare processes of a worker are killed under load; every task must end exactly once.

`CHILD_KILLS` in the environment says how often (`make chaos CHILD_KILLS=200`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pipeq import State
from pipeq.demo import embedded
from pipeq_worker.children.starting import HOST_NICE, PREPARE_NICE

from tests import tiny_models
from tests.chaos import light
from tests.chaos.account import Account
from tests.parity import assert_same
from tests.waiting import until
from tests.worker_process import WorkerProcess, worker

KILLS = int(os.environ.get("CHILD_KILLS", "5"))
#: Kills of the processes of a real model, each of which takes seconds to start again.
MODEL_KILLS = KILLS // 10
#: Prepare processes of the worker.
PREPARERS = 2
#: Tasks that have not ended while processes are killed: the device never idles.
LOAD = 600
#: How many processes of which role a kill meets, in turn.
TARGETS: Sequence[dict[str, int]] = (
    {"prepare": 1},
    {"device": 1},
    {"prepare": 1, "device": 1},
    {"prepare": PREPARERS},
    {"prepare": PREPARERS, "device": 1},
)


@pytest.fixture
def redis_url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url


class Killed:
    """A worker under load whose processes are killed.

    Args:
        process: the worker.
        account: of the tasks.
        inputs: each task has one of these.
    """

    def __init__(self, process: WorkerProcess, account: Account, inputs: Sequence[Any]) -> None:
        self._process = process
        self._account = account
        self._inputs = inputs
        self._rng = random.Random(1)
        #: Place of the input of each task.
        self.submitted: list[int] = []
        self.victims = 0

    def submit(self, chosen: Sequence[int]) -> None:
        """Submits a task for each of these inputs."""
        self._account.submit_all([self._inputs[at] for at in chosen])
        self.submitted += chosen

    def charged(self) -> list[list[str]]:
        """The tasks that each death of a process was charged to, as the log says."""
        lines = [json.loads(line) for line in self._process.text().splitlines() if '"child_died"' in line]
        return [line["tasks"] for line in lines]

    def run(self, kills: int) -> None:
        """Kills, and waits for the end of all tasks."""
        for kill in range(kills):
            self._until(self._is_whole)
            done = self._account.done() + self._rng.randrange(1, 200)
            self._until(lambda done=done: self._account.done() >= done)
            # From now on nobody inside has a death.
            self._until(lambda: all(map(self._account.has_ended, (one for tasks in self.charged() for one in tasks))))
            self._submit()
            time.sleep(self._rng.random() * 0.3)
            self._kill(TARGETS[kill % len(TARGETS)])
            if kill % 20 == 19:
                print(f"{kill + 1} kills, {self.victims} processes, {self._account.done()} tasks ended", flush=True)

    def _kill(self, targets: dict[str, int]) -> None:
        roles = self._process.roles()
        chosen = [pid for role, count in targets.items() for pid in self._rng.sample(roles[role], count)]
        for pid in chosen:
            os.kill(pid, signal.SIGKILL)
        self.victims += len(chosen)

    def _is_whole(self) -> bool:
        roles = self._process.roles()
        return len(roles["device"]) == 1 and len(roles["prepare"]) == PREPARERS

    def _submit(self) -> None:
        while len(self.submitted) - self._account.done() < LOAD:
            self.submit([self._rng.randrange(len(self._inputs)) for _ in range(LOAD // 2)])

    def _until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not is_so():
            self._submit()
            assert self._process.process.poll() is None, self._process.text()[-5000:]
            assert time.monotonic() < deadline, self._process.text()[-5000:]
            time.sleep(0.02)


def niceness(*pids: int) -> Counter[int]:
    """How many threads of these processes have each niceness."""
    found: Counter[int] = Counter()
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended meanwhile
                found[os.getpriority(os.PRIO_PROCESS, int(thread.name))] += 1
    return found


def has_stepped_back(process: WorkerProcess) -> bool:
    """The others step back behind the device process: the host with all threads but the one that starts children.

    A process that was started a moment ago does so a moment later.
    """
    own, roles = os.getpriority(os.PRIO_PROCESS, 0), process.roles()
    with suppress(FileNotFoundError):
        host = niceness(process.process.pid)
        return (
            set(niceness(*roles["device"])) == {own}
            and set(niceness(*roles["prepare"])) == {min(own + PREPARE_NICE, 19)}
            and host[own] == 1
            and set(host) == {own, min(own + HOST_NICE, 19)}
        )
    return False


@pytest.mark.timeout(max(240, KILLS * 25))
@pytest.mark.parametrize(
    ("pipeline", "kills"),
    [("constant", KILLS), *([("text-classification", MODEL_KILLS)] if MODEL_KILLS > 1 else [])],
)
def test_nothing_is_lost_and_nobody_is_charged_twice(
    redis_url: str, tiny: Path, tmp_path: Path, pipeline: str, kills: int
) -> None:
    began = time.monotonic()
    inputs: list[Any] = list(range(1000))
    named, env = pipeline, {}
    if pipeline == "constant":
        env["PYTHONPATH"] = light.path(tmp_path)
    else:
        named = f"{pipeline}={tiny_models.build('classifier', tiny)}"
        inputs = [f"the fox jumps {at} times " + "over the lazy dog " * (at % 9) for at in range(200)]
    with (
        Account(redis_url, pipeline) as account,
        worker(tmp_path, redis_url, named, prepare_processes=PREPARERS, log_format="json", **env) as process,
    ):
        process.wait_ready(account.client, pipeline)
        until(lambda: has_stepped_back(process))
        killed = Killed(process, account, inputs)
        killed.submit(range(len(inputs)))
        want = [account.client.result(one, timeout_s=60) for one in account.ids]
        if pipeline == "constant":
            assert want == [light.answer(value) for value in inputs]
        killed.run(kills)
        ended = account.settle()
        # The last ones may not have had a task that anybody waited for.
        until(lambda: len(killed.charged()) >= killed.victims)
        charged = Counter(task for tasks in killed.charged() for task in tasks)
        took_s = time.monotonic() - began
        print(
            f"{pipeline}: {kills} kills of {killed.victims} processes in {took_s:.0f} s: {len(account.ids)} tasks, "
            f"{dict(ended)}, {len(charged)} of them met a death"
        )
        assert set(ended) == {State.SUCCEEDED}
        assert len(killed.charged()) == killed.victims
        assert set(charged.values()) <= {1}
        for start in range(0, len(account.ids), 1000):
            part = slice(start, start + 1000)
            for status, at in zip(account.client.status_many(account.ids[part]), killed.submitted[part], strict=True):
                # Whoever read a row or an output that another process had overwritten would give another answer.
                assert_same(status.result, want[at])
                assert status.attempts <= 2
        until(lambda: has_stepped_back(process))
        # The host has stayed, and no lease has lapsed.
        assert process.process.poll() is None
        assert process.text().count("ready: serving") == 1
        assert "leases are gone" not in process.text()


def test_a_host_without_a_model_does_not_step_back(redis_url: str, tmp_path: Path) -> None:
    with worker(tmp_path, redis_url, "constant") as process, Account(redis_url) as account:
        process.wait_ready(account.client, "constant")
        assert set(niceness(process.process.pid)) == {os.getpriority(os.PRIO_PROCESS, 0)}
