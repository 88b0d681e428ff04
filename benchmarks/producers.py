"""Producers: `submit_many` against Celery's `apply_async`, ten thousand waits, and a web server's requests.

No worker runs: what is measured is the side of the apps. The web server is that of the examples, in a process of its
own; 1,000 requests come, 50 at once, while another client asks it for an answer that needs nothing.
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
from pathlib import Path

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
SERVER = Path(__file__).parents[1] / "examples/web_server.py"


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
    process = subprocess.Popen(
        [sys.executable, SERVER, str(port)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
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


async def _ask(port: int, request: bytes, wanted: bytes, times_ms: list[float], more: Callable[[], bool]) -> None:
    """Sends a request again and again on one connection, and notes the milliseconds until each answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while more():
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
        times_ms.append((time.perf_counter() - began) * 1000)
        if wanted not in head:
            raise RuntimeError(head.decode())
        if request.startswith(b"GET"):
            await asyncio.sleep(0.02)
    writer.close()


async def _load(port: int) -> tuple[list[float], list[float]]:
    submits: list[float] = []
    pings: list[float] = []
    left = iter(range(REQUESTS))
    body = TEXT.encode()
    post = b"POST / HTTP/1.1\r\nHost: x\r\nPrefer: respond-async\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    get = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
    beside = asyncio.create_task(_ask(port, get, b" 200 ", pings, lambda: True))
    await asyncio.gather(
        *(_ask(port, post, b" 202 ", submits, lambda: next(left, None) is not None) for _ in range(AT_ONCE))
    )
    beside.cancel()
    return submits, pings


def _requests(url: str) -> tuple[list[float], list[float]]:
    """Returns the milliseconds of each submit, and of each ping beside them."""
    with redis.Redis.from_url(url) as db:
        db.flushdb()
        db.hset(keys.PIPELINES, PIPELINE, "{}")
        db.zadd(keys.workers_key(PIPELINE), {"w1": time.time() + 3600})
    with _server(url) as port:
        return asyncio.run(_load(port))


def main(options: Options) -> list[Result]:
    """Runs all rounds."""
    counts = {
        "submit_many": int(OURS_A_SECOND * options.seconds),
        "apply_async": int(THEIRS_A_SECOND * options.seconds),
    }
    cpu: dict[str, list[float]] = {name: [] for name in counts}
    waits, hearing, p99, slowest = [], [], [], []
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
            submits, pings = _requests(url)
            p99.append(statistics.quantiles(submits, n=100)[-1])
            slowest.append(max(pings))
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
                Ratio("1,000 requests, 50 at once: 99th percentile", p99, "<= 20", " ms"),
                Ratio("the slowest ping beside them", slowest, "<= 50", " ms"),
            ],
            f"{counts['submit_many']} and {counts['apply_async']} tasks of 20 words a round; CPU of a task "
            f"{statistics.median(cpu['submit_many']):.0f} us and {statistics.median(cpu['apply_async']):.0f} us. "
            "Client and server of the requests share the machine.",
        )
    ]
