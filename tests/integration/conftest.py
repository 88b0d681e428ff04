"""Pipelines of tiny models, each loaded once for all the tests that only use it; a database, and a client of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from pipeq import Client
from pipeq.contract import keys
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings
from redis.asyncio.connection import AbstractConnection as AsyncAbstractConnection
from redis.connection import AbstractConnection

from tests import both_clients, ports, tiny_models
from tests.device import DEVICE

#: The pipeline of most tests that need no worker.
PIPELINE = "text-classification"
#: Makes a client.
New = Callable[..., Client]
#: Task type and tiny model -> their pipeline.
Loaded = Callable[[str, str], TransformersPipeline]


@pytest.fixture(scope="session")
def loaded(tiny: Path) -> Loaded:
    found: dict[tuple[str, str], TransformersPipeline] = {}

    def get(task: str, model: str) -> TransformersPipeline:
        if (task, model) not in found:
            more = {"vocoder": str(tiny_models.build("vocoder", tiny))} if model == "speecht5" else {}
            settings = PipelineSettings(task=task, model=str(tiny_models.build(model, tiny)), **more)
            pipeline = load_pipeline("it", settings, DEVICE)
            assert isinstance(pipeline, TransformersPipeline)
            found[task, model] = pipeline
        return found[task, model]

    return get


@pytest.fixture
def pipelines() -> tuple[str, ...]:
    """The pipelines that ``db`` knows; a module with others has a fixture of this name."""
    return (PIPELINE,)


@pytest.fixture
def db(valkey_url: str, pipelines: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """An empty database, in which a live worker has registered pipelines. Commands use it, too."""
    monkeypatch.setenv("PIPEQ_REDIS_URL", valkey_url)
    with redis.Redis.from_url(valkey_url) as db:
        db.flushdb()
        for name in pipelines:
            db.hset(keys.PIPELINES, name, '{"task": "text-classification"}')
            # A heartbeat of now would be too old before a test on a slow machine ends.
            db.zadd(keys.workers_key(name), {"w1": time.time() + 3600})
        yield db


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which nobody listens, and on which no server that starts meanwhile will: it is bound."""
    with ports.refusing() as port:
        yield port


@pytest.fixture
def kind() -> str:
    """Which client ``client`` is; a module whose tests run through both has a fixture of this name."""
    return "Client"


@pytest.fixture
def new(kind: str) -> Iterator[New]:
    """Makes clients, which are closed at the end of the test."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(both_clients.make(kind, *arguments, **options))


@pytest.fixture
def client(db: redis.Redis, valkey_url: str, kind: str) -> Iterator[Client]:
    with both_clients.make(kind, valkey_url) as client:
        yield client


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What this process sends to Redis, one entry for each round trip.

    The server counts something else: a long command reaches it in as many parts as the network likes.
    """
    found: list[Any] = []
    for connection in (AbstractConnection, AsyncAbstractConnection):
        monkeypatch.setattr(connection, "send_packed_command", _noting(connection.send_packed_command, found))
    return found


def _noting(send: Any, found: list[Any]) -> Any:
    def noting(self: Any, command: Any, check_health: bool = True) -> Any:
        found.append(command)
        return send(self, command, check_health)

    return noting
