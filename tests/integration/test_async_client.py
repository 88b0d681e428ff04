"""What only the asynchronous client has: an event loop. All else runs through both, see tests/both_clients.py."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis
from pipeq import AsyncClient, Client, InEventLoopWarning, PipeqError, SettingsError, State, WaitTimeoutError
from pipeq.async_client import AsyncDeadLetters
from pipeq.backlog import OLD_S
from pipeq.contract import keys
from pipeq.dead import DeadLetters
from pipeq.jobs.async_jobs import AsyncJobs
from pipeq.jobs.jobs import Jobs
from pipeq.waiting import RECHECK_S

from tests.integration.conftest import PIPELINE
from tests.waiting import until, within

#: Of both clients, what belongs to blocks of `with`.
BLOCKS = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__"}


def finish(db: redis.Redis, *task_ids: str) -> None:
    """Stores and publishes records, as a worker does."""
    pipe = db.pipeline()
    for task_id in task_ids:
        record = json.dumps({"status": "SUCCESS", "result": task_id, "task_id": task_id, "pipeq": {}})
        pipe.set(keys.record_key(task_id), record, ex=60).publish(keys.record_key(task_id), record)
    pipe.execute()


async def until_async(met: Callable[[], object], within_s: float = 60) -> None:
    """As :func:`tests.waiting.until`, while the event loop goes on."""
    async with asyncio.timeout(within_s):
        while not met():
            await asyncio.sleep(0.02)


def run(url: str, act: Callable[[AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        async with AsyncClient(url) as client:
            return await act(client)

    return asyncio.run(main())


# -- one source -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocking", "awaited"), [(Client, AsyncClient), (DeadLetters, AsyncDeadLetters), (Jobs, AsyncJobs)]
)
def test_both_have_the_same_methods_with_the_same_words(blocking: type, awaited: type) -> None:
    mine = {name for name in vars(blocking) if not name.startswith("_") or name in BLOCKS}
    assert {BLOCKS.get(name, name) for name in mine} == {
        name for name in vars(awaited) if not name.startswith("_") or name in BLOCKS.values()
    }
    for name in mine - BLOCKS.keys() - {"jobs"}:
        one, other = getattr(blocking, name), getattr(awaited, name)
        assert one.__doc__ == other.__doc__
        assert one.__doc__
        here, there = inspect.signature(one), inspect.signature(other)
        assert here.parameters == there.parameters, name
        returns = str(here.return_annotation).replace("Iterator[", "AsyncIterator[").replace("Dead", "AsyncDead")
        if returns.startswith("AsyncDead") or "AsyncIterator" in returns:
            assert str(there.return_annotation) == returns.replace("AsyncDeadLetter]", "DeadLetter]")
        else:
            assert inspect.iscoroutinefunction(other), name
            assert there.return_annotation == here.return_annotation, name


def test_the_signatures_say_what_is_returned() -> None:
    found = {name: str(inspect.signature(getattr(Client, name)).return_annotation) for name in vars(Client)
             if not name.startswith("_") and name != "jobs"}  # fmt: skip
    assert not [name for name, returns in found.items() if "Steps" in returns or "Stream" in returns]
    assert (found["submit"], found["as_completed"]) == ("str", "Iterator[TaskStatus]")


# -- an event loop ----------------------------------------------------------------------------------------------------


def test_calls_of_the_same_moment_ask_the_same_question_once(valkey_url: str, client: Client, db: redis.Redis) -> None:
    async def main(calls: AsyncClient) -> None:
        await calls.submit(PIPELINE, "first", max_backlog=100)
        db.config_resetstat()
        await asyncio.gather(*(calls.submit(PIPELINE, str(n), max_backlog=100) for n in range(50)))

    run(valkey_url, main)
    done = {name: stats["calls"] for name, stats in db.info("commandstats").items()}
    assert (done["cmdstat_set"], done["cmdstat_lpush"]) == (50, 50)
    # Of the backlog, and of the workers.
    assert done["cmdstat_llen"] <= 40
    assert done["cmdstat_hexists"] <= 10
    assert db.llen(PIPELINE) == 51


def test_submits_that_follow_each_other_ask_now_and_then_how_long_the_queue_is(
    valkey_url: str, client: Client, db: redis.Redis
) -> None:
    async def main(calls: AsyncClient) -> float:
        await calls.submit(PIPELINE, "first")
        db.config_resetstat()
        began = time.monotonic()
        for _ in range(20):
            await asyncio.gather(*(calls.submit(PIPELINE, "more", max_backlog=10_000) for _ in range(10)))
        return time.monotonic() - began

    took_s = run(valkey_url, main)
    most_looks = 1 + took_s / OLD_S
    assert db.info("commandstats")["cmdstat_llen"]["calls"] <= most_looks * len(keys.list_keys(PIPELINE))
    assert db.llen(PIPELINE) == 201


@pytest.mark.parametrize("most", [1, 2, 3])
def test_few_connections_serve_all_calls(valkey_url: str, db: redis.Redis, most: int) -> None:
    async def main(calls: AsyncClient) -> None:
        async def submit_some() -> None:
            for _ in range(20):
                await calls.submit(PIPELINE, "x", check=False)

        async with asyncio.timeout(60):
            await asyncio.gather(*(submit_some() for _ in range(30)))

    run(f"{valkey_url}?max_connections={most}", main)
    assert db.llen(PIPELINE) == 600


def test_no_call_waits_for_a_connection_that_is_being_made_while_another_one_is_there(
    valkey_url: str, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(calls: AsyncClient) -> None:
        await calls.submit(PIPELINE, "first", check=False)
        connect = redis.asyncio.Connection.connect_check_health

        async def slowly(self: redis.asyncio.Connection, *args: Any, **kwargs: Any) -> None:
            if not self.is_connected:
                slow.append(self)
                await asyncio.sleep(600)
            await connect(self, *args, **kwargs)

        slow: list[redis.asyncio.Connection] = []
        monkeypatch.setattr(redis.asyncio.Connection, "connect_check_health", slowly)

        async def submit_some() -> None:
            for number in range(20):
                await asyncio.sleep(0.001 * number)
                await calls.submit(PIPELINE, "x", check=False)

        async with asyncio.timeout(60):
            await asyncio.gather(*(submit_some() for _ in range(30)))
        assert slow

    run(valkey_url, main)
    assert db.llen(PIPELINE) == 601


def test_the_blocking_client_in_a_loop_warns_once_and_names_the_other(client: Client) -> None:
    async def twice() -> None:
        client.ping()
        client.ping()

    with pytest.warns(InEventLoopWarning, match="AsyncClient") as caught:
        asyncio.run(twice())
    assert [one.filename for one in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.ping()


def test_a_client_of_a_module_serves_one_loop_after_the_other(db: redis.Redis, valkey_url: str) -> None:
    client = AsyncClient(valkey_url)

    async def main() -> str:
        task = await client.submit(PIPELINE, "x")
        finish(db, task)
        assert await client.result(task, timeout_s=20) == task
        await client.close()
        return task

    assert asyncio.run(main()) != asyncio.run(main())


def test_a_client_is_not_shared_by_two_loops(db: redis.Redis, valkey_url: str) -> None:
    async def main(client: AsyncClient) -> None:
        other = asyncio.new_event_loop()
        try:
            with pytest.raises(SettingsError, match="another event loop"):
                await asyncio.to_thread(other.run_until_complete, client.ping())
        finally:
            other.close()

    async def first(client: AsyncClient) -> None:
        await client.ping()
        await main(client)

    run(valkey_url, first)


def test_ten_thousand_waits_hear_on_one_connection(db: redis.Redis, valkey_url: str) -> None:
    count = 10_000

    async def main(client: AsyncClient) -> None:
        ids = await client.submit_many(PIPELINE, map(str, range(count)))
        waits = [asyncio.create_task(client.result(one, timeout_s=200)) for one in ids]
        await until_async(lambda: db.pubsub_numsub(keys.record_key(ids[-1]))[0][1] > 0)
        # Connections of an earlier test may end a moment later.
        until(lambda: len(db.client_list(_type="pubsub")) == 1)
        until(lambda: len(db.client_list()) <= 12)
        await asyncio.to_thread(finish, db, *ids)
        assert await asyncio.gather(*waits) == ids

    run(valkey_url, main)


def test_threads_hear_on_one_connection_too(client: Client, db: redis.Redis) -> None:
    from concurrent.futures import ThreadPoolExecutor

    ids = client.submit_many(PIPELINE, map(str, range(40)))
    with ThreadPoolExecutor(40) as pool:
        waits = [pool.submit(client.result, one, 60) for one in ids]
        until(lambda: all(n for _, n in db.pubsub_numsub(*map(keys.record_key, ids))))
        until(lambda: len(db.client_list(_type="pubsub")) == 1)
        for one in ids:
            finish(db, one)
        assert [wait.result() for wait in waits] == ids


def test_a_call_that_is_cancelled_disturbs_no_other(db: redis.Redis, valkey_url: str) -> None:
    async def main(client: AsyncClient) -> None:
        ids = await client.submit_many(PIPELINE, map(str, range(50)))
        calls = [asyncio.create_task(client.status(one)) for one in ids for _ in range(4)]
        calls += [asyncio.create_task(client.wait(one, 20)) for one in ids]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        rest = calls[1:200:2]
        assert {status.state for status in await asyncio.gather(*rest)} == {State.QUEUED}
        finish(db, *ids)
        assert {status.state for status in await asyncio.gather(*calls[201::2])} == {State.SUCCEEDED}
        assert (await client.status(ids[0])).result == ids[0]

    run(valkey_url, main)


def test_what_is_no_answer_of_redis_costs_no_wait_its_hearing(
    valkey_url: str, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something between garbles one answer. The task that reads ended, and nobody heard anything any more."""
    read, garbled = redis.asyncio.Connection.read_response, [1]

    async def garble(self: redis.asyncio.Connection, *args: Any, **kwargs: Any) -> Any:
        found = await read(self, *args, **kwargs)
        if kwargs.get("push_request") and garbled:
            garbled.pop()
            raise redis.exceptions.InvalidResponse("no answer of Redis")
        return found

    monkeypatch.setattr(redis.asyncio.Connection, "read_response", garble)

    async def main(client: AsyncClient) -> None:
        task_id = await client.submit(PIPELINE, "x")
        wait = asyncio.create_task(client.result(task_id, timeout_s=20))
        await until_async(lambda: not garbled and db.pubsub_numsub(keys.record_key(task_id))[0][1] > 0)
        await asyncio.to_thread(finish, db, task_id)
        with within(RECHECK_S):
            assert await wait == task_id

    run(valkey_url, main)


