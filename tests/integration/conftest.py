"""Pipelines of tiny models, each loaded once for all the tests that only use it; a database, and a client of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from pipeq import Client
from pipeq.contract import keys
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings
from redis.connection import AbstractConnection

from tests import tiny_models

#: The pipeline of most tests that need no worker.
PIPELINE = "text-classification"
#: Task type and tiny model -> their pipeline.
Loaded = Callable[[str, str], TransformersPipeline]


@pytest.fixture(scope="session")
def loaded(tiny: Path) -> Loaded:
    found: dict[tuple[str, str], TransformersPipeline] = {}

    def get(task: str, model: str) -> TransformersPipeline:
        if (task, model) not in found:
            more = {"vocoder": str(tiny_models.build("vocoder", tiny))} if model == "speecht5" else {}
            settings = PipelineSettings(task=task, model=str(tiny_models.build(model, tiny)), **more)
            pipeline = load_pipeline("it", settings, "cpu")
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
def client(db: redis.Redis, valkey_url: str) -> Iterator[Client]:
    with Client(valkey_url) as client:
        yield client


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What this process sends to Redis, one entry for each round trip.

    The server counts something else: a long command reaches it in as many parts as the network likes.
    """
    found: list[Any] = []
    send = AbstractConnection.send_packed_command

    def noting(self: AbstractConnection, command: Any, check_health: bool = True) -> None:
        found.append(command)
        send(self, command, check_health)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", noting)
    return found
