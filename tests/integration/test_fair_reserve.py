"""Turns of tenants in a queue's lists, against a real Valkey, fed by stock kombu, Celery's own form of messages."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Producer, Queue
from pipeq.client import Client
from pipeq.contract import keys
from pipeq.demo import embedded
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserved import Wanted, taken
from pipeq_worker.leases.server import Server, place

NAME = "pipeq_worker:Transport"
MOVED = 500
#: Random orders of takes and pushes; `make long` walks more.
SEEDS = 40 if os.environ.get("TASKS") else 3


@pytest.fixture
def url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url
    for leases in Leases.every():
        leases.close()


@pytest.fixture
def db(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        yield client


@pytest.fixture(params=["", "p:"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def leases_of(url: str, prefix: str = "") -> Leases:
    params = {"host": "127.0.0.1", "port": int(url.rsplit(":", 1)[1].split("/")[0]), "db": 0}
    return Leases.of(Server(place(params), prefix, lambda: redis.Redis.from_url(url)), 60, 5)


def message(at: Any, key: Any = None) -> str:
    headers = {"id": f"{at}"} | ({} if key is None else {"fair_key": key})
    info = {"exchange": "", "routing_key": "q"}
    properties = {"delivery_tag": f"{at}", "delivery_info": info, "body_encoding": "base64"}
    kind = {"content-type": "application/json", "content-encoding": "utf-8"}
    return json.dumps({"body": "e30=", **kind, "headers": headers, "properties": properties, "at": at})


def push(db: redis.Redis, name: str, messages: list[str]) -> None:
    for start in range(0, len(messages), 1000):
        db.lpush(name, *messages[start : start + 1000])


class Taker:
    """Reserves as a worker does, and remembers what it got."""

    def __init__(self, leases: Leases, lists: list[str] | None = None) -> None:
        self.leases, self.lists = leases, lists or ["q"]
        self.is_unmoved = False

    def take(self, number: int) -> list[tuple[Any, Any]]:
        """``at`` and tenant of the messages."""
        wanted = [Wanted("q", self.lists, number, 2**30, [0] * len(self.lists))]
        _, (count, *rest) = self.leases.reserve_command(wanted)
        reserved, _, refused, self.is_unmoved, _ = taken(
            self.leases._reserve(keys=rest[:count], args=rest[count:]), wanted
        )
        assert not refused
        self.leases.add(reserved)
        self.tags = [one.tag for one in reserved]
        found = [json.loads(one.raw) for one in reserved]
        return [(one["at"], one["headers"].get("fair_key")) for one in found]


def test_one_task_of_a_tenant_does_not_wait_for_twenty_thousand_of_another(
    url: str, db: redis.Redis, prefix: str
) -> None:
    push(db, f"{prefix}q", [message(at, "big") for at in range(20_000)] + [message("small", "small")])
    taker = Taker(leases_of(url, prefix))
    for calls in range(1, 60):
        if ("small", "small") in taker.take(64 if calls == 1 else 1):
            break
    assert calls <= 20_000 / MOVED + 3


def test_without_keys_nothing_changes(url: str, db: redis.Redis) -> None:
    push(db, "q", [message(at) for at in range(100)])
    taker = Taker(leases_of(url))
    assert [at for at, _ in taker.take(60)] == list(range(60))
    assert not db.exists(keys.fair_key("q"), keys.fair_times_key("q"))
    assert not taker.is_unmoved
    assert [at for at, _ in taker.take(60)] == list(range(60, 100))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_message_is_lost_or_doubled_and_each_tenants_order_stays(url: str, db: redis.Redis, seed: int) -> None:
    """Random tenants, takes and pushes."""
    rng = random.Random(seed)
    tenants = [None, *(f"t{at}" for at in range(rng.randint(1, 30))), 'with "quotes" \\ and ü']
    taker, pushed, got = Taker(leases_of(url)), 0, list[tuple[Any, Any]]()
    sent = defaultdict[Any, list[int]](list)
    for _ in range(60):
        for _ in range(rng.choice([0, 3, 50, 400])):
            key = tenants[min(int(rng.expovariate(0.5)), len(tenants) - 1)]
            sent[key].append(pushed)
            push(db, "q", [message(pushed, key)])
            pushed += 1
        got += taker.take(rng.choice([0, 1, 16, 200]))
        assert len(got) + db.llen("q") + db.zcard(keys.fair_key("q")) == pushed
    while more := taker.take(300):
        got += more
    assert sorted(at for at, _ in got) == list(range(pushed))
    for key in tenants:
        assert [at for at, tenant in got if tenant == key] == sent[key]
    taker.take(1)
    assert not db.exists("q", keys.fair_key("q"), keys.fair_times_key("q"))


def test_tenants_take_turns_however_many_messages_they_have(url: str, db: redis.Redis) -> None:
    push(db, "q", [message(at, key) for key, number in (("a", 500), ("b", 50), ("c", 5)) for at in range(number)])
    taker = Taker(leases_of(url))
    taker.take(1)  # it sees the keys
    while taker.is_unmoved:
        taker.take(0)
    got = [key for _, key in taker.take(30)]
    counts = Counter(got)
    assert counts["c"] == 5
    assert abs(counts["a"] - counts["b"]) <= 1
    # Those that come later start in the present, whatever they used before.
    push(db, "q", [message(at, "d") for at in range(10)])
    assert [key for _, key in taker.take(30)].count("d") in (9, 10)


def test_what_goes_back_is_served_first_and_what_is_sent_back_last(url: str, db: redis.Redis) -> None:
    push(db, "q", [message(at, "a") for at in range(50)] + [message(99, "b")])
    leases = leases_of(url)
    taker = Taker(leases)
    taker.take(1)
    first, tags = taker.take(5), taker.tags
    leases.requeue(tags)
    assert taker.take(5) == first
    leases.requeue(taker.tags, is_last=True)
    rest = taker.take(100)
    assert {at for at, _ in rest[-4:]} <= {at for at, _ in first}
    assert len(rest) == 50


def test_a_requested_size_and_a_purge_count_what_was_moved(url: str, db: redis.Redis, prefix: str) -> None:
    push(db, f"{prefix}q", [message(at, "a") for at in range(50)])
    Taker(leases_of(url, prefix)).take(1)
    Taker(leases_of(url, prefix)).take(1)
    assert db.zcard(prefix + keys.fair_key("q")) == 48
    push(db, f"{prefix}q", [message(at, "a") for at in range(5)])
    with Connection(url, transport=NAME, transport_options={"global_keyprefix": prefix}) as connection:
        queue = Queue("q", routing_key="q")(connection.channel())
        assert queue.queue_declare(passive=True).message_count == 53
        assert queue.purge() == 53
        assert queue.queue_declare(passive=False).message_count == 0
        push(db, f"{prefix}q", [message(at, "a") for at in range(50)])
        for _ in range(2):
            Taker(leases_of(url, prefix)).take(1)
        bound = Queue("q", Exchange("q"), routing_key="q")(connection.channel())
        bound.declare()
        bound.delete()
    left = [key for key in db.keys("*") if "fair" in key or key == f"{prefix}q"]
    assert left == []


def test_the_client_counts_what_was_moved(url: str, db: redis.Redis) -> None:
    db.hset(keys.PIPELINES, "q", "{}")
    with Client(url) as client:
        client.submit_many("q", [str(at) for at in range(20)], fair_key="acme", check=False, priority=0)
        for _ in range(2):
            wanted = [Wanted("q", keys.list_keys("q"), 1, 2**30, [0] * 4)]
            _, (count, *rest) = leases_of(url).reserve_command(wanted)
            leases_of(url)._reserve(keys=rest[:count], args=rest[count:])
        assert db.llen("q") == 0
        [queue] = client.queues()
    assert queue.depth == 18
    assert queue.oldest_age_s is not None


def test_a_stock_consumer_reads_them_while_no_worker_of_ours_does(url: str, db: redis.Redis) -> None:
    """Before our first take they lie on the list; when our last consumer closes, they go back in the order of turns."""
    push(db, "q", [message(at, "a") for at in range(2500)] + [message(at, "b") for at in range(3)])
    with Connection(url, transport=NAME, transport_options={"queue_prefetch": 4}) as connection:
        consuming = Consumer(connection.channel(), [Queue("q", routing_key="q")], accept=["json"])
        consuming.register_callback(lambda body, message: None)
        consuming.consume()
        until = time.monotonic() + 20
        while db.llen("q") and time.monotonic() < until:
            time.sleep(0.01)
        assert db.llen("q") == 0  # all were put in order, though there is no credit for them
    assert db.llen("q") == 2503
    assert not db.exists(keys.fair_key("q"), keys.fair_times_key("q"))
    next_served = [json.loads(raw)["headers"]["fair_key"] for raw in reversed(db.lrange("q", -14, -1))]
    assert next_served.count("b") == 3
    with Connection(url) as stock:
        found = [stock.SimpleQueue("q").get(timeout=5) for _ in range(3)]
    assert all(one.headers["fair_key"] for one in found)


@pytest.mark.parametrize("kind", ["string", "list", "set", "zset", "hash"])
@pytest.mark.parametrize("which", [keys.fair_key, keys.fair_times_key])
def test_a_foreign_value_under_its_keys_stops_nothing(url: str, db: redis.Redis, which: Any, kind: str) -> None:
    name = which("q")
    {
        "string": lambda: db.set(name, "x"),
        "list": lambda: db.lpush(name, "x"),
        "set": lambda: db.sadd(name, "x"),
        "zset": lambda: db.zadd(name, {"x": 5}),
        "hash": lambda: db.hset(name, "now", "much"),
    }[kind]()
    push(db, "q", [message(at, "ab"[at % 2]) for at in range(40)])
    leases = leases_of(url)
    wanted = [Wanted("q", ["q"], 7, 2**30, [0])]
    got = 0
    for _ in range(20):
        _, (count, *rest) = leases.reserve_command(wanted)
        reserved, *_ = taken(leases._reserve(keys=rest[:count], args=rest[count:]), wanted)
        got += sum(len(one.raw) > 20 for one in reserved)
    assert got == 40


def test_many_keys_are_forgotten_when_they_are_served(url: str, db: redis.Redis) -> None:
    taker = Taker(leases_of(url))
    for start in range(0, 20_000, 500):
        push(db, "q", [message(at, f"tenant-{at}") for at in range(start, start + 500)])
        taker.take(498)
    assert db.hlen(keys.fair_times_key("q")) < 4000


def test_priorities_come_before_turns(url: str, db: redis.Redis) -> None:
    lists = keys.list_keys("q")
    for name, priority in zip(lists, keys.PRIORITY_STEPS, strict=True):
        push(db, name, [message(f"{priority}-{at}", "ab"[at % 2]) for at in range(20)])
    taker = Taker(leases_of(url), lists)
    got = []
    while more := taker.take(8):
        got += [at.split("-")[0] for at, _ in more]
    assert [priority for priority, _ in groupby(got)] == ["0", "3", "6", "9"]


def test_a_queues_expiry_covers_what_was_moved(url: str, db: redis.Redis) -> None:
    push(db, "q", [message(at, "a") for at in range(40)])
    leases = leases_of(url)
    wanted = [Wanted("q", ["q"], 1, 2**30, [0], lifetime_ms=30_000)]
    for _ in range(2):
        _, (count, *rest) = leases.reserve_command(wanted)
        leases._reserve(keys=rest[:count], args=rest[count:])
    for name in (keys.fair_key("q"), keys.fair_times_key("q")):
        assert 0 < db.pttl(name) <= 30_000


def test_a_stock_producer_with_the_header_has_turns_too(url: str, db: redis.Redis) -> None:
    with Connection(url) as connection:
        producer = Producer(connection)
        for at in range(60):
            producer.publish({"at": at}, routing_key="q", headers={"id": f"{at}", "fair_key": "big"})
        producer.publish({"at": "small"}, routing_key="q", headers={"id": "s", "fair_key": "small"})
    leases = leases_of(url)
    wanted = [Wanted("q", ["q"], 2, 2**30, [0])]
    seen = []
    for _ in range(3):
        _, (count, *rest) = leases.reserve_command(wanted)
        reserved, *_ = taken(leases._reserve(keys=rest[:count], args=rest[count:]), wanted)
        seen += [json.loads(one.raw)["headers"]["id"] for one in reserved]
    assert "s" in seen
