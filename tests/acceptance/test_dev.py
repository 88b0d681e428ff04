"""`pipeq dev`: one command runs Redis and a worker, follows the settings, and leaves no process behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pipeq import Client, State

from tests.commands import run
from tests.waiting import until

PIPEQ = [sys.executable, "-P", "-m", "pipeq"]


def children_of(pid: int) -> set[int]:
    """All processes that a process has started, and those that they have."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, size = {pid}, 0
    while len(found) > size:
        size = len(found)
        found |= {one for one, parent in parents.items() if parent in found}
    return found - {pid}


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Dev:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def says(self, pattern: str, times: int = 1) -> str:
        def found() -> bool:
            assert self.process.poll() is None or re.search(pattern, self.text()), self.text()
            return len(re.findall(pattern, self.text())) >= times

        until(found, 120)
        match = re.search(pattern, self.text())
        assert match is not None
        return match[match.lastindex or 0]

    @property
    def url(self) -> str:
        return self.says(r"Redis is (redis://\S+)")


@contextmanager
def dev(tmp_path: Path, *arguments: str) -> Iterator[Dev]:
    log = tmp_path / "dev.log"
    with log.open("wb") as file:
        command = [*PIPEQ, "dev", *arguments, "--port", "0"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=file, start_new_session=True)
    others: set[int] = set()
    try:
        yield Dev(process, log)
        others = children_of(process.pid)
    finally:
        process.kill()
        process.wait()
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_changed_settings_start_the_worker_anew_and_ctrl_c_ends_all(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[pipelines.first]\ntask = 'constant'\n")
    # A stranger's module in the folder where it runs.
    (tmp_path / "json.py").write_text("raise SystemExit('not ours')")
    with dev(tmp_path, "--config", "mine.toml") as it, Client(it.url) as client:
        it.says("ready: serving first")
        assert client.result(client.submit("first", "x"), timeout_s=30) == "constant"
        config.write_text("[pipelines.first]\ntask = 'constant'\nmax_batchsize = 4\n")
        it.says("goes on with what it had: .*max_batchsize: there is no such key; did you mean max_batch_size")
        assert client.result(client.submit("first", "x"), timeout_s=30) == "constant"
        waiting = client.submit("first", "x", delay_s=1)
        config.write_text("[pipelines.first]\ntask = 'constant'\n[pipelines.second]\ntask = 'constant'\n")
        it.says("mine.toml has changed: the worker starts anew")
        it.says("ready: serving first, second")
        assert client.result(client.submit("second", "x"), timeout_s=30) == "constant"
        assert client.wait(waiting, timeout_s=30).state is State.SUCCEEDED
        others = children_of(it.process.pid)
        assert len(others) >= 4, "guards, Redis, the worker and its processes"
        it.process.send_signal(signal.SIGINT)
        assert it.process.wait(30) == 0
        until(lambda: not any(map(is_alive, others)), 10)
        assert "Traceback" not in it.text()


def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    with dev(tmp_path, "constant") as it:
        it.says("ready: serving constant")
        others = children_of(it.process.pid)
        assert len(others) >= 4
        # Not those of all: other tests' servers come and go beside.
        folder = Path(f"/proc/{server_of(it.process.pid)}/cwd").resolve()
        assert folder.name.startswith("pipeq-valkey-")
        it.process.kill()
        until(lambda: not any(map(is_alive, others)), 20)
        until(lambda: not folder.exists(), 10)


def test_a_worker_that_cannot_start_ends_it_all(tmp_path: Path) -> None:
    with dev(tmp_path, "text-clasification") as it:
        assert it.process.wait(60) == 2
        assert "'text-clasification' is no task type; did you mean 'text-classification'?" in it.text()
        assert "Traceback" not in it.text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a pipeline"),
        (["constant", "--port", "70000"], "--port"),
        (["constant", "--port", "1", "--redis-url", "redis://h"], "--redis-url names another one"),
        (["constant", "--redis-url", "http://h"], "http://h is no Redis URL"),
        (["--config", "/no/such.toml"], "/no/such.toml"),
    ],
)
def test_a_wrong_command_line_is_said(arguments: list[str], says: str) -> None:
    done = run("dev", *arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def server_of(pid: int) -> int:
    """The Redis that a process runs."""
    found = []
    for one in children_of(pid):
        with suppress(OSError):  # it has ended meanwhile
            found += [one] if b"valkey-server" in Path(f"/proc/{one}/cmdline").read_bytes() else []
    (server,) = found
    return server


def test_it_says_that_its_redis_has_died_and_ends(tmp_path: Path) -> None:
    with dev(tmp_path, "constant") as it:
        it.says("ready: serving constant")
        others = children_of(it.process.pid)
        os.kill(server_of(it.process.pid), signal.SIGKILL)
        assert it.process.wait(60) == 6
        assert "not_running: Redis was killed by signal 9, and what it held is gone" in it.text()
        assert "Traceback" not in it.text()
        until(lambda: not any(map(is_alive, others)), 10)
