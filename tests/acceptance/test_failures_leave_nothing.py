"""A task that fails leaves no memory behind. ``make long`` runs ten thousand of each kind."""

from __future__ import annotations

import base64
import itertools
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from pipeq.contract import keys
from pipeq.contract.record import ENDED

from tests.acceptance.conftest import Service
from tests.frames import frame

COUNT = int(os.environ.get("FAILURES", "100"))
#: Number of tasks that wait at the same time.
TASKS_PER_ROUND = 100
#: Allowed growth: what failures may leave, plus that of any serving process (allocators, threads), in MiB.
LEFT_MIB, NOISE_MIB = 0.002, 10
#: Measurements after which a growth counts as one that does not end.
ROUNDS = 3

TEXT, GENERATION = "text-classification", "text-generation"
SOME_BYTES = {"base64": base64.b64encode(b"\xff\xfe\xfa" * 300).decode()}
#: Kind -> pipeline, message, the code that it ends with.
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "misspelt parameter": (TEXT, {"inputs": "fox", "params": {"topk": 1}}, "invalid_params"),
    "too long": (TEXT, {"inputs": "fox " * 600}, "invalid_input"),
    "undecodable": (TEXT, {"inputs": SOME_BYTES}, "input_undecodable"),
    "no such input": (TEXT, {"inputs": {"uri": "file:///nowhere/a.txt"}}, "input_forbidden"),
    "failing forward pass": (
        GENERATION,
        # Only generate refuses these, because for the checks before it beams and sampling have equal effects.
        {"inputs": "fox", "params": {"max_new_tokens": 2, "do_sample": False, "num_return_sequences": 3}},
        "inference_failed",
    ),
    "bad message": (TEXT, {"nothing": 1}, "invalid_message"),
    "bad callback": (TEXT, {"inputs": "fox", "embed": {"chain": [1]}}, ""),
}

_numbers = itertools.count()


@pytest.fixture
def db(service: Service) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(service.client.redis_url) as db:
        yield db


def has_ended(record: bytes | None) -> bool:
    return record is not None and json.loads(record)["status"] in ENDED


def fail(db: redis.Redis, kind: str, count: int) -> None:
    """Runs that many of a kind."""
    pipeline, fields, code = KINDS[kind]
    embed = {"embed": fields["embed"]} if "embed" in fields else {}
    kwargs = {name: value for name, value in fields.items() if name != "embed"}
    for _ in range(0, count, TASKS_PER_ROUND):
        ids = [f"{kind}-{next(_numbers)}" for _ in range(TASKS_PER_ROUND)]
        places = [keys.record_key(one) for one in ids]
        db.lpush(pipeline, *(frame(one, pipeline, kwargs, **embed) for one in ids))
        deadline = time.monotonic() + 120
        while not all(map(has_ended, records := db.mget(places))):
            assert time.monotonic() < deadline, kind
            time.sleep(0.02)
        db.delete(*places)
        ends = [json.loads(record) for record in records if record is not None]
        assert {end["status"] for end in ends} == {"FAILURE"}
        if code:
            assert {end["pipeq"]["error"]["code"] for end in ends} == {code}


@pytest.mark.timeout(max(240, ROUNDS * COUNT / 4))
@pytest.mark.parametrize("kind", KINDS)
def test_failures_leave_nothing(service: Service, db: redis.Redis, kind: str) -> None:
    process = service.process
    # The first failures import modules and fill caches.
    fail(db, kind, TASKS_PER_ROUND)
    grown: list[float] = []
    # The worker is shared: once in a while one of its processes touches memory for what came before. What failures
    # leave, they leave each time.
    while len(grown) < ROUNDS and (not grown or grown[-1] >= NOISE_MIB + LEFT_MIB * COUNT):
        before = process.resident_mib()
        fail(db, kind, COUNT)
        grown.append(process.resident_mib() - before)
    assert min(grown) < NOISE_MIB + LEFT_MIB * COUNT, f"{grown} MiB more after {COUNT} failures each of the kind {kind}"
