"""Scripts that are called on a thread's own connection, on a real Valkey."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
import redis
from pipeq.contract.redis_url import connect
from pipeq.demo import embedded
from pipeq_worker.leases.direct import Direct

from tests.waiting import until

ECHO = "return {KEYS[1], ARGV[1]}"


@pytest.fixture
def url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url


@pytest.fixture
def db(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector may not run for minutes."""
    gc.disable()
    yield
    gc.enable()


def connections(db: redis.Redis) -> list[str]:
    """The ids of those that are named ``script``."""
    return [one["id"] for one in db.client_list() if one["name"] == "script"]


def test_it_is_loaded_and_loaded_again(url: str, db: redis.Redis) -> None:
    script = Direct(connect(url), ECHO)
    assert script(keys=["a"], args=[1]) == [b"a", b"1"]
    db.script_flush()
    assert script(keys=["a"], args=["ü"]) == [b"a", "ü".encode()]


def test_a_broken_connection_is_made_again(url: str, db: redis.Redis) -> None:
    script = Direct(connect(url, retries=3), ECHO)
    for at in range(3):
        assert script(keys=["a"], args=[at]) == [b"a", str(at).encode()]
        db.client_kill_filter(_type="normal", skipme=True)


def test_an_error_of_the_script_leaves_the_connection_as_it_was(url: str, db: redis.Redis) -> None:
    script = Direct(connect(f"{url}?client_name=script"), "return redis.call(ARGV[1], KEYS[1])")
    db.set("text", "a")
    assert script(keys=["text"], args=["GET"]) == b"a"
    (before,) = connections(db)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        script(keys=["text"], args=["LLEN"])
    assert script(keys=["text"], args=["GET"]) == b"a"
    assert connections(db) == [before]


def test_an_answer_that_comes_too_late_is_nobodys(url: str, db: redis.Redis) -> None:
    # An answer that is in time must come within that, on a busy machine too.
    script = Direct(connect(url, retries=0, timeout_s=1), ECHO)
    assert script(keys=["a"], args=[1]) == [b"a", b"1"]
    db.client_pause(60_000, all=False)  # of scripts, and not of the command that ends it
    with pytest.raises(redis.TimeoutError):
        script(keys=["a"], args=["late"])
    db.client_unpause()
    assert script(keys=["a"], args=[2]) == [b"a", b"2"]


def test_each_thread_has_its_connection(url: str, db: redis.Redis) -> None:
    script = Direct(connect(url), "return redis.call('INCR', KEYS[1])")
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.extend(script(keys=["n"], args=[]) for _ in range(50))) for _ in range(4)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(found) == list(range(1, 201))


@pytest.mark.parametrize("ends", ["thread", "script"])
def test_a_connection_ends_with_its_thread_and_with_its_script(
    url: str, db: redis.Redis, no_collector: None, ends: str
) -> None:
    script = Direct(connect(f"{url}?client_name=script"), ECHO)
    if ends == "thread":
        thread = threading.Thread(target=script, kwargs={"keys": ["a"], "args": [1]})
        thread.start()
        thread.join()
    else:
        script(keys=["a"], args=[1])
        assert len(connections(db)) == 1
        del script
    until(lambda: not connections(db))


def test_without_redis_it_raises_as_a_client_does(url: str, db: redis.Redis) -> None:
    script = Direct(connect("redis://localhost:1", retries=0), ECHO)
    with pytest.raises(redis.ConnectionError):
        script(keys=["a"], args=[1])
