"""Single stories of tasks with real hosts (tests/host.py), each of which the random ones have told wrong once.

The random ones are in tests/acceptance/test_life.py.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError
from pipeq import Client, State
from pipeq.contract import keys
from pipeq.contract.errors import Blame, PipeqError
from pipeq_worker.broker import consumer
from pipeq_worker.broker.pool import TaskPool
from pipeq_worker.delivery.delivery import Delivery

from tests.host import Host
from tests.proxy import proxy

PIPELINE = "it"
AWAY = PipeqError("input_unavailable", "the store is away", True)


@pytest.fixture
def db(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as db:
        db.flushdb()
        yield db


@pytest.fixture
def host(db: redis.Redis, valkey_url: str) -> Iterator[Host]:
    host = Host(valkey_url, PIPELINE, retry_backoff_s=1000)
    yield host
    host.stop()


def run(host: Host, error: PipeqError | None = None) -> None:
    """Takes the next task and has it begin, and end."""
    host.take()
    (one,) = host.hands.tasks
    host.hands.begin(one)
    if error is not None:
        one.fail(error)
    host.hands.end(one)


def all_due(db: redis.Redis, host: Host) -> None:
    key = keys.waiting_key(PIPELINE)
    db.zadd(key, dict.fromkeys(db.zrange(key, 0, -1), 1))
    host.move_due()


@pytest.mark.parametrize("how", ["cancel", "purge"])
@pytest.mark.parametrize("begins", [True, False])
def test_who_ends_a_task_between_two_tries_adds_none_to_its_history(
    client: Client, host: Host, how: str, begins: bool
) -> None:
    """The record keeps worker and start of the last try, which the history has, too."""
    task_id = client.submit(PIPELINE, "x", check=False)
    if begins:
        run(host, AWAY)
    else:
        host.take()
        (one,) = host.hands.tasks
        one.fail(AWAY)
        host.hands.end(one)
    if how == "cancel":
        client.cancel(task_id)
    else:
        client.purge(PIPELINE)
    status = client.status(task_id)
    assert (status.state, status.attempts, status.worker) == (State.CANCELLED, 1, host.name)
    assert [one.code for one in status.history] == ["input_unavailable"]


@pytest.mark.parametrize("how", ["cancel", "purge"])
def test_who_ends_a_task_whose_second_try_was_lost_adds_none_to_its_history(
    client: Client, db: redis.Redis, host: Host, how: str
) -> None:
    task_id = client.submit(PIPELINE, "x", check=False)
    run(host, AWAY)
    all_due(db, host)
    host.take()
    (one,) = host.hands.tasks
    host.hands.begin(one)
    host.hands.child_died(one)
    if how == "cancel":
        client.cancel(task_id)
    else:
        host.stop()
        client.purge(PIPELINE)
    status = client.status(task_id)
    assert (status.state, status.attempts) == (State.CANCELLED, 2)
    assert [one.code for one in status.history] == ["input_unavailable", "worker_lost"]


def test_a_purge_leaves_no_mark_of_a_task_that_was_cancelled_after_its_worker_had_died(
    client: Client, db: redis.Redis, host: Host, valkey_url: str
) -> None:
    other = Host(valkey_url, PIPELINE)
    task_id = client.submit(PIPELINE, "x", check=False)
    other.take()
    other.hands.begin(other.hands.tasks[0])
    tags = other.die()
    client.cancel(task_id)
    db.zadd(keys.LEASES, dict.fromkeys(tags, 1))
    host.sweep()
    assert db.hkeys(keys.RUNNING) == [task_id.encode()]
    assert client.purge(PIPELINE) == 1
    assert not db.exists(keys.RUNNING)
    assert client.status(task_id).state is State.CANCELLED


def test_tries_that_ended_with_a_death_still_count_after_a_retry(client: Client, db: redis.Redis, host: Host) -> None:
    task_id = client.submit(PIPELINE, "x", check=False)
    for tries in (2, 4):
        host.take()
        (one,) = host.hands.tasks
        host.hands.begin(one)
        host.hands.child_died(one)
        host.hands.begin(one)
        one.fail(AWAY)
        host.hands.end(one)
        assert client.status(task_id).attempts == tries
        all_due(db, host)
    run(host)
    status = client.status(task_id)
    assert (status.state, status.attempts) == (State.SUCCEEDED, 5)
    assert [one.code for one in status.history] == [*["worker_lost", "input_unavailable"] * 2, None]


@pytest.mark.parametrize("when", ["begin", "end", "renew"])
def test_leases_that_are_gone_are_said_once_whoever_finds_out(
    client: Client, db: redis.Redis, host: Host, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """A worker was stopped for longer than its leases, and another one has its messages."""
    client.submit_many(PIPELINE, ["x", "x"], check=False)
    host.take(2)
    first, second = host.hands.tasks
    if when == "end":
        host.hands.begin(first)
    db.delete(keys.LEASES, keys.UNACKED)
    caplog.set_level(logging.WARNING)
    if when == "begin":
        host.hands.begin(first)
    elif when == "end":
        host.hands.end(first)
    host.renew()
    said = [one.getMessage() for one in caplog.records]
    count = "2 leases are gone" if when == "renew" else "1 leases are gone"
    assert said == [f"{count}: their work is dropped"] * (1 if when == "renew" else 2)
    assert first.is_lost
    assert second.is_lost
    assert host.leases.held() == (0, 0)


def test_a_worker_leaves_what_it_could_not_do_to_others(
    client: Client, db: redis.Redis, host: Host, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = client.submit(PIPELINE, "x", check=False)

    def fails(one: Host) -> None:
        error = PipeqError("input_unavailable", "no credentials", True)
        error.blame = Blame.WORKER
        run(one, error)
        all_due(db, one)

    # Alone, it tries again and again.
    fails(host)
    fails(host)
    other = Host(valkey_url, PIPELINE, retry_backoff_s=1000)
    host.beat()
    for _ in range(3):
        assert host.take() == 1
        assert host.hands.tasks == []
        assert client.status(task_id).state is State.RETRYING
        assert db.hlen(keys.UNACKED) == 0
        all_due(db, host)
    # If that one cannot do it, either, both try again; not for ever, though.
    fails(other)
    fails(host)
    other.stop()
    other = Host(valkey_url, PIPELINE, retry_backoff_s=1000)
    host.beat()
    host.take()
    assert host.hands.tasks == []
    all_due(db, host)
    run(other)
    status = client.status(task_id)
    assert (status.state, status.attempts) == (State.SUCCEEDED, 1)
    # One that is there and takes nothing is waited for in vain.
    task_id = client.submit(PIPELINE, "x", check=False)
    fails(host)
    monkeypatch.setattr(consumer, "PREFER_OTHERS_S", 0)
    run(host)
    assert client.status(task_id).state is State.SUCCEEDED
    other.stop()


@pytest.mark.parametrize("who", ["process", "host"])
def test_deaths_are_not_forgotten_for_a_retry(
    client: Client, db: redis.Redis, host: Host, valkey_url: str, who: str
) -> None:
    """Among all tries, `max_deaths` processes may die of a task, whatever else goes wrong in between."""
    task_id = client.submit(PIPELINE, "x", check=False)
    for deaths in (1, 2, 3):
        if who == "process":
            host.take()
            (one,) = host.hands.tasks
            host.hands.begin(one)
            host.hands.child_died(one)
        else:
            other = Host(valkey_url, PIPELINE)
            other.take()
            other.hands.begin(other.hands.tasks[0])
            db.zadd(keys.LEASES, dict.fromkeys(other.die(), 1))
            db.delete(keys.worker_key(other.name))
            host.sweep()
            host.take()
            (one,) = host.hands.tasks
        if deaths < 3 or who == "host":
            host.hands.begin(one)
        if deaths < 3:
            one.fail(AWAY)
            host.hands.end(one)
            all_due(db, host)
    status = client.status(task_id)
    assert (status.state, status.attempts) == (State.FAILED, 5)
    assert status.error is not None
    assert status.error.code == "worker_lost"
    assert [one.code for one in status.history] == [*["worker_lost", "input_unavailable"] * 2, "worker_lost"]
    # Taken out of the dead letters, it has all of its lives again.
    client.dead(PIPELINE).retry()
    host.take()
    assert host.hands.tasks[0].deaths == 0
    host.hands.begin(host.hands.tasks[0])
    host.hands.child_died(host.hands.tasks[0])
    run(host)
    assert client.status(task_id).state is State.SUCCEEDED


def dies_with_it(db: redis.Redis, host: Host, valkey_url: str) -> None:
    """Another worker has the next task in a batch, and dies."""
    other = Host(valkey_url, PIPELINE)
    other.take()
    other.hands.begin(other.hands.tasks[0])
    assert not other.hands.tasks or other.hands.tasks[0].is_marked
    db.zadd(keys.LEASES, dict.fromkeys(other.die(), 1))
    db.delete(keys.worker_key(other.name))
    host.sweep()


@pytest.mark.parametrize("how", ["retry", "failure", "timeout"])
def test_deaths_are_known_of_a_task_that_ends_before_it_begins_again(
    client: Client, db: redis.Redis, host: Host, valkey_url: str, how: str
) -> None:
    """Its mark ends with this try, and only the mark knows of them."""
    task_id = client.submit(PIPELINE, "x", check=False)
    dies_with_it(db, host, valkey_url)
    host.take()
    (one,) = host.hands.tasks
    codes = {"retry": AWAY.code, "failure": "invalid_input", "timeout": "timeout"}
    one.fail(AWAY if how == "retry" else PipeqError(codes[how], "no", False))
    host.hands.end(one)
    status = client.status(task_id)
    assert (status.state is State.RETRYING, status.attempts) == (how == "retry", 2)
    assert [found.code for found in status.history] == ["worker_lost", codes[how]]
    if how == "retry":
        all_due(db, host)
        for _ in range(2):
            dies_with_it(db, host, valkey_url)
        host.take()
        host.hands.begin(host.hands.tasks[0])
        status = client.status(task_id)
        assert status.error is not None
        assert (status.error.code, status.attempts) == ("worker_lost", 4)


@pytest.mark.parametrize("how", ["cancel", "purge", "expiry"])
def test_deaths_are_known_of_a_task_that_somebody_else_ends(
    client: Client, db: redis.Redis, host: Host, valkey_url: str, how: str
) -> None:
    task_id = client.submit(PIPELINE, "x", expires_s=8 if how == "expiry" else None, check=False)
    for _ in range(2):
        dies_with_it(db, host, valkey_url)
    if how == "cancel":
        client.cancel(task_id)
    elif how == "purge":
        client.purge(PIPELINE)
    else:
        time.sleep(max(0.0, (client.status(task_id).expires_at or 0.0) - time.time()) + 0.01)
        host.take()
        assert b"REVOKED" in (db.get(keys.record_key(task_id)) or b"")
    status = client.status(task_id)
    assert (status.state, status.attempts) == (State.EXPIRED if how == "expiry" else State.CANCELLED, 2)
    assert len(status.history) == 2
    assert status.history[0].code == "worker_lost"


def test_deaths_are_known_of_a_task_with_which_a_process_dies_before_it_begins_again(
    client: Client, db: redis.Redis, host: Host, valkey_url: str
) -> None:
    """Two hosts died with it in a batch; now a process that prepares it dies, and that is the third death."""
    task_id = client.submit(PIPELINE, "x", check=False)
    for _ in range(2):
        dies_with_it(db, host, valkey_url)
    host.take()
    (one,) = host.hands.tasks
    host.hands.child_died(one)
    status = client.status(task_id)
    assert (status.state, status.attempts) == (State.FAILED, 3)
    assert [found.code for found in status.history] == ["worker_lost"] * 3
    assert one.deaths == 3


def test_a_retry_takes_along_what_its_message_was_charged_with(client: Client, db: redis.Redis, host: Host) -> None:
    """Of the two hosts that died, one had just this message in its hands. It is the same message to its next host."""
    task_id = client.submit(PIPELINE, "x", check=False)
    db.lset(PIPELINE, 0, b" \t\t\r" + (db.lindex(PIPELINE, 0) or b""))
    for _ in range(2):
        host.take()
        (one,) = host.hands.tasks
        one.fail(AWAY)
        host.hands.end(one)
        all_due(db, host)
        (message,) = db.lrange(PIPELINE, 0, -1)
        assert message.startswith(b" \t\r{")
    # One more, and it is given up, unread.
    db.lset(PIPELINE, 0, message.replace(b"\t\r", b"\t\t\r\r"))
    host.take()
    assert host.hands.tasks == []
    status = client.status(task_id)
    assert status.error is not None
    assert (status.state, status.error.code) == (State.FAILED, "worker_lost")


@pytest.mark.parametrize("inputs", ["x", "x" * 200_000])
def test_a_message_that_was_given_up_unread_can_be_sent_again(
    client: Client, db: redis.Redis, host: Host, inputs: str
) -> None:
    task_id = client.submit(PIPELINE, inputs, check=False)
    db.lset(PIPELINE, 0, b" \t\t\t\r\r\r" + (db.lindex(PIPELINE, 0) or b""))
    host.take()
    assert host.hands.tasks == []
    assert client.status(task_id).state is State.FAILED
    (letter,) = client.dead(ids=[task_id])
    assert (letter.code, letter.pipeline, letter.inputs, letter.obstacle) == ("worker_lost", PIPELINE, inputs, None)
    (handled,) = client.dead(ids=[task_id]).retry()
    assert handled.refused is None
    assert list(client.dead(ids=[task_id])) == []
    host.take()
    (one,) = host.hands.tasks
    assert one.deaths == 0
    host.hands.end(one)
    assert client.status(task_id).state is State.SUCCEEDED


def test_a_message_is_not_lost_if_a_take_is_sent_again_after_its_answer_was_lost(
    client: Client, db: redis.Redis, valkey_url: str
) -> None:
    """redis-py sends it again by itself, with the same tags."""
    ids = {client.submit(PIPELINE, "x", check=False) for _ in range(3)}
    with proxy(valkey_url) as (between, through):
        host = Host(through, PIPELINE)
        host.take()
        between.answers_left = 0
        host.take(2)
        assert between.answers_left is None
        assert db.hlen(keys.UNACKED) == 3
        lapsed = [tag for tag in db.hkeys(keys.UNACKED) if not host.leases.holds(tag.decode())]
        assert len(lapsed) == 1
        db.zadd(keys.LEASES, dict.fromkeys(lapsed, 1))
        host.sweep()
        host.take()
        assert {one.id for one in host.hands.tasks} == ids
        host.stop()


@pytest.mark.parametrize("who", ["process", "host"])
def test_a_task_that_is_given_up_has_as_many_tries_as_deaths(
    client: Client, db: redis.Redis, host: Host, valkey_url: str, who: str
) -> None:
    task_id = client.submit(PIPELINE, "x", check=False)
    if who == "process":
        host.take()
    for _ in range(3):
        if who == "process":
            (one,) = host.hands.tasks
            host.hands.begin(one)
            host.hands.child_died(one)
            continue
        other = Host(valkey_url, PIPELINE)
        other.take()
        other.hands.begin(other.hands.tasks[0])
        db.zadd(keys.LEASES, dict.fromkeys(other.die(), 1))
        db.delete(keys.worker_key(other.name))
        host.sweep()
    if who == "host":
        host.take()
        host.hands.begin(host.hands.tasks[0])
    status = client.status(task_id)
    assert (status.state, status.attempts) == (State.FAILED, 3)
    assert status.error is not None
    assert status.error.code == "worker_lost"
    assert [one.code for one in status.history] == ["worker_lost"] * 3
    # A new life goes on counting.
    (handled,) = client.dead(PIPELINE).retry()
    assert handled.refused is None
    run(host)
    status = client.status(task_id)
    assert (status.state, status.attempts) == (State.SUCCEEDED, 4)
    assert [one.code for one in status.history] == [*["worker_lost"] * 3, None]


def test_a_death_counts_while_the_task_waits_again(client: Client, db: redis.Redis, host: Host) -> None:
    """Also if it is cancelled then, or goes back from a process that had only taken it."""
    task_id = client.submit(PIPELINE, "x", check=False)
    host.take()
    (one,) = host.hands.tasks
    host.hands.begin(one)
    host.hands.child_died(one)
    assert client.status(task_id).attempts == 1
    host.pool.on_stop()
    assert (client.status(task_id).state, client.status(task_id).attempts) == (State.QUEUED, 1)
    client.cancel(task_id)
    status = client.status(task_id)
    assert (status.state, status.attempts) == (State.CANCELLED, 1)
    assert [one.code for one in status.history] == ["worker_lost"]


@pytest.mark.parametrize("history", ["", " \t"], ids=["new", "suspect"])
@pytest.mark.parametrize("kind", ["expired", "not due", "unreadable"])
def test_a_message_is_not_held_for_ever_if_redis_goes_away_while_it_is_handed_on(
    client: Client, db: redis.Redis, valkey_url: str, kind: str, history: str
) -> None:
    """What ends on its way into the worker, or waits for its time, is in nobody's hands when Redis is away."""
    task_id = client.submit(PIPELINE, "x", expires_s=0.0001 if kind == "expired" else None, check=False)
    message = json.loads(db.lindex(PIPELINE, 0) or "")
    if kind == "not due":
        message["headers"]["eta"] = "2100-01-01T00:00:00+00:00"
    db.lset(PIPELINE, 0, history + ("no message" if kind == "unreadable" else json.dumps(message)))
    with proxy(valkey_url) as (between, through):
        host = Host(through, PIPELINE)

        def go_away() -> None:
            between.is_closed = True
            between.cut()

        with suppress(redis.RedisError, OperationalError):
            host.take(1, go_away)
        between.is_closed = False
        assert host.leases.held() == (0, 0)
        db.zadd(keys.LEASES, dict.fromkeys(db.hkeys(keys.UNACKED), 1))
        host.sweep()
        host.take()
        host.stop()
    want = {"expired": State.EXPIRED, "not due": State.QUEUED, "unreadable": State.QUEUED}
    assert client.status(task_id).state is want[kind]
    assert db.hlen(keys.UNACKED) == db.llen(PIPELINE) == 0
    assert db.zcard(keys.waiting_key(PIPELINE)) == (kind == "not due")
    assert db.llen(keys.dead_letter_key(PIPELINE)) == (kind == "unreadable")


