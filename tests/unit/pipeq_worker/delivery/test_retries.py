"""Whether a task that failed is tried again, when, and what counts among its tries."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from pipeq.contract import keys
from pipeq.contract.errors import Blame, PipeqError
from pipeq_worker.delivery.backend import Retry
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.retries import HAND_ON_MAX_S, Retries
from pipeq_worker.settings.read import Settings

NAME = "it"
ME = "pipeq-1@here"


def nobody(*_: object) -> None:
    raise AssertionError("no message is refused here")


@pytest.fixture
def db(valkey_url: str) -> redis.Redis:
    client = redis.Redis.from_url(valkey_url)
    client.flushdb()
    return client


def failed(blame: Blame, *, retryable: bool = True, **more: Any) -> Delivery:
    message = SimpleNamespace(_raw={"body": "", "headers": {"id": "t"}, "properties": {"priority": 3}})
    request: Any = SimpleNamespace(message=message, hostname=ME)
    pipeline: Any = SimpleNamespace(name=NAME)
    found = Delivery(id="t", request=request, trace=dict, acknowledge=nobody, pipeline=pipeline, **more)
    found.error = PipeqError("input_unavailable", "s3://b/a: away", retryable)
    found.error.blame = blame
    return found


def headers_of(retry: Retry | None) -> dict[str, Any]:
    assert retry is not None
    headers: dict[str, Any] = json.loads(json.loads(retry.message)["message"])["headers"]
    return headers


def retries(db: redis.Redis, **settings: Any) -> Retries:
    return Retries(db, Settings(**settings), nobody, ME)


def test_full_jitter(db: redis.Redis) -> None:
    one = retries(db, retry_backoff_s=2, retry_backoff_max_s=300)
    for number, longest_s in ((0, 2), (1, 4), (5, 64), (20, 300), (10_000_000, 300)):
        delays = [one.delay_s(number) for _ in range(2000)]
        assert 0 <= min(delays) < 0.05 * longest_s
        assert 0.95 * longest_s < max(delays) <= longest_s
        assert abs(sum(delays) / len(delays) - longest_s / 2) < 0.05 * longest_s


def test_a_try_that_counts_and_its_bound(db: redis.Redis) -> None:
    one = retries(db, max_attempts=3)
    task = failed(Blame.TASK)
    headers = headers_of(one.decide(task))
    assert (headers["retries"], headers[keys.PUT_OFF_HEADER], task.counts, task.attempts) == (1, 0, True, 1)
    # Rounded, perhaps up.
    assert time.time() - 5 < headers[keys.RETRYING_SINCE_HEADER] <= time.time() + 0.01
    assert one.decide(failed(Blame.TASK, retries=1)) is not None
    assert one.decide(failed(Blame.TASK, retries=2)) is None
    assert one.decide(failed(Blame.TASK, retryable=False)) is None


@pytest.mark.parametrize("blame", [Blame.WORKER, Blame.NOT_TRIED])
def test_what_is_not_the_tasks_fault_does_not_count(db: redis.Redis, blame: Blame) -> None:
    one = retries(db, max_attempts=1)
    task = failed(blame, retryable=False, retries=7, put_off=40, past_attempts=2)
    headers = headers_of(one.decide(task))
    assert (headers["retries"], headers[keys.PUT_OFF_HEADER]) == (7, 41)
    assert (task.counts, task.attempts) == (False, 9)


def test_for_another_worker_it_waits_no_longer_than_half_a_minute(db: redis.Redis) -> None:
    one = retries(db)
    for blame, longest_s in ((Blame.WORKER, HAND_ON_MAX_S), (Blame.NOT_TRIED, 300)):
        found = [one.decide(failed(blame, put_off=30)) for _ in range(300)]
        delays = [retry.due - time.time() for retry in found if retry is not None]
        assert 0.8 * longest_s < max(delays) <= longest_s


@pytest.mark.parametrize("blame", list(Blame))
def test_the_age_ends_every_kind(db: redis.Redis, blame: Blame) -> None:
    db.zadd(keys.workers_key(NAME), {"pipeq-2@there": time.time()})
    one = retries(db, max_retry_age_s=60)
    assert one.decide(failed(blame, retrying_since=time.time() - 50)) is not None
    old = failed(blame, retrying_since=time.time() - 61)
    assert one.decide(old) is None
    assert old.error is not None
    assert ("given up" in old.error.message) == (blame is not Blame.TASK)
    assert old.error.code == "input_unavailable"
    # A clock that is ahead elsewhere does not make a task older than it is.
    assert one.decide(failed(blame, retrying_since=time.time() + 1e6)) is not None


def test_a_place_that_is_refused_is_tried_by_every_live_worker_once(db: redis.Redis) -> None:
    one = retries(db)
    now = time.time()
    db.zadd(keys.workers_key(NAME), {ME: now, "pipeq-2@there": now, "pipeq-3@dead": now - 2 * keys.WORKER_TTL_S})
    headers = headers_of(one.decide(failed(Blame.EITHER, retryable=False)))
    assert headers[keys.REFUSED_BY_HEADER] == [ME]
    # The same worker once more: the other one still has to try it.
    assert headers_of(one.decide(failed(Blame.EITHER, refused_by=(ME,))))[keys.REFUSED_BY_HEADER] == [ME]
    last = failed(Blame.EITHER, refused_by=("pipeq-2@there",))
    assert one.decide(last) is None
    assert last.counts
    many = tuple(f"pipeq-{number}@gone" for number in range(keys.REFUSED_BY_MAX))
    assert one.decide(failed(Blame.EITHER, refused_by=many)) is None


def test_a_worker_alone_refuses_for_good(db: redis.Redis) -> None:
    db.zadd(keys.workers_key(NAME), {ME: time.time()})
    assert retries(db).decide(failed(Blame.EITHER, retryable=False)) is None
