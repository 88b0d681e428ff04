"""A task's id is any text: a task with any id that Celery accepts ends, with its result or its error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from pipeq import Client, State
from pipeq.contract import keys
from pipeq.demo import embedded

from tests.worker_process import worker

IDS = ["report 5", "user/42", "äöü", "a" * 201, "../../x", "..", "a%2F..", "line\nbreak", "\0", "日本" * 150]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Path]]:
    """A worker with a pipeline, and the folder for its results."""
    folder = tmp_path_factory.mktemp("ids")
    store = folder / "store"
    store.mkdir()
    env = {"PIPEQ_RESULTS__ALLOW": json.dumps([f"{store.as_uri()}/"])}
    with embedded.valkey() as url, worker(folder, url, "constant", **env) as process, Client(url) as client:
        process.wait_ready(client, "constant")
        yield client, store


def test_a_stock_caller_gets_the_result_of_any_id(served: tuple[Client, Path]) -> None:
    client, store = served
    app = Celery("stock", broker=client.redis_url, backend=client.redis_url)
    message = {"pipeline": "constant", "inputs": 1}
    for task_id in IDS:
        assert app.send_task("pipeq.infer", kwargs=message, queue="constant", task_id=task_id).get(timeout=30)
        assert client.status(task_id).state is State.SUCCEEDED
    # In a store each task has objects of its own, below the folder that was asked for.
    message["output"] = {"uri": f"{store.as_uri()}/deep/"}
    sent = [app.send_task("pipeq.infer", kwargs=message, queue="constant", task_id=f"{one}-o") for one in IDS]
    uris = [one.get(timeout=30)["uri"] for one in sent]
    assert uris == [f"{store.as_uri()}/deep/{keys.object_name(f'{one}-o')}.json" for one in IDS]
    assert {f"{store.as_uri()}/deep/{path.name}" for path in (store / "deep").iterdir()} == set(uris)
    assert [path.name for path in store.iterdir()] == ["deep"]


def test_an_id_that_is_too_long_fails_under_itself(served: tuple[Client, Path]) -> None:
    client, _ = served
    app = Celery("stock", broker=client.redis_url, backend=client.redis_url)
    message = {"pipeline": "constant", "inputs": 1}
    sent = app.send_task("pipeq.infer", kwargs=message, queue="constant", task_id="x" * 1001)
    with pytest.raises(Exception, match="invalid_message") as caught:
        sent.get(timeout=30)
    assert "text of 1 to 1000 bytes" in str(caught.value)
