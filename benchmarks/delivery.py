"""What a message costs: no-op messages a second with stored results, against a stock Celery solo worker in turn.

The no-op is the pipeline ``constant``, which takes the whole path of a real pipeline except the model. Stock Celery
runs a task that returns the same, with late acknowledgement and stored results, as pipeq does. Caveats: both share two
cores with Redis, and the proxy that adds 2 ms is a Python program with a cost of its own.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from pipeq import Client
from pipeq.demo.embedded import valkey
from rich.console import Console
from rich.table import Table

from benchmarks.report import Options, Result
from tests.proxy import proxy

MESSAGES = 10_000
STOCK = """
from celery import Celery
app = Celery("stock", broker="{url}", backend="{url}")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True)

@app.task(name="constant")
def constant(value):
    return "constant"
"""


@dataclass(frozen=True)
class Measured:
    """One run of one arm, printed as a JSON line."""

    benchmark: str
    arm: str
    round: int
    values: dict[str, float] = field(default_factory=dict)

    def emit(self) -> None:
        """Prints the run as one JSON line."""
        sys.stdout.write(json.dumps(asdict(self)) + "\n")
        sys.stdout.flush()


@contextmanager
def process(*command: str, folder: Path | None = None, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a worker process that ends with the block."""
    quiet = {**os.environ, **env}
    child = subprocess.Popen(command, cwd=folder, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()


@contextmanager
def pipeq_worker(url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a pipeq worker with default settings."""
    with process(sys.executable, "-m", "pipeq", "worker", "constant", "--redis-url", url) as child:
        yield child


@contextmanager
def stock_worker(url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a stock Celery worker with one process and one thread."""
    (folder / "stock.py").write_text(STOCK.format(url=url))
    command = (sys.executable, "-W", "ignore", "-m", "celery", "-A", "stock", "worker", "-P", "solo", "-l", "ERROR")
    with process(*command, folder=folder) as child:
        yield child


def stock_app(url: str) -> Celery:
    """Makes the app of a stock producer."""
    return Celery("producer", broker=url, backend=url)


def submit(url: str, count: int) -> None:
    """Queues no-ops for the pipeq worker."""
    with Client(url) as client:
        client.submit_many("constant", range(count), check=False, priority=0)


def submit_stock(url: str, count: int) -> None:
    """Queues no-ops as a stock producer does; the results are stored, and not waited for."""
    app = stock_app(url)
    # Without the SUBSCRIBE for each task that a caller of AsyncResult.get() would pay for.
    app.backend.on_task_call = lambda *_, **__: None
    with app.producer_or_acquire() as producer:
        for at in range(count):
            app.send_task("constant", args=[at], producer=producer)


def drained(db: redis.Redis, queue: str) -> bool:
    """Whether no message waits and none is held."""
    left = db.llen(queue), db.hlen("unacked"), db.hlen("pipeq:unacked")
    return not any(left)


def throughput(arm: str, at: int, url: str, worker_url: str, count: int) -> Measured:
    """Measures a worker that starts with a full queue, from the first message taken to the last one acknowledged."""
    start, queue = (pipeq_worker, "constant") if arm.startswith("pipeq") else (stock_worker, "celery")
    with redis.Redis.from_url(url) as db, tempfile.TemporaryDirectory() as folder:
        db.flushall()
        (submit if queue == "constant" else submit_stock)(url, count)
        with start(worker_url, Path(folder)) as child:
            while db.llen(queue) == count:
                time.sleep(0.001)
            began, taken = time.perf_counter(), db.llen(queue)
            before = _cpu_s(child.pid)
            db.config_resetstat()
            while not drained(db, queue):
                time.sleep(0.05)
            seconds = time.perf_counter() - began
            cpu_s = _cpu_s(child.pid) - before
            commands = sum(value["calls"] for value in db.info("commandstats").values())
            reads = db.info("stats")["total_reads_processed"]
            # The commands of this loop itself.
            asked = seconds / 0.05
    done = float(taken)
    values = {
        "messages/s": done / seconds,
        "commands/message": (commands - 3 * asked) / done,
        "round trips/message": (reads - 3 * asked) / done,
        "worker's CPU, ms/message": cpu_s / done * 1000,
    }
    return Measured("delivery", arm, at, values)


def publishing(at: int, url: str, count: int) -> list[Measured]:
    """Measures how many tasks a second one process can queue."""
    found = []
    with redis.Redis.from_url(url) as db:
        for arm, send in (("apply_async loop", submit_stock), ("submit_many", submit)):
            db.flushall()
            began = time.perf_counter()
            send(url, count)
            found.append(Measured("publish", arm, at, {"messages/s": count / (time.perf_counter() - began)}))
    return found


def idle(url: str, seconds: float = 10) -> Measured:
    """Measures the CPU share of an idle worker, and of its Redis."""
    with redis.Redis.from_url(url) as db, Client(url) as client, pipeq_worker(url, Path()) as child:
        db.flushall()
        while "constant" not in client.pipelines():
            time.sleep(0.1)
        time.sleep(3)
        before = _cpu_s(child.pid), _cpu_s(db.info("server")["process_id"])
        time.sleep(seconds)
        after = _cpu_s(child.pid), _cpu_s(db.info("server")["process_id"])
    worker_share, redis_share = ((b - a) / seconds * 100 for a, b in zip(before, after, strict=True))
    return Measured("idle", "pipeq", 0, {"worker CPU %": worker_share, "Redis CPU %": redis_share})


def memory(url: str, few: int = 10_000, many: int = 100_000) -> Measured:
    """Measures the resident memory and the open files of a worker after few and after many messages."""
    values: dict[str, float] = {}
    with redis.Redis.from_url(url) as db, pipeq_worker(url, Path()) as child:
        db.flushall()
        done = 0
        while done < many:
            submit(url, few)
            while not drained(db, "constant"):
                time.sleep(0.1)
            done += few
            # The records live for a day, and would fill Redis.
            for key in db.scan_iter("celery-task-meta-*", count=5000):
                db.unlink(key)
            if done in (few, many):
                time.sleep(1)
                values[f"MiB after {done}"] = _rss_mib(child.pid)
                values[f"files after {done}"] = len(os.listdir(f"/proc/{child.pid}/fd"))
    values["growth %"] = (values[f"MiB after {many}"] / values[f"MiB after {few}"] - 1) * 100
    return Measured("memory", "pipeq", 0, values)


def recovery(url: str) -> Measured:
    """Measures the time from SIGKILL until another worker has leases on all messages (default settings)."""
    with redis.Redis.from_url(url) as db, Client(url) as client, ExitStack() as stack:
        db.flushall()
        first = stack.enter_context(pipeq_worker(url, Path()))
        client.submit_many("constant", range(5), params={"seconds": 300}, check=False, priority=0)
        while db.zcard("pipeq:leases") < 5:
            time.sleep(0.05)
        # A worker's tags have one beginning. The second one is idle, and gets some of them before the first one dies.
        firsts = db.zrange("pipeq:leases", 0, 0)[0].split(b"-")[0]
        second = stack.enter_context(pipeq_worker(url, Path()))
        while client.queues()[0].workers < 2:
            time.sleep(0.05)
        first.kill()
        killed = time.perf_counter()
        while any(tag.startswith(firsts) for tag in db.zrange("pipeq:leases", 0, -1)):
            time.sleep(0.02)
        took = time.perf_counter() - killed
        second.kill()
    return Measured("recovery", "pipeq", 0, {"seconds": took})


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def show(title: str, runs: list[Measured], reference: str | None = None) -> None:
    """Prints a table of medians and spreads, with the ratio to a reference arm of the same round."""
    shown = Table(title=title)
    for column in ("arm", "figure", "median", "min", "max", f"x {reference}" if reference else ""):
        shown.add_column(column, justify="left" if column in ("arm", "figure") else "right")
    for arm in dict.fromkeys(run.arm for run in runs):
        mine = [run for run in runs if run.arm == arm]
        for name in mine[0].values:
            values = [run.values[name] for run in mine]
            ratio = ""
            if reference is not None:
                base = {run.round: run.values[name] for run in runs if run.arm == reference}
                ratio = f"{statistics.median(run.values[name] / base[run.round] for run in mine):.2f}"
            figures = [f"{figure:,.2f}" for figure in (statistics.median(values), min(values), max(values))]
            shown.add_row(arm, name, *figures, ratio)
    Console().print(shown)


def main(options: Options) -> list[Result]:
    """Runs all arms in turn; the slow ones once. Prints, and keeps no results."""
    rounds = options.rounds
    runs: list[Measured] = []
    published: list[Measured] = []
    with valkey() as url, proxy(url) as (between, slow_url):
        between.delay_s = 0.001  # each way
        arms: list[Callable[[int], Any]] = [
            lambda at: throughput("stock solo", at, url, url, MESSAGES // 4),
            lambda at: throughput("pipeq", at, url, url, MESSAGES),
            lambda at: throughput("pipeq through 2 ms", at, url, slow_url, MESSAGES),
        ]
        for at in range(rounds):
            for arm in arms if at % 2 == 0 else reversed(arms):
                runs.append(arm(at))
                runs[-1].emit()
            for run in publishing(at, url, MESSAGES // 2):
                published.append(run)
                run.emit()
        single = [idle(url), recovery(url), memory(url)]
        for run in single:
            run.emit()
    show("No-op messages with stored results", runs, "stock solo")
    show("Publishing from one process", published, "apply_async loop")
    for run in single:
        show(run.benchmark, [run])
    return []