def test_a_task_that_expires_inside_while_redis_is_away_does_not_fail(
    client: Client, db: redis.Redis, valkey_url: str
) -> None:
    with proxy(valkey_url) as (between, through):
        host = Host(through, PIPELINE)  # which takes a while on a busy machine
        task_id = client.submit(PIPELINE, "x", expires_s=1, check=False)
        host.take()
        (one,) = host.hands.tasks
        time.sleep(max(0, one.expiry - time.time()) + 0.01)
        between.is_closed = True
        between.cut()
        threading.Timer(1, lambda: setattr(between, "is_closed", False)).start()
        host.hands.begin(one)
        between.is_closed = False
        db.zadd(keys.LEASES, dict.fromkeys(db.hkeys(keys.UNACKED), 1))
        host.sweep()
        host.take()
        host.stop()
    assert client.status(task_id).state is State.EXPIRED
    assert b"REVOKED" in (db.get(keys.record_key(task_id)) or b"")
    assert db.hlen(keys.UNACKED) == db.llen(PIPELINE) == db.llen(keys.dead_letter_key(PIPELINE)) == 0


@pytest.mark.parametrize("lets_go", ["later", "meanwhile"])
def test_a_new_life_that_comes_while_its_worker_has_the_old_one_is_no_copy(
    client: Client, db: redis.Redis, host: Host, lets_go: str
) -> None:
    """Whoever retries a failed task may be sooner than its worker, which lets go of a task once its end is stored."""

    class Inside(dict[str, Delivery]):
        """Where the event loop looks. Another thread may let go between this look and what the loop does then."""

        def get(self, key: str, default: Any = None) -> Any:
            found = super().get(key, default)
            if found is not None and lets_go == "meanwhile":
                TaskPool._delivered(host.pool, [found])
            return found

    def retry() -> None:
        host.between = lambda: None
        assert [one.refused for one in client.dead(ids=[task_id]).retry()] == [None]
        assert host.take() == 1

    host.pool._inside = Inside()
    host.reconnect()  # the way in asks what is inside
    host.between = retry
    task_id = client.submit(PIPELINE, "x", check=False)
    run(host, PipeqError("invalid_input", "no"))
    assert not host.hands.tasks
    assert client.status(task_id).state is State.QUEUED
    run(host)
    assert (client.status(task_id).state, client.status(task_id).attempts) == (State.SUCCEEDED, 2)
    assert not db.exists(keys.UNACKED, PIPELINE)
