"""A real worker as a separate process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery
from pipeq import Client

from tests.device import DEVICE

#: A worker imports torch and loads its models before it is ready; at most so long, in seconds.
READY_S = 240
#: The module that a worker's children run.
CHILD = "pipeq_worker.children.main"


@dataclass
class WorkerProcess:
    process: subprocess.Popen[bytes]
    log: Path

    def wait_ready(self, client: Client, *pipelines: str) -> None:
        """Waits until this process has registered for its pipelines."""
        deadline = time.monotonic() + READY_S
        while not set(pipelines) <= self._served(client):
            assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.text()}"
            assert time.monotonic() < deadline, f"the worker is not ready:\n{self.text()}"
            time.sleep(0.05)

    def _served(self, client: Client) -> set[str]:
        return {queue.pipeline for queue in client.queues() if queue.workers}

    def holds(self, redis_url: str) -> dict[str, int]:
        """Pipeline -> tasks that are inside this worker, as it says itself.

        A message that is on no list any more may still be on its way into the worker.
        """
        with Celery(broker=redis_url, set_as_current=False) as app:
            answers = app.control.inspect(timeout=10, limit=1).stats() or {}
        return next((one["pool"]["in-flight"] for one in answers.values() if one["pid"] == self.process.pid), {})

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, timeout_s: float = 60) -> int:
        """Sends SIGTERM. Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def peak_mib(self) -> float:
        """Largest resident set so far, in MiB."""
        return self._memory_mib("VmHWM")

    def resident_mib(self) -> float:
        """Resident set now, in MiB."""
        return self._memory_mib("VmRSS")

    def children(self) -> list[int]:
        """Process ids of the worker's children, and of theirs."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended meanwhile
                pid, _, rest = path.read_text().partition(" (")
                parents[int(pid)] = int(rest.rpartition(") ")[2].split()[1])
        found, new = [], [self.process.pid]
        while new:
            new = [pid for pid, parent in parents.items() if parent in new]
            found += new
        return found

    def roles(self) -> dict[str, list[int]]:
        """Process ids of the worker's children: the device process, and the prepare processes."""
        found: dict[str, list[int]] = {"device": [], "prepare": []}
        for pid in self.children():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if CHILD in words:
                    # SOCKET BOARD PARENT OWN SLAB...
                    own = words[words.index(CHILD) + 4]
                    found["prepare" if int(own) else "device"].append(pid)
        return found

    def _memory_mib(self, name: str) -> float:
        """Of the worker and its children together."""
        total = 0.0
        for pid in (self.process.pid, *self.children()):
            with suppress(OSError, StopIteration):  # it has just ended
                status = Path(f"/proc/{pid}/status").read_text()
                total += next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(name))
        return total


@contextmanager
def worker(folder: Path, redis_url: str, *arguments: Any, **env: Any) -> Iterator[WorkerProcess]:
    """Runs ``pipeq worker`` with these arguments, and with PIPEQ_... settings by keyword (``log_level="DEBUG"``)."""
    log = folder / f"worker-{time.monotonic_ns()}.log"
    settings = {
        f"PIPEQ_{key.upper()}" if key.islower() and key != "no_proxy" else key: str(value) for key, value in env.items()
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeq", "worker", *map(str, arguments)],
            stdout=out,
            stderr=subprocess.STDOUT,
            # Importing torch takes seconds, so a worker of the tests has a prepare process only where it is asked for.
            env={
                **os.environ,
                "PIPEQ_REDIS_URL": redis_url,
                "PIPEQ_TORCH_THREADS": "1",
                "PIPEQ_DEVICE": DEVICE,
                "PIPEQ_PREPARE_PROCESSES": "0",
                **settings,
            },
        )
    running = WorkerProcess(process, log)
    try:
        yield running
    finally:
        running.stop()
