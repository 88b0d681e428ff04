"""A worker of every task type gets hostile messages, parameters, media, records and waiting sets.

Every message ends with a record or a dead letter, good ones in between give their results, the process stays and its
memory stays flat. ``MESSAGES`` in the environment says how many (``make fuzz MESSAGES=1000000``), ``SEED`` which.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis
from pipeq import PipeqError, State
from pipeq.contract import keys

from tests.fuzz import hostile
from tests.fuzz.messages import Message, Source
from tests.zoo import SERVED, Zoo, running

MESSAGES = int(os.environ.get("MESSAGES") or 600)
SEED = int(os.environ.get("SEED") or 1)
#: Number of messages in one round.
ROUND = 300 if MESSAGES < 20_000 else 2000
#: How long one round may take before its messages count as lost, in seconds.
ROUND_S = 240
#: Models generate only one or two tokens, because their text does not matter here.
LIMITS = "[param_limits]\nmax_new_tokens = 4\nmax_beams = 2\nmax_sequences = 2"
WRITES = {
    task: ["max_new_tokens = 2"]
    for task in (
        *("text-generation", "text2text-generation", "summarization", "translation_en_to_de", "image-to-text"),
        *("image-text-to-text", "any-to-any"),
    )
}
#: Threads are started when there is work for them, and each keeps some memory (a stack, a tokenizer, a heap): with few
#: of them that is over soon, and what grows from then on is lost.
FEW = {"log_level": "WARNING", "fetch_threads": 2, "prepare_threads": 1, "MALLOC_ARENA_MAX": 2}
FINAL = {"SUCCESS", "FAILURE", "REVOKED"}


@pytest.mark.timeout(max(600, MESSAGES / 10))
def test_every_message_has_an_end(tiny: Path, tmp_path: Path) -> None:
    with (
        running(tiny, tmp_path, LIMITS, WRITES, **FEW) as zoo,
        redis.Redis.from_url(zoo.client.redis_url) as db,
    ):
        source, rng, ended = Source(zoo.inputs, SEED), random.Random(SEED), Counter[str]()
        memory: list[float] = []
        rounds, began = max(1, MESSAGES // ROUND), time.monotonic()
        for number in range(rounds):
            one_round(zoo, db, source, rng, ended)
            memory.append(zoo.process.resident_mib())
            rate = (number + 1) * ROUND / (time.monotonic() - began)
            done = f"{(number + 1) * ROUND} of {MESSAGES} messages, {rate:.0f}/s, {memory[-1]:.0f} MiB"
            print(done, dict(ended), flush=True)
        assert zoo.process.process.poll() is None, zoo.process.text()[-5000:]
        # The first rounds load lazy parts of the models and meet each kind of failure for the first time.
        settled = memory[len(memory) // 3]
        assert memory[-1] < settled * 1.1 + 50, [round(one) for one in memory]


def one_round(zoo: Zoo, db: redis.Redis, source: Source, rng: random.Random, ended: Counter[str]) -> None:
    spoilt = [source.spoilt() for _ in range(ROUND)]
    good = [source.good(rng.choice(list(SERVED))) for _ in range(ROUND // 20)]
    dead_before = {task: db.llen(keys.dead_letter_key(task)) for task in SERVED}
    litter(db, spoilt, rng)
    mixed = spoilt + good
    rng.shuffle(mixed)
    for message in mixed:
        key = keys.list_key(message.pipeline, rng.choice(keys.PRIORITY_STEPS))
        db.lpush(key, message.raw)
    wait_until_idle(zoo, db)
    for message in good:
        status = zoo.client.wait(str(message.id), timeout_s=60)
        assert status.state is State.SUCCEEDED, (message.pipeline, status.error)
    letters = {task: new_letters(db, task, before) for task, before in dead_before.items()}
    with_id = {letter["id"] for each in letters.values() for letter in each if letter.get("id")}
    later = waiting_ids(db)
    nameless: dict[str, list[bytes]] = {}
    lost = []
    for message in spoilt:
        if message.id is None:
            nameless.setdefault(message.pipeline, []).append(message.raw)
        elif (state := record_state(db, message.id)) is not None:
            ended[state] += 1
        elif message.id in with_id:
            lost.append((message, "a dead letter and no record"))
        elif message.id in later:
            ended["waiting"] += 1
        else:
            lost.append((message, "nothing"))
    keep(zoo, [message.raw for message, _ in lost])
    assert not lost, f"{len(lost)} of {ROUND} have no end: {[(one.kind, one.id, what) for one, what in lost[:5]]}"
    for task, raws in nameless.items():
        # A worker may find an id in text that is no JSON. A task that had ended before gets no second dead letter.
        without = [raw for raw in raws if not any(record_state(db, one) for one in ids_in(raw))]
        unnamed = sum(not letter.get("id") for letter in letters[task])
        keep(zoo, without if unnamed < len(without) else [])
        assert unnamed >= len(without), f"{task}: {len(without)} messages without an id, {unnamed} dead letters"
        ended["dead letter"] += len(raws)
    look(zoo, spoilt)
    internal = [found for message in spoilt if message.id and (found := internal_error(db, message))]
    ended["internal"] += len(internal)
    for one in internal[:5]:
        print("internal:", one, flush=True)


def keep(zoo: Zoo, raws: list[bytes]) -> None:
    """Writes the messages that did not end to a file beside the worker's log."""
    for at, raw in enumerate(raws):
        (zoo.inputs.parent / f"lost-{at}.json").write_bytes(raw)


