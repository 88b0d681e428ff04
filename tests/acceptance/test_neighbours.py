"""A faulty message or key affects only its own task: the others of the batch go on."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from pipeq import Client
from pipeq.contract import keys
from pipeq.demo import embedded

from tests.frames import frame
from tests.ports import refusing
from tests.worker_process import WorkerProcess, worker

BATCH = 8
QUEUE = "constant"
SUCCESS = {"SUCCESS"}
FINAL = {"SUCCESS", "FAILURE", "REVOKED"}

_numbers = itertools.count()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerProcess, redis.Redis]]:
    """A worker whose batches have eight items, and its Redis."""
    folder = tmp_path_factory.mktemp("neighbours")
    config = folder / "pipelines.toml"
    config.write_text(
        '[results]\nallow = ["s3://gone/"]\ndead_letter_max = 100\n'
        f"[pipelines.{QUEUE}]\nmax_batch_size = {BATCH}\nmax_wait_ms = 100\n"
    )
    keys_of_nobody = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
    with (
        refusing() as port,
        embedded.valkey() as url,
        worker(
            folder, url, "--config", config, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", **keys_of_nobody
        ) as process,
        Client(url) as client,
    ):
        process.wait_ready(client, QUEUE)
        yield process, redis.Redis.from_url(url)


class Batches:
    """Batches of eight tasks with one victim each. ``plant`` and ``push`` run in one transaction."""

    def __init__(self, served: tuple[WorkerProcess, redis.Redis]) -> None:
        self.process, self.db = served
        self.pipe = self.db.pipeline(transaction=True)
        self.victims: dict[str, Any] = {}
        self.others: list[str] = []

    def add(self, position: int, what: Any, **more: Any) -> str:
        """Adds a batch. Returns the victim's id."""
        ids = [f"n{next(_numbers)}" for _ in range(BATCH)]
        victim = ids[position]
        self.victims[victim] = what
        self.others += [one for one in ids if one != victim]
        self.pipe.lpush(QUEUE, *(frame(one, QUEUE, **more) if one == victim else frame(one, QUEUE) for one in ids))
        return victim

    def run(self) -> dict[str, str]:
        """Runs the batches, checks that each victim ends and all others succeed, and returns the victims' states."""
        self.pipe.execute()
        states: dict[str, str] = {}
        deadline = time.monotonic() + 60
        ids = [*self.others, *self.victims]
        while len(states) < len(ids):
            left = [one for one in ids if one not in states]
            for one, record in zip(left, self.db.mget([keys.record_key(one) for one in left]), strict=True):
                try:
                    state = json.loads(record)["status"]
                except (TypeError, ValueError, KeyError, RecursionError):
                    continue
                if isinstance(state, str) and state in FINAL:
                    states[one] = state
            assert self.process.process.poll() is None, self.process.text()[-3000:]
            stuck = {one: self.victims.get(one) for one in left[:20]}
            assert time.monotonic() < deadline, f"{len(left)} never end: {str(stuck)[:1000]}"
            time.sleep(0.02)
        assert {one: states[one] for one in self.others if states[one] != "SUCCESS"} == {}
        return {one: states[one] for one in self.victims}

    def settled(self) -> None:
        """Checks that no message is held any more."""
        deadline = time.monotonic() + 20
        while self.db.hlen(keys.UNACKED) or self.db.llen(QUEUE):
            assert time.monotonic() < deadline, (self.db.hlen(keys.UNACKED), self.db.llen(QUEUE))
            time.sleep(0.02)


#: Values in the place of a record or a mark.
STRINGS: list[bytes] = [
    b"",
    b"garbage",
    b"\xff\xfe\x00",
    b"[1]",
    b"5",
    b"null",
    b"true",
    b'"text"',
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b'{"status": {"a": 1}, "pipeq": {"a": 1}}',
    b'{"status": 1e999}',
    b'{"status": NaN}',
    b'{"pipeq": [1]}',
    b'{"pipeq": {"submitted_at": "x", "expires_at": []}}',
    b'{"pipeq": {"submitted_at": 1e999, "expires_at": NaN}}',
    b'{"pipeq": {"submitted_at": 1' + b"0" * 400 + b"}}",
    b'{"pipeq": {"submitted_at": 1' + b"0" * 5000 + b"}}",
    b'{"worker": 5, "deaths": "x"}',
    b'{"worker": null, "deaths": null}',
    b'{"worker": {"a": 1}, "deaths": [1]}',
    b'{"worker": [1], "deaths": 1e999}',
    b'{"deaths": -1e999, "since": "x", "attempt": "x"}',
    b'{"pipeq": "' + b"x" * 2**21 + b'"}',
]


