"""Purge and forget, against a real Valkey."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import TaskRevokedError
from pipeq import Client, PipeqError, State, TaskFailedError, retire
from pipeq.contract import keys
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserved import Wanted
from pipeq_worker.leases.server import Server, place

from tests import both_clients
from tests.commands import run
from tests.waiting import until

QUEUE, OTHER = "text-classification", "summarization"
LISTS = keys.list_keys(QUEUE)


@pytest.fixture(params=both_clients.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pipelines() -> tuple[str, ...]:
    return (QUEUE, OTHER)


@pytest.fixture
def db(db: redis.Redis, valkey_url: str) -> Iterator[redis.Redis]:
    """It answers with texts, and no worker lives."""
    for name in (QUEUE, OTHER):
        db.delete(keys.workers_key(name))
    with redis.Redis.from_url(valkey_url, decode_responses=True) as db:
        yield db


pytestmark = pytest.mark.filterwarnings("ignore::pipeq.client.NoLiveWorkerWarning")


def move_to_fair_set(db: redis.Redis, name: str) -> None:
    """What a worker does with a list on which tenants take turns."""
    for number, raw in enumerate(reversed(db.lrange(name, 0, -1)), 1):
        db.zadd(keys.fair_key(name), {f"{number:013d}{raw}": number})
    db.delete(name)


def test_a_purge_ends_what_waits_anywhere(client: Client, db: redis.Redis) -> None:
    ids = []
    for priority in range(10):
        ids += client.submit_many(QUEUE, ["x"] * 30, priority=priority)
    ids += client.submit_many(QUEUE, ["x"] * 30, priority=4, fair_key="one")
    move_to_fair_set(db, keys.list_key(QUEUE, 3))
    ids += client.submit_many(QUEUE, ["x"] * 30, delay_s=60, priority=0)
    ids += client.submit_many(QUEUE, ["x"] * 30, priority=9, delay_s=3600)
    stays = client.submit(OTHER, "x")
    for task in ids[:5]:
        db.hset(keys.RUNNING, task, '{"worker": "", "since": 1, "deaths": 0, "attempt": 1}')
    told: list[tuple[int, int]] = []
    assert client.purge(QUEUE, progress=lambda done, total: told.append((done, total))) == len(ids) == 390
    statuses = client.status_many(ids)
    assert {(one.state, one.error.code if one.error else None) for one in statuses} == {(State.CANCELLED, "purged")}
    assert all(one.pipeline == QUEUE and one.submitted_at and one.finished_at for one in statuses)
    assert told == sorted(told)
    assert {total for _, total in told} == {390}
    assert told[-1] == (390, 390)
    assert client.status(stays).state is State.QUEUED
    assert not db.exists(*LISTS, *map(keys.fair_key, LISTS), keys.waiting_key(QUEUE), keys.RUNNING)
    assert 0 < db.ttl(keys.record_key(ids[0])) <= keys.RESULT_TTL_S
    assert client.purge(QUEUE) == 0


def test_who_waits_is_told(client: Client, db: redis.Redis, valkey_url: str) -> None:
    task = client.submit(QUEUE, "x")
    stock = Celery("stock", broker=valkey_url, backend=valkey_url, set_as_current=False)
    theirs = stock.send_task("pipeq.infer", kwargs={"pipeline": QUEUE, "inputs": "x"}, queue=QUEUE)
    with ThreadPoolExecutor(1) as pool:
        end = pool.submit(client.result, task, 30)
        time.sleep(0.2)
        assert client.purge(QUEUE) == 2
        with pytest.raises(TaskFailedError, match="purged: an operator emptied the queue of 'text-classification'"):
            end.result()
    with pytest.raises(TaskRevokedError, match="purged"):
        theirs.get(timeout=30)
    stock.backend.result_consumer.stop()
    stock.close()


def test_what_has_ended_stays_so(client: Client, db: redis.Redis) -> None:
    ids = client.submit_many(QUEUE, ["x"] * 4, priority=0)
    client.cancel(ids[0])
    record = {"status": "SUCCESS", "result": 1, "task_id": ids[1], "pipeq": {}}
    db.set(keys.record_key(ids[1]), json.dumps(record))
    assert client.purge(QUEUE) == 4
    states = [(one.state, one.error and one.error.code) for one in client.status_many(ids)]
    assert states == [
        (State.CANCELLED, None),
        (State.SUCCEEDED, None),
        (State.CANCELLED, "purged"),
        (State.CANCELLED, "purged"),
    ]


@pytest.mark.parametrize("place", [*LISTS, keys.fair_key(QUEUE), keys.waiting_key(QUEUE)])
def test_what_is_no_message_goes_too(client: Client, db: redis.Redis, place: str) -> None:
    odd = ["", "x", "[[[[", "{}", '{"headers": 5}', '{"headers": {"id": ""}}', '{"headers": {"id": "\\ud800"}}', "\x00"]
    odd += [f"{at:013d}{text}" for at, text in enumerate(odd)] + [json.dumps({"message": text}) for text in odd]
    if place in LISTS:
        db.lpush(place, *odd)
    else:
        db.zadd(place, {text: at for at, text in enumerate(odd)})
    task = client.submit(QUEUE, "x")
    assert client.purge(QUEUE) == len(odd) + 1
    assert client.status(task).state is State.CANCELLED
    assert list(db.scan_iter("celery-task-meta-*")) == [keys.record_key(task)]


def test_keys_of_another_type_are_left(client: Client, db: redis.Redis) -> None:
    db.set(keys.list_key(QUEUE, 3), "no list")
    db.lpush(keys.waiting_key(QUEUE), "no set")
    task = client.submit(QUEUE, "x")
    db.delete(keys.record_key(task))
    db.hset(keys.record_key(task), "no", "string")
    assert client.purge(QUEUE) == 1
    assert db.get(keys.list_key(QUEUE, 3)) == "no list"


def test_a_worker_that_takes_messages_meanwhile_keeps_them(client: Client, db: redis.Redis, valkey_url: str) -> None:
    """Every message is either taken by a worker, with its record untouched, or purged; none is both, none is lost."""
    ids = client.submit_many(QUEUE, ["x" * 200] * 6000, priority=0)
    params = db.connection_pool.connection_kwargs
    leases = Leases.of(Server(place(params), "", lambda: redis.Redis.from_url(valkey_url)), 60, 5)
    stop, taken = threading.Event(), list[str]()

    def take() -> None:
        wanted = Wanted(QUEUE, LISTS, 7, 10**9, [0] * 4, 10**6, 0)
        while not stop.is_set():
            one = leases.reserve_one(wanted)
            if one is None:
                return
            taken.append(one.tag)
            time.sleep(0.0005)

    thread = threading.Thread(target=take)
    thread.start()
    until(lambda: taken)
    purged = client.purge(QUEUE)
    stop.set()
    thread.join()
    entries = db.hvals(keys.UNACKED)
    leases.close()  # its thread would sweep, in the tests that follow
    held = {json.loads(entry.partition(":")[2][len(QUEUE) :])["headers"]["id"] for entry in entries}
    states = {status.id: status.state for status in client.status_many(ids)}
    assert held == {task for task, state in states.items() if state is State.QUEUED}
    assert len(held) + purged == len(ids)
    assert held


def test_what_is_submitted_meanwhile_does_not_keep_it_from_ending(
    client: Client, db: redis.Redis, valkey_url: str
) -> None:
    client.submit_many(QUEUE, ["x"] * 2000, priority=0)
    stop = threading.Event()

    def submit() -> None:
        with Client(valkey_url) as own:
            while not stop.is_set():
                own.submit_many(QUEUE, ["y"] * 500, priority=0)

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        assert client.purge(QUEUE) >= 2000
    finally:
        stop.set()
        thread.join()
    left = db.llen(QUEUE)
    assert len([one for one in db.scan_iter("celery-task-meta-*") if '"QUEUED"' in db.get(one)]) == left


def test_a_million_bytes_a_message_and_a_full_redis(client: Client, db: redis.Redis) -> None:
    ids = client.submit_many(QUEUE, ["x" * 200_000] * 60, priority=0)
    db.config_set("maxmemory", 1)
    try:
        assert client.purge(QUEUE) == 60
    finally:
        db.config_set("maxmemory", 0)
    assert {one.state for one in client.status_many(ids)} == {State.CANCELLED}


def test_others_are_served_in_between(client: Client, db: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    client.submit_many(QUEUE, ["x"] * 5000, priority=0)
    db.config_resetstat()
    client.purge(QUEUE)
    calls = db.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert calls >= 5000 / retire.CHUNK
    assert db.info("commandstats")["cmdstat_evalsha"]["usec_per_call"] < 100_000


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "stdin", "goes"),
    [
        (["--yes"], None, True),
        ([], "y\n", True),
        ([], "n\n", False),
        ([], "", False),
    ],
)
def test_purge_asks(client: Client, arguments: list[str], stdin: str | None, goes: bool) -> None:
    task = client.submit(QUEUE, "x")
    client.submit(QUEUE, "x", delay_s=60)
    done = run("purge", QUEUE, *arguments, stdin=stdin)
    assert done.exit_code == (0 if goes else 1)
    assert done.stdout == ("2 messages taken off\n" if goes else "")
    assert ("End 2 tasks that wait for text-classification?" in done.stderr) is not bool(arguments)
    assert client.status(task).state is (State.CANCELLED if goes else State.QUEUED)


def test_purge_of_nothing_does_not_ask(db: redis.Redis) -> None:
    assert run("purge", QUEUE).stdout == "0 messages taken off\n"


def test_purge_says_what_goes_on(client: Client, db: redis.Redis) -> None:
    db.zadd(keys.workers_key(QUEUE), {"w1": time.time()})
    db.set(keys.worker_key("w1"), json.dumps({"in_flight": {QUEUE: 3}}))
    assert run("purge", QUEUE, "--yes").stderr == "3 tasks are inside workers and go on\n"


# -- forget -----------------------------------------------------------------------------------------------------------


def serve(db: redis.Redis, client: Client) -> None:
    db.zadd(keys.workers_key(QUEUE), {"w1": time.time()})


def load(db: redis.Redis, client: Client) -> None:
    db.zadd(keys.loading_key(QUEUE), {"w2": time.time()})


def queue_one(db: redis.Redis, client: Client) -> None:
    client.submit(QUEUE, "x")


def delay_one(db: redis.Redis, client: Client) -> None:
    client.submit(QUEUE, "x", delay_s=60)


def bury(db: redis.Redis, client: Client) -> None:
    db.lpush(keys.dead_letter_key(QUEUE), "x")


NEEDS: dict[Any, str] = {serve: "1 worker serving it", load: "1 worker loading it"}
NEEDS |= {queue_one: "1 message waiting", delay_one: "1 message waiting", bury: "1 dead letter there"}


@pytest.mark.parametrize("needs", [some for count in range(3) for some in itertools.combinations(NEEDS, count)])
def test_forget_refuses_what_is_needed(client: Client, db: redis.Redis, needs: Any) -> None:
    for need in needs:
        need(db, client)
    if needs:
        with pytest.raises(PipeqError, match="in_use") as caught:
            client.forget(QUEUE)
        if set(needs) != {queue_one, delay_one}:
            assert all(NEEDS[need] in caught.value.message for need in needs)
        assert QUEUE in client.pipelines()
        refused = run("forget", QUEUE)
        assert (refused.exit_code, "in_use" in refused.stderr) == (6, True)
        assert run("forget", QUEUE, "--force").exit_code == 0
    else:
        client.forget(QUEUE)
    assert list(client.pipelines()) == [OTHER]
    assert [queue.pipeline for queue in client.queues()] == [OTHER]
    # Nothing of the queue itself is lost.
    queue = client.queue(QUEUE)
    assert queue.depth + queue.waiting == sum(need in needs for need in (queue_one, delay_one))
    assert queue.dead == (bury in needs)


def test_what_is_forgotten_is_refused_and_comes_back_with_a_worker(client: Client, db: redis.Redis) -> None:
    client.submit(QUEUE, "x")  # this client knows the pipeline
    client.purge(QUEUE)
    client.forget(QUEUE)
    with pytest.raises(PipeqError, match="unknown_pipeline"):
        client.forget(QUEUE)
    with Client(client.redis_url) as fresh, pytest.raises(PipeqError, match="unknown_pipeline"):
        fresh.submit(QUEUE, "x")
    db.hset(keys.PIPELINES, QUEUE, "{}")
    with Client(client.redis_url) as fresh:
        fresh.submit(QUEUE, "x")


def test_wrong_arguments_are_refused_by_name(client: Client) -> None:
    with pytest.raises(PipeqError, match="force is 'yes'"):
        client.forget(QUEUE, force="yes")  # type: ignore[arg-type]
    for call in (client.purge, client.forget, client.queue):
        with pytest.raises(PipeqError, match="the pipeline 5"):
            call(5)  # type: ignore[operator]
