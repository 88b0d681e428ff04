"""Idle and busy workers of a queue, by the script that takes messages, on a real Valkey."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import redis
from pipeq.contract import keys
from pipeq_worker.leases import reserver, sharing
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserved import Taken, Wanted, taken
from pipeq_worker.leases.reserver import Reserver, Terms
from pipeq_worker.leases.server import Server, place
from pipeq_worker.leases.sharing import MARK_S, Looks
from redis.connection import Connection

from tests.waiting import promptly, until

MARKS = keys.idle_key("q")


class Worker:
    """One that says how busy it is, and takes messages by calls of its own."""

    def __init__(self, url: str, queues: tuple[str, ...] = ("q",), prefix: str = "") -> None:
        self._url = url
        at = place(redis.Redis.from_url(url).connection_pool.connection_kwargs)
        self.leases = Leases(Server(at, prefix, lambda: redis.Redis.from_url(url)), 15, 60)
        self.leases.sharing = self
        self.queues = queues
        self.busy_s = 0.0
        self.most_held = 10
        self.serves = True
        self.can_give: int | None = None
        self.asked: list[tuple[str, int]] = []
        self.reserver: Reserver | None = None

    # What a reserver asks.

    def shares(self, queue: str) -> bool:
        return queue in self.queues

    def most(self, queue: str) -> int:
        return self.most_held

    def takes(self, queue: str) -> bool:
        return self.serves

    def is_idle(self) -> bool:
        return self.serves and not self.leases.held()[0]

    def lasts_s(self) -> float:
        return self.busy_s

    def spare(self, queue: str) -> int:
        return max(0, self.leases.held(queue)[0] - 1) if self.can_give is None else self.can_give

    def give_back(self, queue: str, idle: int) -> None:
        self.asked.append((queue, idle))

    # What a test does.

    def wanted(self, queue: str = "q", **fields: object) -> Wanted:
        messages = max(0, self.most_held - self.leases.held(queue)[0])
        return replace(Wanted(queue, keys.list_keys(queue), messages, 2**30, [0] * 4), **fields)  # type: ignore[arg-type]

    def take(self, *wanted: Wanted) -> Taken:
        """Calls the script once."""
        _, (number, *rest) = self.leases.reserve_command(list(wanted))
        found = taken(self.leases._reserve(keys=rest[:number], args=rest[number:]), list(wanted))
        self.leases.add(found.messages)
        return found

    def idles(self) -> Taken:
        return self.take(self.wanted(is_idle=True, is_marked=True))

    def run(self) -> None:
        """Takes messages on a thread, as a worker does."""
        arguments = redis.Redis.from_url(self._url).connection_pool.connection_kwargs
        terms = Terms(lambda queue, sharing: self.wanted(queue), self.shares)
        self.reserver = Reserver(self.leases, lambda: Connection(**{**arguments, "protocol": 2}), terms)
        self.reserver.take_from(self.queues)

    def close(self) -> None:
        if self.reserver is not None:
            self.reserver.close()
        self.leases.close()


@pytest.fixture
def db(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.flushdb()
        yield client


@pytest.fixture
def hire(valkey_url: str, db: redis.Redis) -> Iterator[Callable[..., Worker]]:
    hired: list[Worker] = []

    def one(*args: object, **kwargs: object) -> Worker:
        hired.append(Worker(valkey_url, *args, **kwargs))  # type: ignore[arg-type]
        return hired[-1]

    yield one
    for worker in hired:
        worker.close()


def test_a_mark_is_left_if_nothing_is_found_and_goes_with_the_first_message(
    hire: Callable[..., Worker], db: redis.Redis
) -> None:
    worker = hire()
    before = time.time()
    worker.idles()
    ((_, ends),) = db.zrange(MARKS, 0, -1, withscores=True)
    assert before + MARK_S - 1 <= ends <= time.time() + MARK_S
    assert 0 < db.ttl(MARKS) <= MARK_S
    worker.idles()
    assert db.zcard(MARKS) == 1
    db.lpush("q", "a")
    assert len(worker.take(worker.wanted(is_idle=True)).messages) == 1
    assert db.zcard(MARKS) == 0


def test_without_being_told_to_no_mark_is_left(hire: Callable[..., Worker], db: redis.Redis) -> None:
    worker = hire()
    worker.take(worker.wanted(is_idle=True))
    worker.take(worker.wanted())
    worker.take(worker.wanted(gives=5))
    worker.leases.sharing = None
    worker.take(worker.wanted(is_idle=True, is_marked=True, gives=5))
    assert db.keys() == []


def test_a_mark_is_answered_once_and_by_as_many_as_there_are(hire: Callable[..., Worker], db: redis.Redis) -> None:
    busy, other, *idle = (hire() for _ in range(5))
    for one in idle:
        one.idles()
    assert busy.take(busy.wanted(gives=2, messages=0)).idle == {"q": 2}
    assert other.take(other.wanted(gives=9)).idle == {"q": 1}
    assert busy.take(busy.wanted(gives=9)).idle == {}
    idle[0].idles()
    assert busy.take(busy.wanted(gives=9)).idle == {"q": 1}


def test_nobody_gives_while_there_are_messages(hire: Callable[..., Worker], db: redis.Redis) -> None:
    busy, idle = hire(), hire()
    idle.idles()
    db.lpush("q", "a")
    assert busy.take(busy.wanted(gives=3)).idle == {}
    assert busy.take(busy.wanted(gives=3)).idle == {"q": 1}


def test_marks_that_have_ended_count_for_nothing(hire: Callable[..., Worker], db: redis.Redis) -> None:
    busy = hire()
    db.zadd(MARKS, {"dead": time.time() - 2, "lives": time.time() + 5})
    assert busy.take(busy.wanted(gives=9)).idle == {"q": 1}
    assert db.zcard(MARKS) == 0


@pytest.mark.parametrize("prefix", ["", "tenant:"])
def test_each_queue_has_its_marks(hire: Callable[..., Worker], db: redis.Redis, prefix: str) -> None:
    busy, idle = hire(("q", "other"), prefix=prefix), hire(("q",), prefix=prefix)
    idle.take(idle.wanted(is_idle=True, is_marked=True))
    assert db.keys() == [prefix + MARKS]
    found = busy.take(busy.wanted("other", gives=3), busy.wanted("q", gives=3))
    assert found.idle == {"q": 1}


@pytest.mark.parametrize("kind", ["string", "list", "hash"])
def test_a_key_of_another_type_counts_as_no_marks(hire: Callable[..., Worker], db: redis.Redis, kind: str) -> None:
    {"string": db.set, "list": db.lpush, "hash": lambda key, value: db.hset(key, value, value)}[kind](MARKS, "x")
    worker = hire()
    assert worker.idles() == ([], [], {}, False, {})
    assert worker.take(worker.wanted(gives=3)) == ([], [], {}, False, {})
    db.lpush("q", "a")
    assert [one.raw for one in worker.idles().messages] == [b"a"]
    assert db.type(MARKS) == kind


def test_idle_workers_take_no_marks_of_each_other(hire: Callable[..., Worker], db: redis.Redis) -> None:
    for one in (hire() for _ in range(3)):
        assert one.idles().idle == {}
    assert db.zcard(MARKS) == 3


@pytest.mark.parametrize("full", [True, False], ids=["without credit", "with credit"])
def test_a_busy_worker_is_told_at_once_and_asks_redis_nothing_until_then(
    hire: Callable[..., Worker], db: redis.Redis, full: bool
) -> None:
    def calls() -> int:
        return int(db.info("commandstats")["cmdstat_evalsha"]["calls"])

    busy, idle = hire(), hire()
    db.lpush("q", *"abcde")
    busy.busy_s, busy.most_held = 100, 5 if full else 10
    busy.run()
    until(lambda: busy.leases.held()[0] == 5)
    time.sleep(1)
    before, began = calls(), time.monotonic()
    time.sleep(1.5)
    # At most two a second, however long the sleep was.
    assert calls() - before <= 2 * (time.monotonic() - began)
    idle.run()
    promptly(lambda: busy.asked, 0.5, 0.005)
    assert busy.asked == [("q", 1)]


def test_an_idle_worker_asks_again_if_nobody_answers(
    hire: Callable[..., Worker], db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MARK_AGAIN_S", 0.5)
    idle = hire()
    idle.run()
    until(lambda: db.zcard(MARKS) == 1)
    db.delete(MARKS)  # as somebody does who dies before it gives anything
    promptly(lambda: db.zcard(MARKS) == 1, 0.5 + reserver.LOOK_S + 0.5)
    idle.serves = False
    db.delete(MARKS)
    time.sleep(0.5 + reserver.LOOK_S + 0.5)
    assert db.zcard(MARKS) == 0


def test_idle_workers_take_a_message_before_busy_ones(
    hire: Callable[..., Worker], db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, idle = hire(), hire()
    busy.busy_s, busy.can_give = 100, 0
    busy.run()
    idle.run()
    until(lambda: db.zcard(MARKS) == 2)
    # On a busy machine the thread of the idle one may be due later than after 30 ms.
    monkeypatch.setattr(reserver, "YIELD_S", 10.0)
    for at in range(20):
        db.lpush("q", str(at))
        until(lambda: sum(one.leases.held()[0] for one in (busy, idle)) == 1)
        assert idle.leases.held()[0] == 1
        idle.leases.release(list(idle.leases._held))


def test_when_marks_are_set_and_looked_for(valkey_url: str) -> None:
    worker, looks = Worker(valkey_url), Looks()
    plain = [Wanted("include", ["include"], 1, 1, [0]), Wanted("q", ["q"], 1, 1, [0])]
    assert looks.with_marks(plain, None) == plain
    assert [(one.is_idle, one.is_marked) for one in looks.with_marks(plain, worker)] == [(False, False), (True, True)]
    assert [(one.is_idle, one.is_marked) for one in looks.with_marks(plain, worker)][1] == (True, False)
    looks.reported()
    assert looks.with_marks(plain, worker)[1].is_marked
    worker.serves, worker.can_give = False, 3
    assert looks.is_due(["q"], worker, True)
    assert not looks.is_due(["include"], worker, True)
    assert not looks.is_due(["q"], None, True)
    assert [one.gives for one in looks.with_marks(plain, worker)] == [0, 3]
    assert not looks.is_due(["q"], worker, True)
    looks.answered(["q"])
    assert looks.is_due(["q"], worker, True)
    worker.can_give = 0
    assert not looks.is_due(["q"], worker, True)
    worker.close()