def test_threads_survive_it_too(client: Client, db: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    read, garbled = redis.Connection.read_response, [1]

    def garble(self: redis.Connection, *args: Any, **kwargs: Any) -> Any:
        found = read(self, *args, **kwargs)
        if kwargs.get("push_request") and garbled:
            garbled.pop()
            raise redis.exceptions.InvalidResponse("no answer of Redis")
        return found

    task_id = client.submit(PIPELINE, "x")
    monkeypatch.setattr(redis.Connection, "read_response", garble)
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(client.result, task_id, 20)
        until(lambda: not garbled and db.pubsub_numsub(keys.record_key(task_id))[0][1] > 0)
        finish(db, task_id)
        assert wait.result(5) == task_id


def test_other_tasks_run_while_one_waits(valkey_url: str, db: redis.Redis) -> None:
    async def main(client: AsyncClient) -> None:
        task = await client.submit(PIPELINE, "x")

        async def tick() -> None:
            for _ in range(5):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(finish, db, task)

        ticking = asyncio.create_task(tick())
        # If the wait held the loop, nobody would end the task that it waits for.
        assert await client.result(task, timeout_s=60) == task
        await ticking
        with pytest.raises(WaitTimeoutError):
            await client.result(await client.submit(PIPELINE, "x"), timeout_s=0.1)

    run(valkey_url, main)


def test_an_iterator_that_is_left_early_is_closed(valkey_url: str, db: redis.Redis) -> None:
    async def main(client: AsyncClient) -> None:
        ids = await client.submit_many(PIPELINE, map(str, range(3)))
        finish(db, ids[1])
        async for status in client.as_completed(ids, timeout_s=20):
            assert status.id == ids[1]
            break
        with pytest.raises(PipeqError, match="task_ids"):
            client.as_completed("abc")

    run(valkey_url, main)


def test_calls_that_are_under_way_end_with_the_client(valkey_url: str, db: redis.Redis) -> None:
    async def main(client: AsyncClient) -> None:
        async def stream(found: Any) -> None:
            async for _ in found:
                pass

        ids = await client.submit_many(PIPELINE, ["a", "b", "c"])
        before = set(db.pubsub_channels())
        waits = [
            asyncio.create_task(one)
            for one in (
                client.result(ids[0]),
                client.wait(ids[1]),
                stream(client.as_completed(ids[2:])),
                stream(client.map(PIPELINE, ["d", "e"])),
            )
        ]
        # Those of an earlier test may be there a moment longer.
        await until_async(lambda: len(set(db.pubsub_channels()) - before) >= 5)
        await client.close()
        found = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 20)
        assert [one for one in found if not isinstance(one, PipeqError)] == []
        assert [str(one) for one in found if "was closed" not in str(one)] == []
        until(lambda: not db.pubsub_channels())  # the server reads of the end a moment later
        await client.ping()  # what begins later connects again

    run(valkey_url, main)
