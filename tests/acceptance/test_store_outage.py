"""A store that is away for a while, under load: other tasks go on, and afterwards every task succeeds, once."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from pipeq import Client, Ref, State
from pipeq.contract import keys
from pipeq.demo import embedded

from tests import tiny_models
from tests.proxy import Proxy
from tests.worker_process import worker

PIPELINE = "text-classification"
#: How long the store is away, in seconds; `make long` takes two minutes.
OUTAGE_S = float(os.environ.get("OUTAGE_S", "15"))
#: So long it may take to notice that, and to put off the tasks that came at once, in seconds.
NOTICED_S = 7.0
#: Tasks a second: whose input is in their message, and whose input is in the store.
INLINE_RATE, STORED_RATE = 10, 5
#: Tasks with an input in the store that come at once when it goes away: more than are inside a worker at a time.
BURST = 300
#: Once it is noticed, half of the inline tasks may take so long, and before that the slowest, in seconds. The tests
#: share the cores with others; on idle ones it is some milliseconds.
USUAL_S, MOST_S = 3.0, 15.0
STORED, INLINE = Ref("s3://inputs/outage/a.txt"), Ref(base64=base64.b64encode(b"the quick fox").decode())


def end_quietly(error: BaseException, pubsub: object, thread: Any) -> None:
    """The server ends before the listener if the test fails."""
    thread.stop()


class Outage:
    """An S3 server behind a proxy, which goes away and comes back."""

    def __init__(self, server: embedded.S3Server) -> None:
        self._target = urlsplit(server.endpoint_url).port or 0
        # One that nobody gets by chance while the store is away.
        (self._port,) = embedded.free_ports(1)
        self._proxy = Proxy(self._target, listen=self._port)
        self.url = f"http://127.0.0.1:{self._port}"

    def refuse(self) -> None:
        self._proxy.close()

    def fall_silent(self) -> None:
        self._proxy.is_silent = True

    def come_back(self) -> None:
        if self._proxy.is_silent:
            self._proxy.cut()
            self._proxy.is_silent = False
        else:
            self._proxy = Proxy(self._target, listen=self._port)

    def close(self) -> None:
        self._proxy.close()


class Load:
    """Submits tasks at a steady rate, until it is ended."""

    def __init__(self, client: Client, input_: object, rate: float) -> None:
        self.ids: list[str] = []
        self._client, self._input, self._rate = client, input_, rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(1 / self._rate):
            self.ids.append(self._client.submit(PIPELINE, self._input))

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def waited(client: Client, ids: list[str]) -> list[float]:
    """Seconds from submit to end of tasks that have succeeded."""
    statuses = [client.wait(task, timeout_s=120) for task in ids]
    assert {status.state for status in statuses} == {State.SUCCEEDED}
    return sorted((s.finished_at or 0) - (s.submitted_at or 0) for s in statuses)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "go_away", [Outage.refuse, pytest.param(Outage.fall_silent, marks=pytest.mark.long)], ids=["refused", "silent"]
)
def test_a_store_that_is_away_under_load(
    go_away: Callable[[Outage], None],
    redis_url: str,
    tiny: Path,
    tmp_path: Path,
    s3_server: embedded.S3Server,
) -> None:
    model = tiny_models.build("classifier", tiny)
    s3_server.client().put_object(Bucket="inputs", Key="outage/a.txt", Body=b"the quick fox")
    outage = Outage(s3_server)
    env = {**s3_server.env(), "AWS_ENDPOINT_URL": outage.url, "AWS_ENDPOINT_URL_S3": outage.url}
    published: Counter[bytes] = Counter()
    with (
        worker(
            tmp_path,
            redis_url,
            *(f"{PIPELINE}={model}", "--allow", "s3://inputs/"),
            # So that the test does not wait for minutes after the outage.
            retry_backoff_max_s=30,
            prefetch=128,
            **env,
        ) as process,
        Client(redis_url) as client,
        redis.Redis.from_url(redis_url) as db,
    ):
        process.wait_ready(client, PIPELINE)
        listener = db.pubsub(ignore_subscribe_messages=True)

        def heard(message: dict[str, Any]) -> None:
            if b'"SUCCESS"' in message["data"][:40] or b'"FAILURE"' in message["data"][:40]:
                published[message["channel"]] += 1

        listener.psubscribe(**{"celery-task-meta-*": heard})
        listening = listener.run_in_thread(sleep_time=0.05, daemon=True, exception_handler=end_quietly)
        loads = [Load(client, "the quick fox", INLINE_RATE), Load(client, INLINE, INLINE_RATE)]
        stored = Load(client, STORED, STORED_RATE)
        time.sleep(3)
        before = [len(load.ids) for load in loads]
        go_away(outage)
        burst = client.submit_many(PIPELINE, [STORED] * BURST, priority=0)
        time.sleep(NOTICED_S)
        noticed = [len(load.ids) for load in loads]
        time.sleep(OUTAGE_S - NOTICED_S)
        seen = Counter(status.state for status in client.status_many(burst))
        for load in loads:
            load.end()
        retrying = [status for status in client.status_many(burst) if status.state is State.RETRYING]
        outage.come_back()
        stored.end()
        for name, load, first, then in zip(("text", "bytes"), loads, before, noticed, strict=True):
            parts = {"before": (0, first), "at first": (first, then), "then": (then, len(load.ids))}
            took = {part: waited(client, load.ids[slice(*ends)]) for part, ends in parts.items()}
            for part, times in took.items():
                median, longest = times[len(times) // 2], times[-1]
                print(f"{name}, {part}: {len(times)} tasks, median {median:.3f} s, longest {longest:.3f} s")
            assert took["then"][len(took["then"]) // 2] < USUAL_S
            assert took["at first"][-1] < MOST_S
        print(f"after {OUTAGE_S:.0f} s without the store: {dict(seen)}")
        assert seen[State.FAILED] == 0
        # What an operator sees meanwhile: when the next try is, and why the last one failed.
        assert retrying
        for status in retrying:
            assert status.due_at is not None
            assert status.error is not None
            assert status.error.code == "input_unavailable"
        ids = [*stored.ids, *burst]
        took_s = waited(client, ids)
        print(f"stored: {len(ids)} tasks, the slowest took {took_s[-1]:.1f} s")
        assert not db.exists(keys.dead_letter_key(PIPELINE))
        everything = [*ids, *(task for load in loads for task in load.ids)]
        deadline = time.monotonic() + 10
        while len(published) < len(everything) and time.monotonic() < deadline:
            time.sleep(0.05)
        listening.stop()
        listening.join()
        assert published == Counter({keys.record_key(task).encode(): 1 for task in everything})
        assert "no messages are taken" not in process.text()
        assert db.zcard(keys.waiting_key(PIPELINE)) == db.hlen("pipeq:unacked") == 0
    outage.close()
