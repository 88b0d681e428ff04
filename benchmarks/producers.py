"""Producers: `submit_many` against Celery's `apply_async`, ten thousand waits, and a web server's requests.

No worker runs: what is measured is the side of the apps. The web server is the FastAPI example (web_app.py), in a
process of its own; 1,000 requests come, 50 at once, while another client asks it for an answer that needs nothing.
Because the 50 send the next request as soon as they have an answer, a request takes 50 times what the server needs for
one: its CPU time is given beside the latencies, and how much of it is FastAPI's alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from pipeq import AsyncClient, Client
from pipeq.contract import keys
from pipeq.demo.embedded import free_ports, valkey

from benchmarks.report import Options, Ratio, Result, against, alternate

PIPELINE = "text-classification"
TEXT = "the queue was not here " * 4
OURS_A_SECOND, THEIRS_A_SECOND = 4000, 400
WAITS = 10_000
REQUESTS, AT_ONCE = 1000, 50
ROOT = Path(__file__).parents[1]


def _ours(url: str, count: int, cpu: list[float]) -> float:
    with Client(url) as client:
        client.submit(PIPELINE, "warm", check=False)
        began, spent = time.perf_counter(), time.process_time()
        client.submit_many(PIPELINE, (TEXT for _ in range(count)), check=False)
        cpu.append((time.process_time() - spent) / count * 1e6)
        return count / (time.perf_counter() - began)


def _theirs(url: str, count: int, cpu: list[float]) -> float:
    app = Celery("stock", broker=url, backend=url, set_as_current=False)
    task = app.signature("pipeq.infer", kwargs={"pipeline": PIPELINE, "inputs": TEXT}, queue=PIPELINE)
    task.apply_async()
    began, spent = time.perf_counter(), time.process_time()
    for _ in range(count):
        task.apply_async()
    cpu.append((time.process_time() - spent) / count * 1e6)
    rate = count / (time.perf_counter() - began)
    app.close()
    return rate


def _finish(url: str, ids: list[str]) -> None:
    """Ends tasks, as workers do."""
    with redis.Redis.from_url(url) as db:
        for start in range(0, len(ids), 500):
            pipe = db.pipeline()
            for task in ids[start : start + 500]:
                text = json.dumps({"status": "SUCCESS", "result": task, "task_id": task, "pipeq": {}})
                pipe.set(keys.record_key(task), text, ex=600).publish(keys.record_key(task), text)
            pipe.execute()


async def _waits(url: str) -> tuple[float, int]:
    """Returns the CPU time of a wait in microseconds, and how many connections hear."""
    async with AsyncClient(url) as client:
        ids = await client.submit_many(PIPELINE, map(str, range(WAITS)), check=False)
        spent = time.process_time()
        waits = [asyncio.create_task(client.result(task, timeout_s=600)) for task in ids]
        db = redis.Redis.from_url(url)
        while db.pubsub_numsub(keys.record_key(ids[-1]))[0][1] == 0:
            await asyncio.sleep(0.1)
        connections = len(db.client_list(_type="pubsub"))
        db.close()
        await asyncio.to_thread(_finish, url, ids)
        await asyncio.gather(*waits)
        return (time.process_time() - spent) / WAITS * 1e6, connections


@contextmanager
def _server(url: str) -> Iterator[int]:
    [port] = free_ports(1)
    env = {**os.environ, "PIPEQ_REDIS_URL": url}
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.web_app", str(port)], env=env, cwd=ROOT)
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(20)


class _Caller:
    """One connection to the server, which sends a request when it has the answer of the last one."""

    def __init__(self, port: int) -> None:
        self._port = port
        #: Milliseconds until each answer.
        self.times_ms: list[float] = []

    async def ask(self, path: str, more: Callable[[], bool], text: str | None = None, pause_s: float = 0.0) -> bytes:
        """Sends a request again and again, and returns the last answer."""
        body = b"" if text is None else json.dumps({"text": text}).encode()
        head = f"{'GET' if text is None else 'POST'} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        request = f"{head}Content-Type: application/json\r\n\r\n".encode() + body
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        found = b""
        while more():
            began = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            found = await reader.readexactly(int(answer.lower().partition(b"content-length:")[2].split()[0]))
            self.times_ms.append((time.perf_counter() - began) * 1000)
            if b" 20" not in answer[:12]:
                raise RuntimeError(f"{answer!r} {found!r}")
            await asyncio.sleep(pause_s)
        writer.close()
        return found


async def _load(port: int, path: str) -> tuple[list[float], list[float], dict[str, Any]]:
    """Returns the milliseconds of the requests, and of the pings beside them, and what the server's clock says."""

    async def clock() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await _Caller(port).ask("/clock", iter([True, False]).__next__))
        return found

    # The connections to Redis are made before.
    await _Caller(port).ask(path, iter([True, False]).__next__, TEXT)
    left, callers, ping = iter(range(REQUESTS)), [_Caller(port) for _ in range(AT_ONCE)], _Caller(port)
    before = await clock()
    beside = asyncio.create_task(ping.ask("/ping", lambda: True, pause_s=0.02))
    await asyncio.gather(*(caller.ask(path, lambda: next(left, None) is not None, TEXT) for caller in callers))
    beside.cancel()
    after = await clock()
    cpu_us = (after["cpu_s"] - before["cpu_s"]) / REQUESTS * 1e6
    submits_ms = after["submits_ms"][len(before["submits_ms"]) :]
    return [one for caller in callers for one in caller.times_ms], ping.times_ms, {"us": cpu_us, "ms": submits_ms}


