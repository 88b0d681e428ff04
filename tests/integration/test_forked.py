"""A client that was made before its process forked, as gunicorn and Celery do it: both sides go on with it."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from typing import Any

import pytest
import redis
from pipeq import AsyncClient, Client, WaitTimeoutError

from tests.integration.conftest import PIPELINE

#: Python itself warns of a fork beside threads from 3.12 on; servers do it nevertheless.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
FORK = multiprocessing.get_context("fork")


def forked(child: Any, *arguments: Any, parent: Any) -> list[Any]:
    """What three children and, at the same time, their parent return."""
    answers = FORK.SimpleQueue()

    def run() -> None:
        try:
            answers.put(child(*arguments))
        except BaseException as error:  # else the parent would wait for it
            answers.put(repr(error))

    children = [FORK.Process(target=run) for _ in range(3)]
    for one in children:
        one.start()
    found = [parent(*arguments)] + [answers.get() for _ in children]
    for one in children:
        one.join(20)
        assert one.exitcode == 0
    return found


def submitted(client: Client) -> list[str]:
    ids = [client.submit(PIPELINE, str(at)) for at in range(50)]
    with pytest.raises(WaitTimeoutError):
        client.wait(ids[0], timeout_s=0.2)
    return [str(one.state) for one in client.status_many(ids)]


def test_a_client_and_its_copies_talk_on_connections_of_their_own(valkey_url: str, db: redis.Redis) -> None:
    with Client(valkey_url) as client:
        waiting = client.submit(PIPELINE, "first")
        thread = threading.Thread(target=lambda: client.wait(waiting, timeout_s=60))
        thread.start()
        assert forked(submitted, client, parent=submitted) == [["queued"] * 50] * 4
        client.cancel(waiting)
        thread.join(20)
        assert not thread.is_alive(), "the wait of the parent goes on"


def test_an_asynchronous_one_works_in_the_loops_of_children(valkey_url: str, db: redis.Redis) -> None:
    client = AsyncClient(valkey_url)

    async def story() -> list[str]:
        async with client:  # what it opens in a loop is closed there
            ids = await client.submit_many(PIPELINE, map(str, range(50)))
            return [str(one.state) for one in await client.status_many(ids)]

    def run() -> list[str]:
        return asyncio.run(story())

    assert run() == ["queued"] * 50
    assert forked(run, parent=run) == [["queued"] * 50] * 4
