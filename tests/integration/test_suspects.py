"""Messages that a host had when it died, against a real Valkey: what they tell the next host, and who is charged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from kombu import Connection
from kombu.asynchronous import set_event_loop
from pipeq.contract import keys, record
from pipeq.demo import embedded
from pipeq_worker.broker.suspects import Suspects
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.line import Line
from pipeq_worker.leases.reserved import Reserved, taken
from pipeq_worker.leases.server import Server
from redis.backoff import NoBackoff
from redis.connection import Connection as RedisConnection
from redis.retry import Retry

from tests.integration.test_transport import NAME, consumer, drain, publish, wanted
from tests.proxy import proxy
from tests.waiting import until


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


@pytest.fixture
def leases(url: str) -> Iterator[Leases]:
    made = Leases(Server(url, "", lambda: redis.Redis.from_url(url)), 1000, 1000)
    yield made
    made.close()


def dies(db: redis.Redis, leases: Leases) -> None:
    """The host that has messages dies, and another one sweeps."""
    db.zadd(keys.LEASES, dict.fromkeys(db.zrange(keys.LEASES, 0, -1), 1))
    leases._held.clear()
    assert leases._put_back("lapsed", 1000, time.time() + 100) > 0


def front(db: redis.Redis, queue: str = "q") -> str:
    (message,) = db.lrange(queue, 0, -1)
    return message[: message.index("{")]


def test_a_message_tells_how_many_hosts_died_with_it(db: redis.Redis, leases: Leases) -> None:
    db.lpush("q", '{"a": 1}')
    one = leases.reserve_one(wanted("q"))
    assert one is not None
    leases.requeue([one.tag])
    assert front(db) == " ", "it was given back"
    for lapses in (1, 2):
        leases.reserve_one(wanted("q"))
        dies(db, leases)
        assert front(db) == " " + "\t" * lapses
    one = leases.reserve_one(wanted("q"))
    assert one is not None
    assert leases.is_suspect(one.tag)
    leases.requeue([one.tag], is_last=True)
    assert front(db) == "  \t\t"


def test_who_has_it_in_hand_is_charged_and_nobody_else(db: redis.Redis, leases: Leases) -> None:
    db.lpush("q", *(f' \t{{"a": {at}}}' for at in range(3)))
    tags = [one.tag for _ in range(3) if (one := leases.reserve_one(wanted("q"))) is not None]
    leases.hold(tags[0])
    leases.hold(tags[1], instead_of=tags[0])
    dies(db, leases)
    found = {json.loads(text)["a"]: text[: text.index("{")] for text in db.lrange("q", 0, -1)}
    assert found == {0: " \t\t", 1: " \t\t\r", 2: " \t\t"}
    # What goes back in good order, or is acknowledged, is not charged.
    first, second = (leases.reserve_one(wanted("q")) for _ in range(2))
    assert first is not None
    assert second is not None
    leases.hold(first.tag)
    leases.hold(second.tag)
    leases.requeue([first.tag])
    leases.acknowledge(second.tag)
    leases.hold("", instead_of=second.tag)
    assert sorted(text[: text.index("{")] for text in db.lrange("q", 0, -1)) == [" \t\t", " \t\t"]
    assert db.hlen(keys.UNACKED) == 0


@pytest.mark.parametrize("lost", ["taking", "letting go"])
def test_a_death_is_charged_once_if_the_answer_was_lost(db: redis.Redis, url: str, lost: str) -> None:
    """redis-py sends the call again by itself. Of three deaths that one message is charged with, it would be two."""
    with proxy(url) as (between, through):
        client = lambda: redis.Redis.from_url(through, retry=Retry(NoBackoff(), 1))  # noqa: E731
        leases = Leases(Server(through, "", client), 1000, 1000)
        db.lpush("q", ' \t\t\r{"a": 1}')
        one = leases.reserve_one(wanted("q"))
        assert one is not None
        leases.hold("")  # the script is known from now on
        for step in ("taking", "letting go"):
            between.answers_left = 0 if step == lost else None
            leases.hold(*((one.tag,) if step == "taking" else ("", one.tag)))
            assert between.answers_left is None
            (entry,) = db.hvals(keys.UNACKED)
            assert entry.count("\r") == (2 if step == "taking" else 1)
        leases.close()


def test_what_may_be_charged_is_let_go_of_when_it_goes_back(db: redis.Redis, url: str) -> None:
    with proxy(url) as (between, through):
        leases = Leases(
            Server(through, "", lambda: redis.Redis.from_url(through, retry=Retry(NoBackoff(), 0))), 1000, 1000
        )
        db.lpush("q", ' \t{"a": 1}')
        one = leases.reserve_one(wanted("q"))
        assert one is not None
        leases.hold("")
        between.answers_left = 0
        leases.hold(one.tag)
        assert db.hvals(keys.UNACKED)[0].count("\r") == 1
        leases.requeue([one.tag])
        assert front(db) == " \t"
        leases.close()


def test_while_a_suspect_is_received_redis_knows(url: str, db: redis.Redis) -> None:
    publish(url, "q", 3)
    texts = db.lrange("q", 0, -1)
    db.delete("q")
    db.lpush("q", *(" \t" + text for text in texts[:2]), texts[2])
    seen: list[tuple[int, list[int]]] = []

    def received(body: Any, message: Any) -> None:
        # How often each is charged now.
        entries = db.hvals(keys.UNACKED)
        seen.append((body["at"], sorted(one.count("\r") for one in entries)))

    with consumer(url, ["q"], received) as connection:
        drain(connection, 10, lambda: len(seen) == 3)
        assert sorted(one.count("\r") for one in db.hvals(keys.UNACKED)) == [0, 0, 0]
    assert dict(seen) == {0: [0, 0, 0], 1: [0, 0, 1], 2: [0, 0, 1]}


@pytest.mark.parametrize("text", ['{"headers": {"id": "a-task"}, "x": }', "no json at all"])
def test_what_hosts_die_of_is_given_up_unread(url: str, db: redis.Redis, text: str) -> None:
    db.lpush("q", " \t\t\r" + text, " \t\t\t\r\r" + text)
    got: list[Any] = []
    with consumer(url, ["q"], lambda body, message: got.append(body)) as connection:
        drain(connection, 10, lambda: db.llen(keys.dead_letter_key("q")) == 2)
        drain(connection, 0.2)
    assert got == []
    letters = [json.loads(one) for one in db.lrange(keys.dead_letter_key("q"), 0, -1)]
    # The first one has its last chance, in which it turns out to be none.
    assert {(one["code"], one["attempts"]) for one in letters} == {("invalid_message", 0), ("worker_lost", 3)}
    assert all(text in one["message"] for one in letters)
    assert {one["id"] for one in letters} <= {"a-task", None}
    assert db.hlen(keys.UNACKED) == db.llen("q") == 0


def test_a_thousand_that_were_only_there_are_not_given_up(url: str, db: redis.Redis) -> None:
    publish(url, "q", 1000)
    texts = db.lrange("q", 0, -1)
    db.delete("q")
    # Three hosts have died with them, and then as many again.
    db.lpush("q", *(" " + "\t" * (3 + 3 * (at % 2)) + text for at, text in enumerate(texts)))
    got: set[int] = set()

    def received(body: Any, message: Any) -> None:
        got.add(body["at"])
        message.ack()

    with consumer(url, ["q"], received) as connection:
        drain(connection, 60, lambda: len(got) == 1000)
    assert got == set(range(1000))
    assert db.llen(keys.dead_letter_key("q")) == 0


class Loop:
    """As much of kombu's event loop as is used: what is to be called later."""

    def __init__(self) -> None:
        self.later: list[Callable[[], None]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.later.append(callback)


def test_after_as_many_deaths_without_a_culprit_one_at_a_time_is_inside(db: redis.Redis, leases: Leases) -> None:
    db.lpush("q", *(f' \t\t\t{{"a": {at}}}' for at in range(4)))
    taken = [one for _ in range(4) if (one := leases.reserve_one(wanted("q"))) is not None]
    inside: list[Reserved] = []
    loop = Loop()
    set_event_loop(loop)
    try:
        suspects = Suspects(leases, 3, inside.append, lambda one, deaths: pytest.fail(f"{one} is given up"))
        suspects.receive(taken)
        for count in range(1, 5):
            for _ in range(3):
                assert inside == taken[:count]
                assert sum("\r" in one for one in db.hvals(keys.UNACKED)) == 1
                later, loop.later = loop.later, []
                assert len(later) == (count < 4), "it looks again as long as one waits"
                for callback in later:
                    callback()
            leases.release([inside[-1].tag])
            db.hdel(keys.UNACKED, inside[-1].tag)
            for callback in loop.later:
                loop.later = []
                callback()
    finally:
        set_event_loop(None)
    assert inside == taken


@pytest.mark.parametrize("lapses", [1, 3], ids=["new", "alone of their kind"])
def test_those_that_wait_go_back_when_the_channel_closes(db: redis.Redis, url: str, lapses: int) -> None:
    """After Redis was away, for instance, there is another channel; this one's looks at them never come."""
    db.lpush("q", *(" " + "\t" * lapses + f'{{"a": {at}}}' for at in range(4)))
    loop = Loop()
    set_event_loop(loop)
    claims: list[str] = []
    try:
        with Connection(url, transport=NAME) as connection:
            channel: Any = connection.channel()
            leases = channel.leases
            leases.claim = lambda: bool(claims.append("claim"))  # a suspect task is on its way to its result
            leases.disclaim = lambda: claims.append("disclaim")
            taken = [one for _ in range(4) if (one := leases.reserve_one(wanted("q"))) is not None]
            channel._suspects = Suspects(leases, 3, pytest.fail, pytest.fail)
            channel._suspects.receive(taken)
            if lapses == 3:
                leases.claim = lambda: True
                leases.holds = lambda tag: True  # one is inside
                loop.later.pop()()
                del leases.holds
            channel.close()
        assert claims[-1] == "disclaim"
        assert [one[: one.index("{")] for one in db.lrange("q", 0, -1)] == [" " + "\t" * lapses] * 4
        assert db.hlen(keys.UNACKED) == 0
        for callback in loop.later:
            callback()
    finally:
        set_event_loop(None)


def reserved_one(leases: Leases) -> Reserved:
    one = leases.reserve_one(wanted("q"))
    assert one is not None
    return one


def delivery_of(leases: Leases | None, tag: str = "", **about: Any) -> Delivery:
    nothing: Any = None
    return Delivery(id="a", request=nothing, trace=nothing, acknowledge=nothing, leases=leases, tag=tag, **about)


MESSAGE = '{"id": "task-1", "pipeline": "q"}'
QUEUED = record.QUEUED_HEAD + ' "result": null}'


@pytest.mark.parametrize(
    ("message", "stored", "is_new"),
    [
        (MESSAGE, None, True),
        (MESSAGE, QUEUED, True),
        (MESSAGE, '{"status": "QUEUED"}', True),
        (MESSAGE, record.STARTED_HEAD + "}", False),
        (MESSAGE, '{"status": "REVOKED"}', False),
        (MESSAGE, "no record", False),
        (MESSAGE, ["a list"], False),
        (MESSAGE, QUEUED + " " * record.OPEN_MAX_BYTES, False),
        (" " + MESSAGE, None, False),  # it went back on its list
        ('{"pipeline": "q"}', None, False),  # no id
        (r'{"id": "task-\u0031", "pipeline": "q"}', None, False),  # which would have to be decoded
    ],
)
def test_a_message_is_new_if_nobody_had_it_and_its_task_waits(
    db: redis.Redis, leases: Leases, message: str, stored: Any, is_new: bool
) -> None:
    leases.sees_records = True
    key = keys.record_key("task-1")
    if isinstance(stored, list):
        db.rpush(key, *stored)
    elif stored is not None:
        db.set(key, stored, ex=1000)
    before = db.dump(key), db.pexpiretime(key)
    db.lpush("q", message)
    one = reserved_one(leases)
    assert leases.is_new(one.tag) is is_new
    assert (db.dump(key), db.pexpiretime(key)) == before, "nothing is changed"


@pytest.mark.parametrize("sees_records", [True, False])
def test_of_many_messages_and_elsewhere_nobody_looks(db: redis.Redis, leases: Leases, sees_records: bool) -> None:
    leases.sees_records = sees_records
    many = 100 if sees_records else 1
    db.lpush("q", *(f'{{"id": "task-{at}", "pipeline": "q"}}' for at in range(many)))
    asked = wanted("q", many)
    _, (number, *rest) = leases.reserve_command([asked])
    found = taken(leases._reserve(keys=rest[:number], args=rest[number:]), [asked]).messages
    assert [one.is_new for one in found] == [False] * many


@pytest.mark.parametrize(
    ("about", "must_be_known"),
    [({}, False), ({"retries": 1}, True), ({"past_attempts": 1}, True), ({"put_off": 1}, True), ({"rows": 1}, True)],
)
def test_only_what_was_new_a_moment_ago_runs_before_it_is_marked(
    db: redis.Redis, leases: Leases, monkeypatch: pytest.MonkeyPatch, about: dict[str, int], must_be_known: bool
) -> None:
    monkeypatch.setattr("pipeq_worker.delivery.delivery.KNOWN_S", 60)
    leases.sees_records = True
    db.lpush("q", MESSAGE)
    tag = reserved_one(leases).tag
    assert delivery_of(leases, tag, **about).must_be_known() is must_be_known
    assert delivery_of(leases, tag, **about, arrived=time.monotonic() - 61).must_be_known()
    assert delivery_of(None).must_be_known(), "another transport delivered it"


def test_redis_reports_no_change_of_a_record_that_was_looked_at(db: redis.Redis, url: str, leases: Leases) -> None:
    """Otherwise each end of a task would wake the thread that takes messages."""
    leases.sees_records = True
    about = redis.Redis.from_url(url).connection_pool.connection_kwargs
    line = Line(lambda: RedisConnection(host=about["host"], port=about["port"], protocol=2))
    asked = [wanted("q")]
    db.set(keys.record_key("task-1"), QUEUED)
    db.lpush("q", MESSAGE)
    (one,) = taken(line.call(*leases.reserve_command(asked)), asked).messages
    assert one.is_new
    line.rung()
    db.set(keys.record_key("task-1"), "changed")
    time.sleep(0.2)
    assert not line.rung()
    db.lpush("q", MESSAGE)
    until(line.rung)  # but it reports new messages
    line.close()
