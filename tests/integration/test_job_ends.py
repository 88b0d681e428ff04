"""Every way in which a pack can end: its rows count in its job, once, with the code of that end, and the job ends.

Real hosts (tests/host.py) against a real Valkey, without a device: what ends a pack here is what ends any task.
"""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.worker import state as celery_state
from pipeq import Client
from pipeq.contract import events, job, keys, record
from pipeq.contract.errors import PipeqError, RedisUnavailableError
from pipeq.contract.job import JobState
from pipeq.demo import embedded
from pipeq_worker.children.protocol import PackEnd

from tests.host import Host
from tests.packs import PacksOf
from tests.proxy import proxy
from tests.waiting import until, within

PIPELINE = "it"
AWAY = PipeqError("input_unavailable", "the store is away", True)


@dataclass
class Story:
    """A job of two packs, of three rows and of one; the first one is the one that ends."""

    client: Client
    db: redis.Redis
    host: Host
    packs: PacksOf
    first: str

    @property
    def list(self) -> str:
        return keys.list_key(PIPELINE)

    def take(self) -> Any:
        """Takes the first pack."""
        self.host.take()
        return next((one for one in self.host.hands.tasks if one.id == self.first), None)

    def begin(self) -> Any:
        one = self.take()
        self.host.hands.begin(one)
        return one

    def fail(self, one: Any, error: PipeqError) -> None:
        one.fail(error)
        self.host.hands.end(one)

    def change(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Changes the first pack's message where it waits."""
        raw = self.db.rpop(self.list)
        assert isinstance(raw, bytes)
        message = json.loads(raw)
        change(message)
        self.db.rpush(self.list, json.dumps(message))

    def change_body(self, **fields: Any) -> None:
        def change(message: dict[str, Any]) -> None:
            body = json.loads(base64.b64decode(message["body"]))
            body[1] = {name: value for name, value in {**body[1], **fields}.items() if value is not None}
            message["body"] = base64.b64encode(json.dumps(body).encode()).decode()

        self.change(change)


@pytest.fixture
def db(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as db:
        db.flushdb()
        yield db


@pytest.fixture
def story(db: redis.Redis, valkey_url: str, client: Client) -> Iterator[Story]:
    host = Host(valkey_url, PIPELINE, retry_backoff_s=1000, max_attempts=3)
    packs = PacksOf(valkey_url, "nightly")
    packs.put(PIPELINE, ["a", "b", "c"], ["d"])
    packs.seal()
    yield Story(client, db, host, packs, "nightly-0")
    host.stop()


# -- the ends ---------------------------------------------------------------------------------------------------------


def fails(story: Story) -> str:
    story.fail(story.begin(), PipeqError("internal", "wrong"))
    return "internal"


def fails_before_it_begins(story: Story) -> str:
    story.fail(story.take(), PipeqError("invalid_params", "wrong"))
    return "invalid_params"


def is_given_up_after_tries(story: Story) -> str:
    other = story.db.lpop(story.list)
    assert isinstance(other, bytes)
    for _ in range(3):
        story.fail(story.begin(), AWAY)
        if members := story.db.zrange(keys.waiting_key(PIPELINE), 0, -1):
            story.db.zadd(keys.waiting_key(PIPELINE), dict.fromkeys(members, 1))
        story.host.move_due()
    story.db.lpush(story.list, other)
    return "input_unavailable"


def its_hosts_die(story: Story) -> str:
    one = story.host.leases.reserve_one(story.host.channel._wanted(PIPELINE, 1))
    story.host.channel._give_up(one, 3)
    return "worker_lost"


def is_no_frame(story: Story) -> str:
    story.db.rpop(story.list)
    story.db.rpush(story.list, '{"headers": {"id": "nightly-0"}, "body": "broken')
    story.host.take()
    return "invalid_message"


def has_a_body_that_cannot_be_read(story: Story) -> str:
    story.change(lambda message: message.update(body="!!!"))
    story.host.take()
    return "invalid_message"


def is_for_another_task(story: Story) -> str:
    story.change(lambda message: message["headers"].update(task="another"))
    story.host.take()
    return "invalid_message"


def has_rows_that_are_no_list(story: Story) -> str:
    story.change_body(rows={"a": 1})
    story.host.take()
    return "invalid_message"


def has_no_job(story: Story) -> str:
    story.change_body(job=None)
    story.host.take()
    return "invalid_message"


def says_that_it_is_another_pack(story: Story) -> str:
    story.change_body(job={"id": "nightly", "pack": 1})
    story.fail(story.begin(), PipeqError("inference_failed", "wrong"))
    return "inference_failed"


def has_fewer_rows_than_its_producer_said(story: Story) -> str:
    story.change_body(rows=[{"inputs": "a"}])
    story.fail(story.begin(), PipeqError("inference_failed", "wrong"))
    return "invalid_message"


def is_for_another_pipeline(story: Story) -> str:
    story.change_body(pipeline="another")
    story.host.take()
    return "invalid_message"


def has_expired_when_it_arrives(story: Story) -> str:
    story.change(lambda message: message["headers"].update(expires="2020-01-01T00:00:00+00:00"))
    story.host.take()
    return "expired"


def expires_before_it_begins(story: Story) -> str:
    at = datetime.fromtimestamp(time.time() + 3600, UTC).isoformat()
    story.change(lambda message: message["headers"].update(expires=at))
    one = story.take()
    # Not a time that is over soon: on a busy machine it may be over before the message is taken.
    one.request.expires -= timedelta(seconds=3601)
    one.expiry -= 3601
    story.host.hands.begin(one)
    return "expired"


def is_revoked_by_celery(story: Story) -> str:
    celery_state.revoked.add(story.first)
    try:
        story.host.take()
    finally:
        celery_state.revoked.discard(story.first)
    return "cancelled"


def is_cancelled(story: Story) -> str:
    assert story.client.cancel(story.first).state == "cancelled"
    story.host.take()
    return "cancelled"


def is_cancelled_while_it_runs(story: Story) -> str:
    one = story.begin()
    story.client.cancel(story.first)
    story.fail(one, PipeqError("internal", "too late"))
    return "cancelled"


def its_pipeline_is_cancelled(story: Story) -> str:
    story.client.cancel_pipeline(PIPELINE)
    return "cancelled"


def is_purged(story: Story) -> str:
    story.client.purge(PIPELINE)
    return "purged"


def is_purged_while_it_waits_for_its_next_try(story: Story) -> str:
    story.fail(story.begin(), AWAY)
    story.client.purge(PIPELINE)
    return "purged"


def waits_in_a_form_that_nobody_wrote(story: Story) -> str:
    raw = story.db.rpop(story.list)
    assert isinstance(raw, bytes)
    story.db.zadd(keys.waiting_key(PIPELINE), {json.dumps({"list": "another", "message": raw.decode()}): 1})
    story.host.move_due()
    return "invalid_message"


def its_job_is_cancelled(story: Story) -> str:
    story.client.jobs.cancel("nightly")
    return "cancelled"


ENDS = (
    fails, fails_before_it_begins, is_given_up_after_tries, its_hosts_die, is_no_frame, has_a_body_that_cannot_be_read,
    is_for_another_task, has_rows_that_are_no_list, has_no_job, says_that_it_is_another_pack,
    has_fewer_rows_than_its_producer_said, is_for_another_pipeline, has_expired_when_it_arrives,
    expires_before_it_begins, is_revoked_by_celery, is_cancelled, is_cancelled_while_it_runs, its_pipeline_is_cancelled,
    is_purged, is_purged_while_it_waits_for_its_next_try, waits_in_a_form_that_nobody_wrote, its_job_is_cancelled,
)  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_each_end_of_a_pack_counts_its_rows_once_and_the_job_ends(story: Story, end: Callable[[Story], str]) -> None:
    code = end(story)
    status = story.packs.status
    assert status.codes.get(code) in (3, 4), (status, story.packs.outcomes())
    outcomes = story.packs.outcomes()
    assert [(one["line"], one["custom_id"], one["error"]["code"]) for one in outcomes[:3]] == [
        (at, f"row-{at}", code) for at in (1, 2, 3)
    ]
    # Whatever comes once more: the message, a cancel, a purge of what is left.
    story.client.cancel(story.first)
    if status.failed == 3:
        assert story.db.hkeys(job.open_key("nightly")) == [b"1"]
        story.client.cancel("nightly-1")
    status = story.client.jobs.status("nightly")
    assert (status.failed, status.succeeded, sum(status.codes.values())) == (4, 0, 4)
    assert status.state.is_final
    assert not story.db.exists(job.open_key("nightly"), job.OPEN)
    assert len(story.packs.outcomes()) == 4


def ends_by_its_workers(story: Story) -> None:
    for _ in range(2):
        story.host.take()
    for one in list(story.host.hands.tasks):
        story.fail(one, PipeqError("inference_failed", "no", False))


def is_cancelled_by_a_client(story: Story) -> None:
    story.client.jobs.cancel("nightly")


@pytest.mark.parametrize("may_hear", [True, False])
@pytest.mark.parametrize("end", [ends_by_its_workers, is_cancelled_by_a_client])
def test_who_waits_is_woken_by_the_end_of_a_job(
    story: Story, valkey_url: str, monkeypatch: pytest.MonkeyPatch, end: Callable[[Story], None], may_hear: bool
) -> None:
    """A user without the right to hear it finds out at its next look."""
    look_s = 20.0 if may_hear else 0.5
    monkeypatch.setattr("pipeq.jobs.watching.LOOK_S", look_s)
    monkeypatch.setattr("pipeq.jobs.watching.MOST_LOOK_S", look_s)
    channels = {"channels": ["pipeq:job:*"]} if may_hear else {"reset_channels": True}
    story.db.acl_setuser("waits", enabled=True, nopass=True, categories=["+@all"], keys=["*"], **channels)
    looks = list[Any]()
    with (
        ThreadPoolExecutor(1) as pool,
        Client(valkey_url.replace("//", "//waits:x@")) as other,
    ):
        waits = pool.submit(other.jobs.wait, "nightly", 30, progress=looks.append)
        until(lambda: looks)
        with within(10):
            end(story)
            status = waits.result(30)
    story.db.acl_deluser("waits")
    assert status.state.is_final
    assert status.failed == 4
    assert len(looks) == 2 or not may_hear


def answers(db: redis.Redis) -> bool:
    """Whether Redis has been started."""
    with suppress(redis.RedisError):
        return bool(db.ping())
    return False


def test_a_wait_outlives_a_restart_of_redis(tmp_path: Path) -> None:
    (port,) = embedded.free_ports(1)
    options = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", str(tmp_path)]
    command = [str(embedded._valkey_program()), "--port", str(port), "--bind", "127.0.0.1", *options]
    url, looks = f"redis://127.0.0.1:{port}/0", list[Any]()

    def started() -> subprocess.Popen[bytes]:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with redis.Redis.from_url(url) as db:
            until(lambda: answers(db))
        return server

    server = started()
    try:
        with Client(url) as client, ThreadPoolExecutor(1) as pool:
            job_id = client.jobs.submit(PIPELINE, ["a", "b"], check=False)
            waits = pool.submit(client.jobs.wait, job_id, progress=looks.append)
            until(lambda: looks)
            server.kill()
            server.wait()
            time.sleep(1.5)
            assert not waits.done(), waits.exception()
            server = started()
            client.jobs.cancel(job_id)
            assert waits.result(30).codes == {"cancelled": 2}
            other = client.jobs.submit(PIPELINE, ["a"], check=False)
            looks.clear()
            waits = pool.submit(client.jobs.wait, other, 2, progress=looks.append)
            until(lambda: looks)
            server.kill()
            server.wait()
            with pytest.raises(RedisUnavailableError):
                waits.result(30)
            # One that is not there when a wait begins has a few seconds.
            with pytest.raises(RedisUnavailableError):
                client.jobs.wait(other)
    finally:
        server.kill()
        server.wait()


def test_a_row_that_goes_alone_ends_alone_and_is_reached_by_a_cancel_of_its_job(story: Story) -> None:
    one = story.begin()
    one.pack_end = PackEnd(1, {}, [], b"[]", {}, None, [1, 2], 0.0)
    one.result_json = json.dumps([{"row": 0, "line": 1, "custom_id": "row-1", "result": "A"}]).encode()
    story.host.hands.end(one)
    assert sorted(story.db.hkeys(job.open_key("nightly"))) == [b"0.1", b"0.2", b"1"]
    assert story.packs.status.done == 1
    story.client.cancel("nightly-0.2")  # has no record before it begins: nobody knows it
    found = story.client.jobs.cancel("nightly")
    assert (found.state, found.succeeded, found.codes) == (JobState.CANCELLED, 1, {"cancelled": 3})
    assert story.packs.brief() == ["A", "cancelled", "cancelled", "cancelled"]
    story.host.take(5)
    story.host.move_due()
    story.host.take(5)
    assert story.client.jobs.status("nightly").done == 4


def test_a_row_that_goes_alone_takes_all_along_that_it_needs(db: redis.Redis, valkey_url: str, client: Client) -> None:
    host = Host(valkey_url, PIPELINE)
    output = "file:///results/{custom_id}-{id}.json"
    rows = [{"inputs": "a", "custom_id": "x", "params": {"k": 1}}, {"inputs": "b", "custom_id": "y"}]
    options: dict[str, Any] = {"params": {"k": 0, "m": 2}, "include_inputs": True, "output": output, "check": False}
    client.jobs.submit(PIPELINE, rows, job_id="nightly", **options)
    host.take()
    (one,) = host.hands.tasks
    host.hands.begin(one)
    one.pack_end = PackEnd(1, {}, [], b"[]", {}, None, [0], 0.0)
    one.result_json = json.dumps([{"row": 1, "line": 2, "custom_id": "y", "result": "B"}]).encode()
    host.hands.end(one)
    host.move_due()
    raw = db.rpop(keys.list_key(PIPELINE, keys.JOB_PRIORITY))
    assert isinstance(raw, bytes)
    assert json.loads(base64.b64decode(json.loads(raw)["body"]))[1] == {
        "pipeline": PIPELINE, "job": {"id": "nightly", "pack": 0, "row": 0}, "params": {"k": 0, "m": 2},
        "include_inputs": True,
        "rows": [{"inputs": "a", "params": {"k": 1}, "line": 1, "custom_id": "x",
            "output": "file:///results/x-nightly-line1.json"}],
    }  # fmt: skip
    host.stop()


def test_what_was_asked_of_a_pack_that_failed_as_a_whole_is_known_if_its_message_is(
    db: redis.Redis, valkey_url: str, client: Client
) -> None:
    host = Host(valkey_url, PIPELINE)
    for job_id in ("read", "cancelled"):
        client.jobs.submit(PIPELINE, ["a", "b"], job_id=job_id, include_inputs=True, check=False)
    host.take()
    one = next(one for one in host.hands.tasks if one.id == "read-0")
    host.hands.begin(one)
    one.fail(PipeqError("inference_failed", "no", False))
    host.hands.end(one)
    client.jobs.cancel("cancelled")
    assert [one.get("inputs") for one in client.jobs.results("read")] == ["a", "b"]
    assert [one.get("inputs") for one in client.jobs.results("cancelled")] == [None, None]
    host.stop()


def test_a_pipeline_that_is_forgotten_keeps_its_rows_until_they_are_purged(story: Story) -> None:
    story.host.beat()
    story.client.forget(PIPELINE, force=True)
    assert story.packs.status.done == 0
    story.client.purge(PIPELINE)
    assert story.client.jobs.status("nightly").codes == {"purged": 4}


def test_a_job_that_is_cancelled_gets_no_more_rows(story: Story, client: Client) -> None:
    """The producer of a job that somebody cancels stops, and a cancelled job stays so."""

    def rows() -> Iterator[str]:
        yield "a"
        client.jobs.cancel("other")
        while True:
            yield "b"

    assert client.jobs.submit(PIPELINE, rows(), job_id="other", pack_rows=1, check=False) == "other"
    status = client.jobs.status("other")
    assert status.state is JobState.CANCELLED
    assert status.done == status.submitted < 20


def test_workers_that_do_not_know_jobs_get_none(client: Client, db: redis.Redis, story: Story) -> None:
    db.hset(keys.PIPELINES, "older", '{"task": "constant"}')
    with pytest.raises(PipeqError, match=r"workers of 'older' have not said that they know jobs.*submit_many"):
        client.jobs.submit("older", ["a"])
    story.host.beat()
    assert client.jobs.submit(PIPELINE, ["a"], output="file:///somewhere/", job_id="known") == "known"


def test_a_job_is_whole_whichever_answer_is_lost(db: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
    """The client sends again what it got no answer to, or its user submits again what broke off."""
    for left in itertools.count():
        db.flushdb()
        with proxy(valkey_url) as (between, through), Client(through) as client:
            client.status("connects")
            between.answers_left = left

            def submit(client: Client = client) -> None:
                client.jobs.submit(
                    PIPELINE,
                    ["a", "b"],
                    check=False,
                    pack_rows=1,
                    job_id="mine",
                    results=f"file://{tmp_path}/out.jsonl",
                )

            try:
                submit()
            except RedisUnavailableError:
                between.answers_left = None
                submit()
            is_over = between.answers_left is not None
        status = client_status(db)
        assert (status.submitted, status.is_sealed, status.pipeline) == (2, True, PIPELINE), left
        assert status.results, left
        assert db.llen(keys.list_key(PIPELINE, 6)) == 2
        assert db.hlen(job.open_key("mine")) == 2
        assert db.zscore(job.JOBS, "mine") is not None
        assert db.sismember(job.OPEN, "mine")
        assert db.ttl(job.job_key("mine")) > 0
        if is_over:
            break


def client_status(db: redis.Redis) -> job.JobStatus:
    status = job.read("mine", db.hgetall(job.job_key("mine")))  # type: ignore[arg-type]
    assert status is not None
    return status


def cpu_s(db: redis.Redis) -> float:
    """For how long Redis has computed."""
    used = db.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def test_no_id_of_a_task_keeps_redis_busy_when_it_ends(db: redis.Redis) -> None:
    """Whether a task may be a pack is asked of its id, which any producer chooses: it took 15 ms for each of these."""
    script = db.register_script(
        record.LUA + events.LUA + job.lua() + "for _ = 1, 500 do pack_of(ARGV[1]) end return {pack_of(ARGV[1])}"
    )
    for task_id, found in {
        "a-" + "1" * 997 + "x": [],
        "a" * 1000: [],
        "-" * 1000: [],
        "1-" * 500: [],
        "job-12": [b"job", b"12"],
        "a-job-12.3": [b"a-job", b"12.3"],
        "job-1.2.3": [],
        "-1": [],
    }.items():
        began_s = cpu_s(db)
        assert script(args=[task_id]) == found
        assert cpu_s(db) - began_s < 1, task_id[:10]