@dataclass
class _Requests:
    """What rounds of requests took."""

    request_p99_ms: list[float] = field(default_factory=list)
    submit_p99_ms: list[float] = field(default_factory=list)
    slowest_ping_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    #: The same of requests that submit nothing.
    empty_cpu_us: list[float] = field(default_factory=list)

    def add(self, url: str) -> None:
        """Runs one round."""
        with redis.Redis.from_url(url) as db:
            db.flushdb()
            db.hset(keys.PIPELINES, PIPELINE, "{}")
            db.zadd(keys.workers_key(PIPELINE), {"w1": time.time() + 3600})
        with _server(url) as port:
            empty = asyncio.run(_load(port, "/empty"))[2]
            requests, pings, found = asyncio.run(_load(port, "/tasks"))
        self.request_p99_ms.append(_p99(requests))
        self.submit_p99_ms.append(_p99(found["ms"]))
        self.slowest_ping_ms.append(max(pings))
        self.cpu_us.append(found["us"])
        self.empty_cpu_us.append(empty["us"])


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[-1]


def main(options: Options) -> list[Result]:
    """Runs all rounds."""
    counts = {
        "submit_many": int(OURS_A_SECOND * options.seconds),
        "apply_async": int(THEIRS_A_SECOND * options.seconds),
    }
    cpu: dict[str, list[float]] = {name: [] for name in counts}
    waits, hearing, web = [], [], _Requests()
    with valkey() as url:

        def run(name: str) -> float:
            with redis.Redis.from_url(url) as db:
                db.flushdb()
            return (_ours if name == "submit_many" else _theirs)(url, counts[name], cpu[name])

        found = alternate({name: lambda name=name: run(name) for name in counts}, options.rounds)  # type: ignore[misc]
        for _ in range(options.rounds):
            spent, connections = asyncio.run(_waits(url))
            waits.append(spent)
            hearing.append(float(connections))
            web.add(url)
    return [
        Result(
            "k",
            "Producers: bulk, waits, a web server",
            "tasks/s",
            found,
            [
                against("submit_many / apply_async", found["submit_many"], found["apply_async"], ">= 9"),
                against("CPU of a task: apply_async / submit_many", cpu["apply_async"], cpu["submit_many"], ""),
                Ratio("connections of 10,000 waits", hearing, "<= 1"),
                Ratio("CPU of a wait", waits, "", " us"),
                Ratio("1,000 requests, 50 at once: 99th percentile of submit", web.submit_p99_ms, "<= 20", " ms"),
                Ratio("99th percentile of the whole request", web.request_p99_ms, "", " ms"),
                Ratio("the slowest ping beside them", web.slowest_ping_ms, "<= 50", " ms"),
                Ratio("CPU of a request in the server", web.cpu_us, "", " us"),
                Ratio("the same without a submit", web.empty_cpu_us, "", " us"),
            ],
            f"{counts['submit_many']} and {counts['apply_async']} tasks of 20 words a round; CPU of a task "
            f"{statistics.median(cpu['submit_many']):.0f} us and {statistics.median(cpu['apply_async']):.0f} us. "
            "Client and server of the requests share the machine.",
        )
    ]
