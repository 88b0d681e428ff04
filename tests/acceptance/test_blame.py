"""One task that kills or freezes its process among 1,000, once for each stage: it ends, the others succeed.

tests/evil.py says how. Deaths while preparing, in the forward pass and while finishing are in test_children.py. Here
are the other stages of a child, and those of the host: receipt and delivery, on a worker that is started again.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from pipeq import Client, Ref, State
from pipeq.contract import keys
from pipeq.demo import embedded
from pipeq_worker.broker.pool import EXIT_DEVICE_LOST

from tests.evil import python_path
from tests.worker_process import WorkerProcess, worker

#: Neighbours of each task that does harm; `make long` has more, and walks all stages.
GOOD = 1000 if os.environ.get("LIFTED") == "all" else 200
CONFIG = '[pipelines.constant]\n[pipelines.pictures]\ntask = "constant"\n'


def serving(folder: Path, url: str, *arguments: str, **settings: Any) -> Any:
    config = folder / "pipelines.toml"
    config.write_text(CONFIG)
    return worker(folder, url, "--config", config, *arguments, PYTHONPATH=python_path(folder), **settings)


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerProcess, Client]]:
    """A worker with little patience."""
    folder = tmp_path_factory.mktemp("children")
    limits = {"hard_timeout_s": 1, "step_timeout_s": 1, "metrics__hung_s": 1}
    limits |= {"inputs__max_fetch_s": 1, "results__max_write_s": 1, "results__allow": "file:///tmp/"}
    with embedded.valkey() as url, Client(url) as client, serving(folder, url, **limits) as process:
        process.wait_ready(client, "constant", "pictures")
        yield process, client


@dataclass
class Host:
    """A worker that is started again when it ends, as a supervisor does, but without a pause."""

    client: Client
    db: redis.Redis
    #: Each process, one after the other, and the exit codes of those that have ended.
    processes: list[WorkerProcess] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def run(self, ends: threading.Event, folder: Path, url: str, settings: dict[str, Any]) -> None:
        while not ends.is_set():
            with serving(folder, url, **settings) as process:
                self.processes.append(process)
                self.codes.append(process.process.wait())


@contextmanager
def restarted(folder: Path, **limits: Any) -> Iterator[Host]:
    ends = threading.Event()
    with embedded.valkey() as url, Client(url) as client, redis.Redis.from_url(url) as db:
        made = Host(client, db)
        thread = threading.Thread(target=made.run, args=(ends, folder, url, limits))
        thread.start()
        try:
            yield made
        finally:
            ends.set()
            made.processes[-1].stop()
            thread.join(60)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Its leases lapse soon."""
    limits = {"lease_s": 2, "sweep_s": 0.5, "metrics__hung_s": 3, "step_timeout_s": 2}
    with restarted(tmp_path_factory.mktemp("hosts"), **limits) as made:
        yield made


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Its leases lapse after its heartbeat, as with the default settings: only then is its mark one of the dead."""
    limits = {"lease_s": 3 * keys.WORKER_TTL_S / 2, "sweep_s": 0.5, "metrics__hung_s": 3}
    with restarted(tmp_path_factory.mktemp("patient"), **limits) as made:
        yield made


def walk(text: Callable[[], str], client: Client, pipeline: str, inputs: Any, **about: Any) -> tuple[str, int]:
    """Submits a task that does harm among others. Returns its error's code and attempts."""
    good = [Ref.from_bytes(b"good")] if pipeline == "pictures" else ["good"]
    before = client.submit_many(pipeline, good * (GOOD // 2), check=False, priority=0)
    evil = client.submit(pipeline, inputs, check=False, **about)
    after = client.submit_many(pipeline, good * (GOOD // 2), check=False, priority=0)
    status = client.wait(evil, timeout_s=250)
    assert status.state is State.FAILED, text()[-5000:]
    assert status.error is not None
    found = list(client.as_completed([*before, *after], timeout_s=250))
    assert [one.state for one in found] == [State.SUCCEEDED] * GOOD, text()[-5000:]
    # Nobody else has met more than the one death that they could not be told apart at.
    assert max(one.attempts for one in found) <= 2
    (letter,) = client.dead(pipeline, ids=[evil])
    assert letter.code == status.error.code
    return status.error.code, status.attempts


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("pipeline", "how"),
    [
        ("pictures", "dies at fetch"),
        pytest.param("pictures", "spins at fetch", marks=pytest.mark.long),
        pytest.param("pictures", "sleeps 600 at fetch", marks=pytest.mark.long),
        pytest.param("pictures", "dies at decode", marks=pytest.mark.long),
        ("pictures", "spins at decode"),
        pytest.param("pictures", "sleeps 60 at decode", marks=pytest.mark.long),
        pytest.param("constant", "sleeps 60 at prepare", marks=pytest.mark.long),
        pytest.param("constant", "sleeps 60 at forward", marks=pytest.mark.long),
        ("constant", "sleeps 60 at finish"),
        pytest.param("constant", "dies at place", marks=pytest.mark.long),
        pytest.param("constant", "spins at place", marks=pytest.mark.long),
        ("constant", "sleeps 600 at place"),
    ],
)
def test_in_a_child(children: tuple[WorkerProcess, Client], tmp_path: Path, pipeline: str, how: str) -> None:
    process, client = children
    said = len(process.text())
    inputs = Ref.from_bytes(how.encode()) if pipeline == "pictures" else how
    about = {"output": f"{tmp_path.as_uri()}/"} if "place" in how else {}
    code, _ = walk(process.text, client, pipeline, inputs, **about)
    assert process.process.poll() is None
    deaths = len(re.findall(r"ERROR +.*starting another one", process.text()[said:]))
    if "sleeps" in how:
        # The process still answers, so it is certain which step takes too long.
        assert (code, deaths) in (("timeout", 1), ("timeout", 2))
    elif "dies" in how:
        assert (code, deaths) == ("worker_lost", 3)
    else:
        assert code in ("timeout", "worker_lost")
        assert 1 <= deaths <= 3
    # The host stays, and no lease has lapsed.
    assert process.text().count("ready: serving") == 1
    assert "leases are gone" not in process.text()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("how", "inputs"),
    [
        ("dies at receipt", "x"),
        pytest.param("spins at receipt", "x", marks=pytest.mark.long),
        # Without Python's lock, so that everything else goes on.
        ("sleeps 600 at delivery", "sleeps 600 at delivery"),
        pytest.param("sleeps 600 at delivery", "refused: sleeps 600 at delivery", marks=pytest.mark.long),
        # It never reaches a batch, so it has no mark.
        ("dies at delivery", "refused: dies at delivery"),
    ],
)
def test_in_the_host(host: Host, how: str, inputs: str) -> None:
    ends(host, how, inputs)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", ["dies at delivery", "spins at delivery"])
def test_in_the_host_after_a_batch(patient: Host, how: str) -> None:
    ends(patient, how, how)


def ends(host: Host, how: str, inputs: str) -> None:
    before = len(host.codes)
    about = {"headers": {"evil": how}} if "receipt" in how else {}
    code, attempts = walk(lambda: host.processes[-1].text(), host.client, "constant", inputs, **about)
    # A task in a batch is begun once more, when it turns out how many have died.
    assert (code, attempts) in (("worker_lost", 3), ("worker_lost", 4))
    codes = {"dies": -signal.SIGKILL, "spins": -signal.SIGPROF, "sleeps": EXIT_DEVICE_LOST}
    assert host.codes[before:] == [codes[how.split()[0]]] * 3
    assert host.db.hlen(keys.UNACKED) == host.db.hlen(keys.RUNNING) == 0
