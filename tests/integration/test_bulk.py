"""Bulk that is polite: its priority, a full queue, streams of ids and of results. Through both clients."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
from pipeq import AsyncClient, Client, PipeqError, QueueFullError, RedisUnavailableError, SubmitError, TaskFailedError
from pipeq.contract import keys
from pipeq.submitting import CHUNK_TASKS

from tests import both_clients
from tests.integration.conftest import PIPELINE

BULK = keys.list_key(PIPELINE, 6)


@pytest.fixture(params=both_clients.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Worker:
    """Takes messages from the lists and ends their tasks, some at a time, in the order that it is told."""

    def __init__(self, url: str, order: Callable[[list[Any]], list[Any]] = list, pause_s: float = 0.005) -> None:
        self._db = redis.Redis.from_url(url)
        self._order = order
        self._pause_s = pause_s
        self._stop = threading.Event()
        self.most_waiting = 0
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._db.close()

    def _work(self) -> None:
        while not self._stop.wait(self._pause_s):
            self.most_waiting = max(self.most_waiting, self._db.llen(BULK))
            some = self._db.rpop(BULK, 50) or []
            pipe = self._db.pipeline()
            for raw in self._order(some):
                self._end(pipe, json.loads(raw))
            pipe.execute()

    def _end(self, pipe: Any, message: dict[str, Any]) -> None:
        import base64

        inputs = json.loads(base64.b64decode(message["body"]))[1]["inputs"]
        key, ended = keys.record_key(message["headers"]["id"]), {"status": "SUCCESS", "result": f"{inputs}!"}
        if inputs == "bad":
            error = {"code": "invalid_input", "message": "it is bad", "retryable": False}
            ended = {"status": "FAILURE", "result": None, "pipeq": {"error": error}}
        text = json.dumps({"pipeq": {}, **ended, "task_id": message["headers"]["id"]})
        pipe.set(key, text, ex=60).publish(key, text)


# -- priority ---------------------------------------------------------------------------------------------------------


def test_bulk_stands_behind_single_submits(client: Client, db: redis.Redis) -> None:
    client.submit_many(PIPELINE, ["a", "b"])
    list(client.submit_each(PIPELINE, ["c"]))
    client.submit(PIPELINE, "d")
    client.submit_many(PIPELINE, ["e"], priority=0)
    assert (db.llen(BULK), db.llen(PIPELINE)) == (3, 2)


# -- a full queue -----------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_a_single_submit_at_once(client: Client, db: redis.Redis) -> None:
    client.submit_many(PIPELINE, ["x"] * 3)
    client.submit(PIPELINE, "x", max_backlog=4)
    db.zadd(keys.fair_key(PIPELINE), {"moved": 1})  # what workers moved to take turns counts, too
    with pytest.raises(
        QueueFullError, match=f"max_backlog: '{PIPELINE}' has 5 tasks in its queue, and at most 5"
    ) as caught:
        client.submit(PIPELINE, "x", max_backlog=5)
    assert (caught.value.code, caught.value.retryable, caught.value.submitted) == ("queue_full", True, ())
    assert isinstance(caught.value, SubmitError)
    assert db.llen(PIPELINE) == 1


def test_a_limit_is_kept_though_another_client_submits_meanwhile(
    client: Client, db: redis.Redis, valkey_url: str
) -> None:
    for _ in range(3):
        client.submit(PIPELINE, "x", max_backlog=10)
    with Client(valkey_url) as other:
        other.submit_many(PIPELINE, ["x"] * 5, priority=0, check=False)
    with pytest.raises(QueueFullError, match="has 10 tasks in its queue, and at most 10"):
        [client.submit(PIPELINE, "x", max_backlog=10) for _ in range(8)]
    assert db.llen(PIPELINE) == 10


def test_a_full_queue_ends_a_bulk_submit_that_does_not_wait(client: Client, db: redis.Redis) -> None:
    began = time.monotonic()
    with pytest.raises(QueueFullError) as caught:
        client.submit_many(PIPELINE, itertools.count(), max_backlog=100, full_wait_s=0.2)
    assert 0.2 <= time.monotonic() - began < 10
    assert len(caught.value.submitted) == db.llen(BULK) == 100


def test_a_bulk_submit_waits_for_room(client: Client, db: redis.Redis, valkey_url: str) -> None:
    with Worker(valkey_url) as worker:
        ids = client.submit_many(PIPELINE, map(str, range(600)), max_backlog=40)
        assert len(set(ids)) == 600
        assert {status.state for status in client.as_completed(ids, timeout_s=60)} == {"succeeded"}
    assert worker.most_waiting <= 40


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "10", True, 10**10], ids=str)
def test_a_limit_that_is_none_is_refused(client: Client, wrong: Any) -> None:
    for call in (client.submit, client.submit_many):
        with pytest.raises(SubmitError, match="max_backlog"):
            call(PIPELINE, ["x"], max_backlog=wrong)


# -- ids as they go ---------------------------------------------------------------------------------------------------


def test_ids_come_as_tasks_are_queued_and_nothing_is_read_ahead(
    client: Client, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeq.bulk_calls.SLOW_S", 60)  # on a busy machine, anything may take some time
    read = []

    def endless() -> Iterator[str]:
        for number in itertools.count():
            read.append(number)
            yield str(number)

    ids = client.submit_each(PIPELINE, endless())
    first = list(itertools.islice(ids, 10))
    assert len(read) == db.llen(BULK) == CHUNK_TASKS
    queued = [json.loads(raw)["headers"]["id"] for raw in reversed(db.lrange(BULK, -10, -1))]
    assert queued == first
    list(itertools.islice(ids, CHUNK_TASKS))
    assert len(read) == 2 * CHUNK_TASKS
    ids.close()  # type: ignore[attr-defined]


def test_what_is_slow_to_come_is_queued_at_once(client: Client, db: redis.Redis) -> None:
    def slow() -> Iterator[str]:
        for number in range(3):
            time.sleep(0.05)
            yield str(number)

    assert [db.llen(BULK) for _ in client.submit_each(PIPELINE, slow())] == [1, 2, 3]


def test_a_stream_in_a_loop_may_be_asynchronous(db: redis.Redis, valkey_url: str) -> None:
    async def inputs(count: int) -> AsyncIterator[str]:
        for number in range(count):
            await asyncio.sleep(0)
            yield str(number)
        if count == 4:
            raise OSError("the stream broke")

    async def main() -> None:
        async with AsyncClient(valkey_url) as client:
            assert len(await client.submit_many(PIPELINE, inputs(700))) == 700
            ids = [one async for one in client.submit_each(PIPELINE, inputs(3), task_ids=["a", "b", "c"])]
            assert ids == ["a", "b", "c"]
            with pytest.raises(SubmitError, match="task_ids ends after 1 value,"):
                await client.submit_many(PIPELINE, inputs(2), task_ids=["d"])
            with pytest.raises(SubmitError, match=r"inputs raised .*the stream broke.* after 4 of them"):
                await client.submit_many(PIPELINE, inputs(4))
            with Worker(valkey_url):
                found = [one async for one in client.map(PIPELINE, inputs(300), in_flight=20)]
            assert found == [f"{number}!" for number in range(300)]

    asyncio.run(main())
    with Client(valkey_url) as client, pytest.raises(SubmitError, match="AsyncClient"):
        client.submit_many(PIPELINE, inputs(2))  # type: ignore[arg-type]


# -- results as they go -----------------------------------------------------------------------------------------------


def test_map_yields_results_in_order(client: Client, db: redis.Redis, valkey_url: str) -> None:
    with Worker(valkey_url, order=lambda some: some[::-1]):
        found = list(client.map(PIPELINE, map(str, range(500)), in_flight=64))
    assert found == [f"{number}!" for number in range(500)]


def test_map_yields_results_as_they_end(client: Client, db: redis.Redis, valkey_url: str) -> None:
    with Worker(valkey_url, order=lambda some: some[::-1]):
        found = list(client.map(PIPELINE, map(str, range(500)), in_flight=64, ordered=False))
    assert found != [f"{number}!" for number in range(500)]
    assert sorted(found) == sorted(f"{number}!" for number in range(500))


def test_map_has_so_many_under_way_and_no_more(client: Client, db: redis.Redis, valkey_url: str) -> None:
    read, yielded = itertools.count(), 0
    reached = 0

    def endless() -> Iterator[str]:
        nonlocal reached
        for number in read:
            reached = max(reached, number + 1 - yielded)
            yield str(number)

    with Worker(valkey_url):
        for number, found in enumerate(client.map(PIPELINE, endless(), in_flight=30)):
            assert found == f"{number}!"
            yielded += 1
            if number == 400:
                break
    assert 20 <= reached <= 30


def test_map_over_a_stream_without_an_end_keeps_memory_flat(client: Client, db: redis.Redis, valkey_url: str) -> None:
    with Worker(valkey_url, pause_s=0.001):
        results = iter(client.map(PIPELINE, (f"{n:01000}" for n in itertools.count()), in_flight=100))
        for _ in range(300):
            next(results)
        tracemalloc.start()
        try:
            for _ in range(1500):
                next(results)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        results.close()  # type: ignore[attr-defined]
    assert peak < 3 * 2**20, f"{peak / 2**20:.1f} MiB"


def test_a_failed_task_ends_map_or_is_yielded(client: Client, db: redis.Redis, valkey_url: str) -> None:
    inputs = ["a", "bad", "b"]
    with Worker(valkey_url):
        results = client.map(PIPELINE, inputs)
        assert next(results) == "a!"
        with pytest.raises(TaskFailedError, match="it is bad") as caught:
            next(results)
        assert caught.value.status.id
        first, second, third = client.map(PIPELINE, inputs, return_exceptions=True)
    assert (first, third) == ("a!", "b!")
    assert isinstance(second, TaskFailedError)


def test_an_input_that_cannot_be_sent_is_said_after_the_results_before_it(
    client: Client, db: redis.Redis, valkey_url: str
) -> None:
    with Worker(valkey_url):
        results = client.map(PIPELINE, iter(["a", "b", object(), "c"]), in_flight=2)
        assert [next(results), next(results)] == ["a!", "b!"]
        with pytest.raises(SubmitError, match=r"inputs\[2\]: object is not JSON"):
            next(results)


def test_map_of_nothing_is_empty(client: Client) -> None:
    assert list(client.map(PIPELINE, [])) == []


@pytest.mark.parametrize(
    "wrong", [{"in_flight": 0}, {"in_flight": "5"}, {"ordered": 1}, {"return_exceptions": None}, {"params": 5}], ids=str
)
def test_arguments_of_map_are_checked_at_once(client: Client, wrong: dict[str, Any]) -> None:
    with pytest.raises(PipeqError, match=next(iter(wrong))):
        client.map(PIPELINE, ["x"], **wrong)


def test_a_redis_that_is_not_there_is_said(new: Any) -> None:
    client = new("redis://127.0.0.1:9/0")
    for call in (client.map, client.submit_each):
        with pytest.raises(RedisUnavailableError):
            next(call(PIPELINE, ["x"]))


def test_each_task_has_its_custom_id(client: Client, db: redis.Redis) -> None:
    names = ["row 1", None, "row 3"]
    output = "s3://results/{custom_id}-{id}.json"
    with pytest.raises(SubmitError, match=r"inputs\[1\].*custom_id"):
        client.submit_many(PIPELINE, ["a", "b", "c"], custom_ids=names, output=output)
    client.submit_many(PIPELINE, ["a", "b", "c"], custom_ids=names, priority=0)
    list(client.submit_each(PIPELINE, ["d"], custom_ids=["row 4"], priority=0))
    bodies = [base64.b64decode(json.loads(one)["body"]) for one in reversed(db.lrange(PIPELINE, 0, -1))]
    assert [json.loads(one)[1].get("custom_id") for one in bodies] == [*names, "row 4"]
    with pytest.raises(SubmitError, match="custom_ids has 1 value for 2 inputs"):
        client.submit_many(PIPELINE, ["a", "b"], custom_ids=["row"])
    with pytest.raises(SubmitError, match=r"custom_ids\[1\] 5 is not text"):
        client.submit_many(PIPELINE, ["a", "b"], custom_ids=["row", 5])