def wrong_types(pipe: Any, key: str) -> list[Any]:
    """Commands that put a value of another type than string under a key."""
    return [
        lambda: pipe.rpush(key, "x"),
        lambda: pipe.hset(key, "f", "x"),
        lambda: pipe.sadd(key, "x"),
        lambda: pipe.zadd(key, {"x": 1}),
        lambda: pipe.xadd(key, {"x": "1"}),
    ]


def test_anything_may_stand_under_a_record_key(served: tuple[WorkerProcess, redis.Redis]) -> None:
    for at in range(len(STRINGS) + 5):
        batches = Batches(served)
        for position in range(BATCH):
            key = keys.record_key(batches.add(position, at))
            if at < len(STRINGS):
                batches.pipe.set(key, STRINGS[at])
            else:
                wrong_types(batches.pipe, key)[at - len(STRINGS)]()
        # One transaction writes the keys before the messages can be taken.
        assert set(batches.run().values()) == SUCCESS


def test_anything_may_stand_under_the_record_of_a_task_that_fails(served: tuple[WorkerProcess, redis.Redis]) -> None:
    """The task never reaches a batch, so its record is read at another place."""
    batches = Batches(served)
    for at in range(len(STRINGS) + 5):
        key = keys.record_key(batches.add(at % BATCH, at, kwargs={"params": {"nothing": 1}}))
        if at < len(STRINGS):
            batches.pipe.set(key, STRINGS[at])
        else:
            wrong_types(batches.pipe, key)[at - len(STRINGS)]()
    assert set(batches.run().values()) == {"FAILURE"}
    batches.settled()


def test_anything_may_stand_in_a_mark(served: tuple[WorkerProcess, redis.Redis]) -> None:
    for one in STRINGS:
        batches = Batches(served)
        for position in range(BATCH):
            batches.pipe.hset(keys.RUNNING, batches.add(position, one[:60]), one)
        assert set(batches.run().values()) == SUCCESS
        batches.settled()
    assert batches.db.hlen(keys.RUNNING) == 0


def test_a_hash_of_marks_that_is_none_is_of_no_consequence(served: tuple[WorkerProcess, redis.Redis]) -> None:
    for at in range(6):
        batches = Batches(served)
        batches.pipe.delete(keys.RUNNING)
        plants = [lambda pipe=batches.pipe: pipe.set(keys.RUNNING, "x"), *wrong_types(batches.pipe, keys.RUNNING)]
        del plants[2]  # a hash is what it should be
        plants[min(at, len(plants) - 1)]()
        batches.add(at, at)
        batches.run()
        batches.settled()
    served[1].delete(keys.RUNNING)


def test_a_list_of_dead_letters_that_is_none_is_of_no_consequence(served: tuple[WorkerProcess, redis.Redis]) -> None:
    key = keys.dead_letter_key(QUEUE)
    batches = Batches(served)
    batches.pipe.delete(key)
    batches.pipe.set(key, "x")
    for position in range(BATCH):
        batches.add(position, position, kwargs={"params": {"nothing": 1}})
    assert set(batches.run().values()) == {"FAILURE"}
    batches.settled()
    served[1].delete(key)


def test_a_set_of_waiting_messages_that_is_none_fails_what_should_wait(
    served: tuple[WorkerProcess, redis.Redis],
) -> None:
    key = keys.waiting_key(QUEUE)
    batches = Batches(served)
    batches.pipe.set(key, "x")
    victims = [batches.add(position, position, kwargs={"output": {"uri": "s3://gone/"}}) for position in (0, 7)]
    assert set(batches.run().values()) == {"FAILURE"}
    for one in victims:
        error = json.loads(served[1].get(keys.record_key(one)) or "")["pipeq"]["error"]
        assert "cannot wait for its next try" in error["message"]
    batches.settled()
    served[1].delete(key)


HUGE = 10**400
DEEP: Any = [1]
for _ in range(150):
    DEEP = [DEEP]
#: Unforeseen values of a header.
VALUES: list[Any] = [
    *({"a": 1}, [1], [{"a": 1}], 5, -1, 1.5, HUGE, float("inf"), float("nan")),
    *("x", "", "\ud800", "a\nb", None, True, DEEP),
]
PARTS = {
    "headers": "lang shadow eta expires group group_index retries timelimit root_id parent_id argsrepr kwargsrepr "
    "origin ignore_result replaced_task_nesting stamped_headers stamps redelivered compression",
    "embed": "callbacks errbacks chain chord",
    "properties": "correlation_id reply_to delivery_mode delivery_info priority delivery_tag content_type",
}


@pytest.mark.parametrize("part", PARTS)
def test_anything_may_stand_in_a_message(served: tuple[WorkerProcess, redis.Redis], part: str) -> None:
    for name in PARTS[part].split():
        batches = Batches(served)
        for at, value in enumerate(VALUES):
            batches.add(at % BATCH, (name, value), **{part: {name: value}})
        batches.run()
        batches.settled()
