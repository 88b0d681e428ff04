"""What each script does for a worker whose lease is gone: it was stopped for longer than that, and goes on now.

    script          called                                        what it does then
    begin.lua       before a batch                                nothing; the worker drops the task
    finish.lua      with a result, a failure or a next try        nothing; the worker drops the task
    back.lua        a process died, or the task goes back         changes its own mark, if that is still there
    look.lua        once a second                                 the same
    renew.lua       three times in each lease                     nothing; the worker learns that the lease is gone
    hold.lua        a suspect is received, or is let go of        nothing
    postpone.lua    a message is not due                          nothing
    requeue.lua     a message goes back                           nothing
    bury.lua        a message cannot be read                      nothing
    (ZREM, HDEL)    acknowledges a message                        nothing

A mark of its own is still there if nobody has begun the task since. The other scripts are called without a lease:
reserve.lua gives leases, due.lua and unmove.lua need none. Of each cell, all that Redis holds is compared.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from pipeq import Client
from pipeq.contract import keys
from pipeq.contract.errors import PipeqError
from pipeq.contract.status import Progress
from pipeq_worker.delivery.delivery import Delivery

from tests.host import Host

PIPELINE = "it"
AWAY = PipeqError("input_unavailable", "the store is away", True)


@pytest.fixture
def db(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as db:
        db.flushdb()
        db.set(keys.EVENTS_MAX, 1000)
        yield db


@pytest.fixture
def late(db: redis.Redis, valkey_url: str) -> Iterator[Host]:
    host = Host(valkey_url, PIPELINE, retry_backoff_s=1000)
    yield host
    host.stop()


@pytest.fixture
def other(db: redis.Redis, valkey_url: str) -> Iterator[Host]:
    host = Host(valkey_url, PIPELINE, retry_backoff_s=1000)
    yield host
    host.stop()


# -- what has happened meanwhile --------------------------------------------------------------------------------------


def waits(client: Client, db: redis.Redis, other: Host, task_id: str) -> None:
    """Its message is on its list again."""


def runs(client: Client, db: redis.Redis, other: Host, task_id: str) -> None:
    other.take()
    (one,) = other.hands.tasks
    other.hands.begin(one)
    assert one.started_at is not None


def has_succeeded(client: Client, db: redis.Redis, other: Host, task_id: str) -> None:
    runs(client, db, other, task_id)
    other.hands.end(other.hands.tasks[0])


def has_failed(client: Client, db: redis.Redis, other: Host, task_id: str) -> None:
    runs(client, db, other, task_id)
    other.hands.tasks[0].fail(PipeqError("inference_failed", "no", False))
    other.hands.end(other.hands.tasks[0])


def was_revived(client: Client, db: redis.Redis, other: Host, task_id: str) -> None:
    has_failed(client, db, other, task_id)
    (handled,) = client.dead(PIPELINE).retry()
    assert handled.refused is None


def is_retried(client: Client, db: redis.Redis, other: Host, task_id: str) -> None:
    runs(client, db, other, task_id)
    other.hands.tasks[0].fail(AWAY)
    other.hands.end(other.hands.tasks[0])


def runs_again(client: Client, db: redis.Redis, other: Host, task_id: str) -> None:
    is_retried(client, db, other, task_id)
    key = keys.waiting_key(PIPELINE)
    db.zadd(key, dict.fromkeys(db.zrange(key, 0, -1), 1))
    other.move_due()
    runs(client, db, other, task_id)


def was_cancelled(client: Client, db: redis.Redis, other: Host, task_id: str) -> None:
    client.cancel(task_id)


def was_purged(client: Client, db: redis.Redis, other: Host, task_id: str) -> None:
    assert client.purge(PIPELINE) == 1


def was_forgotten(client: Client, db: redis.Redis, other: Host, task_id: str) -> None:
    """Its record has lapsed, a day after its end."""
    has_succeeded(client, db, other, task_id)
    db.delete(keys.record_key(task_id))


#: In these, the late worker's mark is still there.
UNTOUCHED = [waits, was_cancelled]
MEANWHILE = [
    waits, runs, has_succeeded, has_failed, was_revived, is_retried, runs_again, was_cancelled, was_purged,
    was_forgotten,
]  # fmt: skip


# -- what the late worker does ----------------------------------------------------------------------------------------


def begins(late: Host, one: Delivery) -> None:
    late.runtime._beginning.begin([one], False)
    assert one.is_lost


def begins_alone(late: Host, one: Delivery) -> None:
    late.runtime._beginning.begin([one], True)
    assert one.is_lost


def succeeds(late: Host, one: Delivery) -> None:
    late.hands.end(one)
    assert one.is_lost


def fails(late: Host, one: Delivery) -> None:
    one.fail(PipeqError("inference_failed", "no", False))
    late.hands.end(one)
    assert one.is_lost


def is_to_be_retried(late: Host, one: Delivery) -> None:
    one.fail(AWAY)
    late.hands.end(one)
    assert one.is_lost


def renews(late: Host, one: Delivery) -> None:
    assert late.leases.renew([one.tag]) == {one.tag}


def holds(late: Host, one: Delivery) -> None:
    late.leases.hold(one.tag)


def lets_go(late: Host, one: Delivery) -> None:
    late.leases.hold("", instead_of=one.tag)


def postpones(late: Host, one: Delivery) -> None:
    late.leases.postpone(one.tag, keys.waiting_key(PIPELINE), time.time() + 1000)


def puts_back(late: Host, one: Delivery) -> None:
    late.leases.requeue([one.tag])


def puts_back_last(late: Host, one: Delivery) -> None:
    late.leases.requeue([one.tag], is_last=True)


def buries(late: Host, one: Delivery) -> None:
    late.leases.bury(one.tag, keys.dead_letter_key(PIPELINE), "a letter", 10)


def acknowledges(late: Host, one: Delivery) -> None:
    late.leases.acknowledge(one.tag)


def loses_a_process(late: Host, one: Delivery) -> None:
    one.starts_over()
    one.deaths += 1
    late.runtime._beginning.died([one])


def goes_back(late: Host, one: Delivery) -> None:
    late.runtime._take_back([one])


def looks(late: Host, one: Delivery) -> None:
    one.progress = Progress(done=1, total=2, unit="tokens")
    late.runtime._beginning.look([one])


STEPS = [
    begins, begins_alone, succeeds, fails, is_to_be_retried, renews, holds, lets_go, postpones, puts_back,
    puts_back_last, buries, acknowledges, loses_a_process, goes_back, looks,
]  # fmt: skip
_READ: dict[str, Callable[[redis.Redis, str], Any]] = {
    "string": lambda db, key: db.get(key),
    "list": lambda db, key: db.lrange(key, 0, -1),
    "hash": lambda db, key: db.hgetall(key),
    "zset": lambda db, key: db.zrange(key, 0, -1, withscores=True),
    "set": lambda db, key: db.smembers(key),
    "stream": lambda db, key: db.xrange(key),
}


def all_of(db: redis.Redis) -> dict[str, Any]:
    """Everything that Redis holds."""
    return {key.decode(): _READ[db.type(key).decode()](db, key.decode()) for key in db.scan_iter()}


@pytest.fixture
def late_one(client: Client, db: redis.Redis, late: Host, other: Host, request: Any) -> Delivery:
    """A task that the late worker has begun, or not, and whose lease has lapsed."""
    task_id = client.submit(PIPELINE, "x", check=False)
    late.take()
    (one,) = late.hands.tasks
    if request.param:
        late.hands.begin(one)
        assert one.is_marked
    db.zadd(keys.LEASES, {one.tag: 1})
    other.sweep()
    assert db.llen(PIPELINE) == 1
    assert one.id == task_id
    return one


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize(
    ("step", "late_one"),
    [(step, step not in (begins, begins_alone)) for step in STEPS]
    + [(step, False) for step in (fails, looks, loses_a_process)],
    indirect=["late_one"],
)
def test_who_is_late_changes_nothing_that_is_not_its_own(
    client: Client, db: redis.Redis, late: Host, other: Host, late_one: Delivery, step: Any, meanwhile: Any
) -> None:
    meanwhile(client, db, other, late_one.id)
    was_marked, before = late_one.is_marked, all_of(db)
    step(late, late_one)
    after = all_of(db)
    if meanwhile in UNTOUCHED and was_marked and step in (loses_a_process, goes_back, looks):
        mark = after.get(keys.RUNNING, {}).pop(late_one.id.encode(), None)
        before[keys.RUNNING].pop(late_one.id.encode())
        if meanwhile is was_cancelled or step is goes_back:
            assert mark is None
        else:
            said = json.loads(mark)
            want = ("", 0) if step is loses_a_process else (late.name, 0)
            assert (said["worker"], said["deaths"]) == want
        if meanwhile is waits and step is not looks:
            # Its record says QUEUED again, as it should have when the lease lapsed.
            key = keys.record_key(late_one.id)
            assert json.loads(after.pop(key))["status"] == "QUEUED"
            del before[key]
            assert after.pop(keys.EVENTS)[:-1] == before.pop(keys.EVENTS)
        if not before[keys.RUNNING]:
            del before[keys.RUNNING]
            after.pop(keys.RUNNING, None)
    assert after == before