def litter(db: redis.Redis, messages: list[Message], rng: random.Random) -> None:
    """Writes garbage under the keys that worker and client read."""
    waiting = [message for message in messages if message.id is not None]
    for message in rng.sample(waiting, len(waiting) // 20):
        record = rng.choice(
            (
                hostile.encode(hostile.value(rng)),
                b"[1]",
                b"{",
                b"\xff",
                b'{"status": 5}',
                b'{"status": "QUEUED", "pipeq": 5}',
            )
        )
        if rng.random() < 0.2:
            db.delete(keys.record_key(str(message.id)))
            db.rpush(keys.record_key(str(message.id)), record)  # not even a string
        else:
            db.set(keys.record_key(str(message.id)), record)
    for message in rng.sample(waiting, len(waiting) // 50):
        db.hset(keys.RUNNING, str(message.id), hostile.encode(hostile.value(rng)))
    task = rng.choice(list(SERVED))
    db.zadd(keys.waiting_key(task), {hostile.encode(hostile.value(rng)): 0, b"\xff": 0})
    other = hostile.encode({"list": "pipeq:pipelines", "message": "{}"})
    db.zadd(keys.waiting_key(task), {other: 0})
    db.zadd(keys.workers_key(task), {b"\xff\x00": time.time(), "nobody": time.time()})
    db.hset(keys.PIPELINES, "stranger", hostile.encode(hostile.value(rng)))


def wait_until_idle(zoo: Zoo, db: redis.Redis) -> None:
    deadline = time.monotonic() + ROUND_S
    while True:
        assert zoo.process.process.poll() is None, zoo.process.text()[-5000:]
        with db.pipeline(transaction=False) as pipe:
            for task in SERVED:
                for key in keys.list_keys(task):
                    pipe.llen(key)
            pipe.hlen(keys.UNACKED)
            pipe.zcard(keys.LEASES)
            left = sum(pipe.execute())
        if not left:
            return
        assert time.monotonic() < deadline, f"{left} messages are left over:\n{zoo.process.text()[-5000:]}"
        time.sleep(0.05)


def new_letters(db: redis.Redis, task: str, before: int) -> list[dict[str, Any]]:
    key = keys.dead_letter_key(task)
    letters = [json.loads(letter) for letter in db.lrange(key, 0, db.llen(key) - before - 1)]
    db.ltrim(key, 0, 99)  # else its bound would hide what comes later
    return letters


def waiting_ids(db: redis.Redis) -> set[str]:
    """Ids of the tasks that wait for a later time."""
    found = set()
    for task in SERVED:
        for member in db.zrange(keys.waiting_key(task), 0, -1):
            try:
                found.add(json.loads(json.loads(member)["message"])["headers"]["id"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return found


def ids_in(raw: bytes) -> set[str]:
    """All texts in a message that may be taken for its id."""
    found = set()
    for quoted in re.findall(rb'"id"\s*:\s*("(?:[^"\\]|\\.)*")', raw):
        try:
            found.add(json.loads(quoted))
        except ValueError:
            continue
    return found


def record_state(db: redis.Redis, task_id: str) -> str | None:
    try:
        raw = db.get(keys.record_key(task_id))
        status = json.loads(raw)["status"] if raw else None
    except (redis.ResponseError, ValueError, KeyError, TypeError, RecursionError, UnicodeEncodeError):
        return None
    return status if status in FINAL else None


def look(zoo: Zoo, messages: list[Message]) -> None:
    """Checks that a client returns a status for each id."""
    ids = [message.id for message in messages if message.id is not None and message.id.isprintable()]
    assert len(zoo.client.status_many(ids)) == len(ids)
    zoo.client.queues()
    zoo.client.pipelines()
    for task_id in ids[:20]:
        try:
            zoo.client.result(task_id, timeout_s=0)
        except PipeqError:
            continue


def internal_error(db: redis.Redis, message: Message) -> str | None:
    """An error message with no more than the name of an exception."""
    try:
        error = json.loads(db.get(keys.record_key(str(message.id))) or b"{}")["pipeq"]["error"]
    except (redis.ResponseError, ValueError, KeyError, TypeError, UnicodeEncodeError):
        return None
    return f"{message.kind} {message.pipeline}: {error['message'][:300]}" if error["code"] == "internal" else None
