"""The stream of state changes: who writes it, what a reader sees, and what it is told when it was too slow."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis
from click.testing import CliRunner
from pipeq import Client, Event, EventsTrimmedError, PipeqError, State
from pipeq.cli import main
from pipeq.contract import events as contract
from pipeq.contract import keys
from pipeq.events import WAIT_S

from tests import both_clients
from tests.proxy import Proxy
from tests.waiting import until, within

PIPELINE = "text-classification"


@pytest.fixture(params=both_clients.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def db(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as db:
        db.flushdb()
        yield db


def submit(client: Client, count: int = 1) -> list[str]:
    return client.submit_many(PIPELINE, range(count), check=False)


def all_of(client: Client, after: str = "0") -> list[Event]:
    return list(client.events(after, timeout_s=0))


def test_it_is_off_until_it_is_switched_on(db: redis.Redis, client: Client) -> None:
    for task in submit(client, 3):
        client.cancel(task)
    client.purge(PIPELINE)
    assert not db.exists(keys.EVENTS)
    assert client.keep_events() == 0
    with pytest.raises(PipeqError, match="events_off: nobody has switched the stream of events on"):
        next(client.events("0"))
    assert client.keep_events(50) == 50
    assert client.keep_events() == 50
    assert all_of(client) == []
    assert client.keep_events(0) == 0
    assert not db.exists(keys.EVENTS, keys.EVENTS_MAX)


def test_a_client_tells_of_submits_and_cancels(client: Client, valkey_url: str) -> None:
    client.keep_events(1000)
    with Client(valkey_url) as other:
        first, second = submit(other, 2)
        named = other.submit(PIPELINE, 1, task_id="mine", check=False)
        assert other.submit(PIPELINE, 1, task_id="mine", check=False) == named
        late = other.submit(PIPELINE, 1, delay_s=60, check=False)
        other.cancel(first)
        other.cancel(first)
        other.cancel("nobody knows it")
        other.cancel("forced", force=True)
        client.purge(PIPELINE)
    found = [(one.task_id, one.state, one.pipeline, one.code) for one in all_of(client)]
    assert found[:6] == [
        (first, State.QUEUED, PIPELINE, None),
        (second, State.QUEUED, PIPELINE, None),
        (named, State.QUEUED, PIPELINE, None),
        (late, State.QUEUED, PIPELINE, None),
        (first, State.CANCELLED, PIPELINE, None),
        ("forced", State.CANCELLED, None, None),
    ]
    assert sorted(found[6:]) == sorted((one, State.CANCELLED, PIPELINE, "purged") for one in (second, named, late))
    at = [one.at for one in all_of(client)]
    assert at == sorted(at)
    assert abs(at[-1] - time.time()) < 60


def test_a_client_learns_of_the_switch_with_its_next_submit(client: Client, db: redis.Redis, valkey_url: str) -> None:
    with Client(valkey_url) as other:
        submit(other)
        client.keep_events(1000)
        submit(other)  # which still knew nothing of it
        (task,) = submit(other)
        assert [one.task_id for one in all_of(client)] == [task]
        client.keep_events(0)
        submit(other)
        assert not db.exists(keys.EVENTS)
        submit(other)
        with pytest.raises(PipeqError, match="events_off"):
            all_of(client)


def test_a_reader_goes_on_after_an_id(client: Client) -> None:
    client.keep_events(100_000)
    submit(client, 1200)
    found = all_of(client)
    assert len(found) == len({one.id for one in found}) >= 700
    assert all_of(client, found[600].id) == found[601:]
    assert all_of(client, found[-1].id) == []


def test_a_reader_chooses(client: Client) -> None:
    client.keep_events(1000)
    submit(client)
    mine = client.submit("another", 1, check=False)
    task = client.submit(PIPELINE, 1, check=False)
    client.cancel(task)
    assert [one.task_id for one in client.events("0", pipelines=["another"], timeout_s=0)] == [mine]
    assert [one.task_id for one in client.events("0", states=["cancelled"], timeout_s=0)] == [task]
    assert [one.task_id for one in client.events("0", states=[State.CANCELLED], timeout_s=0)] == [task]
    for wrong in ({"states": ["gone"]}, {"pipelines": ["pipeq:x"]}, {"after": "x"}, {"timeout_s": -1}):
        with pytest.raises(PipeqError):
            client.events(**wrong)


def test_what_happens_from_now_on_arrives_at_once(client: Client, db: redis.Redis) -> None:
    client.keep_events(1000)
    submit(client, 5)
    found: list[tuple[str, float]] = []

    def read() -> None:
        for one in client.events(timeout_s=20):
            found.append((one.task_id, time.time() - one.at))
            if len(found) == 3:
                return

    def blocked() -> set[str]:
        return {one["id"] for one in db.client_list() if "b" in one["flags"]}

    reader, before = threading.Thread(target=read), blocked()
    reader.start()
    until(lambda: blocked() - before)  # it waits in XREAD
    with within(2):
        tasks = submit(client, 3)
        reader.join(20)
    assert [task for task, _ in found] == tasks
    assert max(late for _, late in found) < WAIT_S
    with within(10):
        assert list(client.events(timeout_s=0.3)) == []


def test_a_slow_reader_is_told_how_many_it_missed(client: Client, db: redis.Redis) -> None:
    client.keep_events(500)
    submit(client, 10)
    reader = client.events("0", timeout_s=0)
    first = [next(reader) for _ in range(10)]
    for _ in range(6):
        submit(client, 500)
    assert db.xlen(keys.EVENTS) < 1000
    with pytest.raises(EventsTrimmedError, match=r"\d+ events? after|events after") as caught:
        list(reader)
    assert caught.value.code == "events_trimmed"
    # Also one that comes later with the id of the last event that it has read.
    with pytest.raises(EventsTrimmedError):
        all_of(client, first[-1].id)
    # What is left can be read by those who ask for no event that is gone.
    oldest = db.xrange(keys.EVENTS, count=1)[0][0].decode()
    assert len(all_of(client, oldest)) == db.xlen(keys.EVENTS) - 1


def test_a_reader_that_was_at_the_end_knows_the_number(client: Client, db: redis.Redis) -> None:
    client.keep_events(100)
    submit(client, 10)
    reader = iter(client.events("0", timeout_s=5))
    for _ in range(10):
        next(reader)
    threading.Timer(0.3, lambda: submit(client, 1)).start()
    next(reader)  # it was at the end before
    for _ in range(4):
        submit(client, 500)
    gone = 2011 - db.xlen(keys.EVENTS)
    with pytest.raises(EventsTrimmedError, match=f"^events_trimmed: {gone - 11} events after"):
        next(reader)


def test_a_stream_that_was_begun_anew_is_a_gap(client: Client) -> None:
    client.keep_events(1000)
    submit(client, 5)
    reader = client.events("0", timeout_s=5)
    for _ in range(5):
        next(reader)
    client.keep_events(0)
    client.keep_events(1000)
    later = threading.Timer(0.3, lambda: submit(client, 1))
    later.start()
    with pytest.raises(EventsTrimmedError):
        next(reader)
    later.join()


def test_what_others_wrote_is_passed_over(client: Client, db: redis.Redis) -> None:
    client.keep_events(1000)
    for fields in (
        {"x": "y"},
        {"task_id": "a", "state": "gone"},
        {"task_id": "", "state": "queued"},
        {"state": "failed"},
    ):
        db.xadd(keys.EVENTS, fields)
    db.xadd(keys.EVENTS, {"task_id": "a", "state": "failed", "attempt": "9" * 50, "worker": "w" * 9000})
    (one,) = all_of(client)
    assert (one.task_id, one.attempt, len(one.worker or "")) == ("a", None, 2000)


@pytest.mark.parametrize("value", ["x", "-5", "0", "1e9", "", "9" * 30])
def test_a_switch_that_is_no_number_is_off(client: Client, db: redis.Redis, value: str) -> None:
    db.set(keys.EVENTS_MAX, value)
    submit(client)
    assert contract.kept_of(value) == 0
    with pytest.raises(PipeqError, match="events_off"):
        all_of(client)


def test_a_key_of_another_type_stops_nothing(client: Client, db: redis.Redis) -> None:
    client.keep_events(1000)
    db.set(keys.EVENTS, "a text")
    task, other = submit(client, 2)
    assert client.cancel(task).state is State.CANCELLED
    assert client.status(other).state is State.QUEUED
    with pytest.raises(PipeqError, match="redis_unavailable"):
        all_of(client)
    db.delete(keys.EVENTS_MAX)
    db.lpush(keys.EVENTS_MAX, "x")
    submit(client)
    with pytest.raises(PipeqError, match="redis_unavailable"):
        all_of(client)


def test_a_reader_outlives_a_broken_connection(valkey_url: str, client: Client) -> None:
    client.keep_events(1000)
    host = urlsplit(valkey_url)
    with (
        contextlib.closing(Proxy(host.port or 0)) as proxy,
        Client(valkey_url.replace(str(host.port), str(proxy.port), 1)) as far,
    ):
        found: list[str] = []

        def read() -> None:
            for one in far.events("0", timeout_s=60):
                found.append(one.task_id)
                if len(found) == 4:
                    return

        reader = threading.Thread(target=read)
        reader.start()
        tasks = submit(client, 2)
        until(lambda: len(found) == 2)
        proxy.cut()
        tasks += submit(client, 2)
        reader.join(90)
        assert found == tasks


def test_an_old_redis_shows_a_gap_too(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without the number of entries added."""
    from pipeq import events

    whole = events._Stream.of

    def without_numbers(reply: object) -> events._Stream:
        found = whole(reply)
        return events._Stream(found.newest, found.oldest, None, None)

    monkeypatch.setattr(events._Stream, "of", without_numbers)
    client.keep_events(200)
    submit(client, 3)
    found = all_of(client)
    assert len(found) == 3
    assert all_of(client, found[0].id) == found[1:]
    for _ in range(3):
        submit(client, 500)
    with pytest.raises(EventsTrimmedError):
        all_of(client, found[0].id)


def test_the_command(client: Client, valkey_url: str) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["events", *arguments, "--redis-url", valkey_url])
        return done.exit_code, done.output

    code, said = run()
    assert code == 6
    assert "events_off" in said
    assert run("--keep", "1000") == (0, "about 1000 events are kept\n")
    first, second = submit(client, 2)
    client.cancel(first)
    code, said = run("--json")
    lines = [json.loads(line) for line in said.splitlines()]
    assert [(one["task_id"], one["state"]) for one in lines] == [
        (first, "queued"), (second, "queued"), (first, "cancelled")
    ]  # fmt: skip
    code, said = run("--state", "cancelled")
    assert said.split()[3:] == [first, "cancelled", PIPELINE]
    assert run("--after", lines[-1]["id"]) == (0, "")
    assert run("--after", "x")[0] == 6
    assert run("--keep", "5", "--off")[0] == 2
    assert run("--off") == (0, "the stream of events is off\n")
