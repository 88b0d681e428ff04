"""The files of a job that a worker writes, and what else is left to do for a job that has nobody: a real Valkey.

Without a worker: the steps that a worker has done are taken here, and interrupted anywhere.
"""

from __future__ import annotations

import csv
import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis
from pipeq import Client
from pipeq.contract import job, keys
from pipeq.contract.errors import PipeqError, WaitTimeoutError
from pipeq.contract.job import JobState
from pipeq.demo.embedded import S3Server
from pipeq.jobs import files, keeping
from pipeq.jobs.kept import keep
from pipeq_worker.host.jobs import JobKeeper
from pipeq_worker.settings.read import Settings

from tests.host import Host
from tests.integration.test_fsspec_stores import lead
from tests.object_servers import object_server
from tests.waiting import until

PIPELINE = "it"
#: A place that no S3 server has.
NOWHERE = "s3://no such bucket/out.jsonl"


@pytest.fixture
def db(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as db:
        db.flushdb()
        yield db


@pytest.fixture
def keeper(db: redis.Redis, valkey_url: str, tmp_path: Path) -> Iterator[JobKeeper]:
    settings = Settings(redis_url=valkey_url, results={"allow": [f"file://{tmp_path}/"]}, pipelines={PIPELINE: {}})  # type: ignore[arg-type]
    keeper = JobKeeper(db, settings, {PIPELINE})
    yield keeper
    keeper.close()


def ended(client: Client, rows: int = 10, **options: Any) -> str:
    """A job whose rows have all ended."""
    inputs = [{"inputs": "x", "custom_id": f"c{at}"} for at in range(rows)]
    job_id = client.jobs.submit(PIPELINE, inputs, check=False, pack_rows=3, **options)
    client.purge(PIPELINE)
    return job_id


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keeps_until(keeper: JobKeeper, met: Callable[[], object]) -> None:
    """Does what a worker's thread does until something has come about."""

    def is_met() -> object:
        if (found := met()) or keeper._is_busy():
            return found
        keeper._look()
        return False

    until(is_met, every_s=0.05)


def until_it_is_final(client: Client, job_id: str, keeper: JobKeeper) -> Any:
    keeps_until(keeper, lambda: client.jobs.status(job_id).state.is_final)
    return client.jobs.status(job_id)


def due(keeper: JobKeeper, job_id: str) -> str | None:
    (seen,) = [one for one in keeper._jobs(job.OPEN) if one.id == job_id]
    return keeper._due(seen)


def test_a_worker_writes_the_files_and_the_job_ends(client: Client, keeper: JobKeeper, tmp_path: Path) -> None:
    out, errors = tmp_path / "was übrig ist.jsonl", tmp_path / "errors.csv"
    job_id = ended(client, results=out.as_uri(), errors=f"file://{errors}")
    assert client.jobs.status(job_id).state is JobState.FINALIZING
    assert not list(tmp_path.iterdir())
    assert until_it_is_final(client, job_id, keeper).state is JobState.COMPLETED
    assert out.read_text() == ""
    rows = list(csv.reader(errors.read_text().splitlines()))
    assert [row[:2] for row in rows] == [["line", "custom_id"], *([str(at + 1), f"c{at}"] for at in range(10))]
    assert set(tmp_path.iterdir()) == {errors, out}


def test_what_is_no_job_keeps_nobody_from_the_files_of_others(
    client: Client, db: redis.Redis, keeper: JobKeeper, tmp_path: Path
) -> None:
    """Producers can write into these sets. An id may be any text."""
    out = tmp_path / "out.jsonl"
    job_id = ended(client, results=f"file://{out}", job_id="--help \0 \U0001f98a")
    strange = [f"none-{at}" for at in range(500)]
    strange += ["text", "list", "ended", "long state", b"\xff\xfe", b"x" * 2**20, b""]
    db.set(job.job_key("text"), "x")
    db.rpush(job.job_key("list"), "x")
    db.set(job.open_key("ended"), "x")
    about = {"pipeline": PIPELINE, "last_at": "1", "results": out.as_uri()}
    for one, state in (("ended", "completed"), ("long state", "x" * 2**20), (b"\xff\xfe", "finalizing")):
        db.hset(b"pipeq:job:" + (one if isinstance(one, bytes) else one.encode()), mapping={**about, "state": state})
    for key in (job.OPEN, job.FINAL):
        db.sadd(key, *strange)
    until = time.monotonic() + 60
    while (status := client.jobs.status(job_id)).state is not JobState.COMPLETED or db.scard(job.OPEN):
        assert time.monotonic() < until, (status, db.scard(job.OPEN))
        if not keeper._is_busy():
            keeper._look_at_open_at = 0.0
            keeper._look()
    assert out.exists()
    while db.scard(job.FINAL):
        keeper._jobs(job.FINAL)


@pytest.mark.parametrize("key", [job.OPEN, job.FINAL])
def test_sets_of_jobs_that_are_something_else_are_no_outage(db: redis.Redis, keeper: JobKeeper, key: str) -> None:
    db.set(key, "x")
    keeper._look()


def test_a_worker_holds_no_field_that_is_longer_than_what_it_needs(db: redis.Redis, keeper: JobKeeper) -> None:
    about = {"state": "in_progress", "pipeline": PIPELINE, "results": "x" * 2**20, "more": "x" * 2**20}
    db.hset(job.job_key("it"), mapping=about)
    db.hset(job.open_key("it"), mapping={"0": "1:[]", "1": "1:[]"})
    db.sadd(job.OPEN, "it")
    (seen,) = keeper._jobs(job.OPEN)
    assert (seen.id, seen.packs) == ("it", 2)
    assert seen.fields == {b"state": b"in_progress", b"pipeline": PIPELINE.encode()}


@pytest.mark.parametrize("last", [True, False])
def test_whoever_dies_at_the_files_leaves_none_and_another_one_goes_on(
    client: Client, db: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    out = tmp_path / "out.jsonl"
    job_id = ended(client, results=f"file://{out}")
    calls = 0
    write = files.OutcomeFiles.write

    def dies(self: Any, outcomes: Any) -> None:
        nonlocal calls
        calls += 1
        write(self, outcomes)
        if calls == (4 if last else 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(files.OutcomeFiles, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        keep(client, "finalize", job_id)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    keep(client, "finalize", job_id)
    assert not out.exists(), "the one who died has the claim for some seconds"
    db.delete(job.claim_key(job_id))
    keep(client, "finalize", job_id)
    assert [one["line"] for one in lines(out)] == list(range(1, 11))
    assert client.jobs.status(job_id).state is JobState.COMPLETED
    assert not db.exists(job.FINAL, job.OPEN)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_a_worker_writes_the_files_to_a_store(
    client: Client, db: redis.Redis, valkey_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """As a worker does it: in a process of its own, with the worker's settings and environment."""
    out, errors = (f"{scheme}://results/by-worker/{name}.jsonl" for name in ("out", "errors"))
    with object_server() as server:
        lead(server, monkeypatch)
        monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
        for name, value in s3_server.env().items():
            if not name.startswith("AWS_ENDPOINT"):  # that is in the worker's settings
                monkeypatch.setenv(name, value)
        settings = Settings(  # type: ignore[call-arg]
            redis_url=valkey_url,
            results={"allow": [f"{scheme}://results/"]},  # type: ignore[arg-type]
            pipelines={PIPELINE: {}},  # type: ignore[arg-type]
            s3={"endpoint_url": s3_server.endpoint_url},  # type: ignore[arg-type]
        )
        keeper = JobKeeper(db, settings, {PIPELINE})
        try:
            job_id = ended(client, results=out, errors=errors)
            assert until_it_is_final(client, job_id, keeper).state is JobState.COMPLETED
            forbidden = ended(client, results=f"{scheme}://elsewhere/out.jsonl")
            assert "[results] allow" in str(until_it_is_final(client, forbidden, keeper).error)
        finally:
            keeper.close()
        if scheme == "s3":
            s3 = boto3.client("s3", endpoint_url=s3_server.endpoint_url)
            found = [s3.get_object(Bucket="results", Key=f"by-worker/{name}.jsonl")["Body"].read()
                for name in ("out", "errors")]  # fmt: skip
        else:
            found = [server.objects[f"results/by-worker/{name}.jsonl"] for name in ("out", "errors")]
    assert found[0] == b""
    assert [json.loads(line)["line"] for line in found[1].splitlines()] == list(range(1, 11))


def test_a_large_file_goes_to_s3_in_parts(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    rows = [{"line": at, "custom_id": None, "result": "x" * 1000} for at in range(20_000)]
    with files.OutcomeFiles("s3://results/large/out.jsonl", None) as out:
        out.write(rows)
    found = boto3.client("s3").get_object(Bucket="results", Key="large/out.jsonl")
    assert "-" in found["ETag"], "it was sent at once"
    assert [json.loads(line) for line in found["Body"].iter_lines()] == rows
    with pytest.raises(PipeqError, match="cannot write s3://no such bucket"), files.OutcomeFiles(NOWHERE, None) as out:
        out.write(rows[:1])


def test_a_client_that_waits_writes_the_files_if_no_worker_does(
    client: Client, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    job_id = ended(client, results="s3://results/waited/out.jsonl")
    with pytest.raises(WaitTimeoutError):
        client.jobs.wait(job_id, 0.3)
    assert client.jobs.status(job_id).state is JobState.FINALIZING, "workers have half a minute"
    monkeypatch.setattr("pipeq.jobs.calls.WORKERS_S", 0.5)
    assert client.jobs.wait(job_id, 30).state is JobState.COMPLETED
    body = boto3.client("s3").get_object(Bucket="results", Key="waited/out.jsonl")["Body"].read()
    assert [json.loads(line)["line"] for line in body.splitlines()] == list(range(1, 11))
    # A place on a worker's machine is none of a client's, also if it is only that of the errors.
    for options in ({"results": f"file://{tmp_path}/out.jsonl"},
        {"results": "s3://results/waited/other.jsonl", "errors": f"file://{tmp_path}/errors.jsonl"}):  # fmt: skip
        other = ended(client, **options)
        with pytest.raises(WaitTimeoutError):
            client.jobs.wait(other, 1.5)
        assert not list(tmp_path.iterdir())


def test_a_client_that_cannot_write_the_files_waits_on_until_the_job_has_failed(
    client: Client, db: redis.Redis, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipeq.jobs.calls.WORKERS_S", 0.0)
    monkeypatch.setattr(keeping, "TRIES", 2)
    job_id = ended(client, results=NOWHERE)
    status = client.jobs.wait(job_id, 30)
    assert status.state is JobState.FAILED
    assert "cannot write s3://no such bucket/out.jsonl" in str(status.error)
    assert not db.exists(job.FINAL, job.OPEN)


def test_whoever_lost_the_claim_writes_nothing(
    client: Client, db: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    job_id = ended(client, results=f"file://{out}")
    monkeypatch.setattr(keeping, "RENEW_S", 0.0)
    write = files.OutcomeFiles.write

    def is_slow(self: Any, outcomes: Any) -> None:
        db.set(job.claim_key(job_id), "another")
        write(self, outcomes)

    monkeypatch.setattr(files.OutcomeFiles, "write", is_slow)
    keep(client, "finalize", job_id)
    assert not list(tmp_path.iterdir())
    assert client.jobs.status(job_id).state is JobState.FINALIZING


def test_files_that_cannot_be_written_fail_the_job_with_the_reason(
    client: Client, db: redis.Redis, keeper: JobKeeper, tmp_path: Path
) -> None:
    job_id = ended(client, results="file:///somewhere/else.jsonl")
    keeper._look()
    status = client.jobs.status(job_id)
    assert status.state is JobState.FAILED
    assert "[results] allow" in str(status.error)
    assert len(list(client.jobs.results(job_id))) == 10, "the outcomes are there"
    missing = ended(client, results=f"file://{tmp_path}/no/such/folder.jsonl")
    for _ in range(keeping.TRIES):
        db.delete(job.claim_key(missing))
        with pytest.raises(PipeqError, match="cannot write"):
            keep(client, "finalize", missing)
    assert "cannot write" in str(client.jobs.status(missing).error)
    assert not db.exists(job.FINAL)


def test_the_order_is_that_of_the_input_or_of_the_ends(client: Client, valkey_url: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    inputs = ["a", "b", "c", "d"]
    job_id = client.jobs.submit(PIPELINE, inputs, check=False, pack_rows=1, results=f"file://{out}", order="completed")
    for at in (2, 0, 3, 1):
        client.cancel(f"{job_id}-{at}")
    keep(client, "finalize", job_id)
    assert [one["line"] for one in lines(out)] == [3, 1, 4, 2]
    assert [one["line"] for one in client.jobs.results(job_id, order="completed", follow=True)] == [3, 1, 4, 2]
    assert [one["line"] for one in client.jobs.results(job_id)] == [1, 2, 3, 4]


def test_a_job_expires_with_the_rows_that_have_not_ended(
    client: Client, db: redis.Redis, keeper: JobKeeper, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    job_id = client.jobs.submit(PIPELINE, ["a", "b"], check=False, pack_rows=1, expires_s=3600, results=f"file://{out}")
    client.cancel(f"{job_id}-0")
    # Not a time that is over soon: on a busy machine it may be over before the first row is cancelled.
    assert client.jobs.status(job_id).expires_at == pytest.approx(time.time() + 3600, abs=60)
    db.hset(job.job_key(job_id), "expires_at", time.time() - 0.01)
    status = until_it_is_final(client, job_id, keeper)
    assert (status.state, status.codes) == (JobState.EXPIRED, {"cancelled": 1, "expired": 1})
    assert [one["error"]["code"] for one in lines(out)] == ["cancelled", "expired"]
    assert client.status(f"{job_id}-1").state == "expired"


def test_messages_that_somebody_has_removed_end_as_lost(
    client: Client, db: redis.Redis, valkey_url: str, keeper: JobKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "BETWEEN_S", 0.0)
    host = Host(valkey_url, PIPELINE)
    job_id = client.jobs.submit(PIPELINE, ["a", "b", "c"], check=False, pack_rows=1, job_id="lost")
    host.take()  # inside a worker
    raw = db.rpop(keys.list_key(PIPELINE, 6))
    assert raw is not None
    keep(client, "recover", job_id)
    assert client.jobs.status(job_id).codes == {"worker_lost": 1}
    assert due(keeper, job_id) is None
    monkeypatch.setattr("pipeq_worker.host.jobs.QUIET_S", 0.0)
    assert due(keeper, job_id) is None, "while messages wait, it takes longer"
    db.delete(keys.list_key(PIPELINE, 6))
    assert due(keeper, job_id) == "recover"
    keep(client, "recover", job_id)
    assert client.jobs.status(job_id).codes == {"worker_lost": 2}
    keep(client, "recover", job_id)
    assert not client.jobs.status(job_id).state.is_final
    host.stop()


def test_a_pack_that_is_lost_while_messages_wait_is_found_within_a_time(
    client: Client, db: redis.Redis, keeper: JobKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeq_worker.host.jobs.QUIET_S", 0.1)
    job_id = client.jobs.submit(PIPELINE, ["a", "b", "c"], check=False, pack_rows=1)
    assert db.rpop(keys.list_key(PIPELINE, 6)) is not None
    time.sleep(0.2)
    assert due(keeper, job_id) is None, "its packs are probably among those that wait"
    monkeypatch.setattr("pipeq_worker.host.jobs.BUSY_S", 0.2)
    monkeypatch.setattr("pipeq_worker.host.jobs.MESSAGE_S", 0.0)
    monkeypatch.setattr("pipeq_worker.host.jobs.LOOK_AT_OPEN_S", 0.0)
    keeps_until(keeper, lambda: client.jobs.status(job_id).codes)
    found = client.jobs.status(job_id)
    assert found.codes == {"worker_lost": 1}
    assert found.searched_at is not None
    monkeypatch.setattr("pipeq_worker.host.jobs.BUSY_S", 60.0)
    assert due(keeper, job_id) is None, "it was searched a moment ago"
    until(lambda: not keeper._is_busy())
    assert not db.exists(job.claim_key(job_id)), "others may have the next step"
    assert db.llen(keys.list_key(PIPELINE, 6)) == 2


def test_an_input_that_cannot_be_read_fails_the_job_until_it_can(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b"text\n" + b"".join(b"%x\n" % (at**7) for at in range(1000)))[:-1000])
    with pytest.raises(PipeqError, match=r"rows\.csv\.gz cannot be read"):
        client.jobs.submit(PIPELINE, path, field="text", job_id="bad", check=False)
    status = client.jobs.status("bad")
    assert status.state is JobState.FAILED
    assert "rows.csv.gz" in str(status.error)
    path.write_bytes(gzip.compress(b"text\na\nb\n"))
    client.jobs.submit(PIPELINE, path, field="text", job_id="bad", check=False)
    status = client.jobs.status("bad")
    assert (status.state, status.error, status.submitted) == (JobState.IN_PROGRESS, None, 2)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.txt.gz", "a.parquet", "none/*.png", "none.csv"])
def test_of_an_input_whose_beginning_cannot_be_read_there_is_no_job(client: Client, tmp_path: Path, name: str) -> None:
    if not name.startswith("none"):
        (tmp_path / name).write_bytes(b"no such thing")
    with pytest.raises(PipeqError, match=r"cannot be read|is no Parquet|no file"):
        client.jobs.submit(PIPELINE, str(tmp_path / name), job_id="bad", check=False)
    with pytest.raises(PipeqError, match="no job 'bad'"):
        client.jobs.status("bad")


def test_the_columns_of_the_input_stand_beside_the_outcomes(client: Client, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.csv"
    path.write_text('text,n\n"a, b",1\nlone\n\nü,2\n', encoding="utf-8")
    job_id = client.jobs.submit(PIPELINE, path, field="text", id="n", check=False)
    client.purge(PIPELINE)
    client.jobs.save(job_id, str(tmp_path / "out.csv"), inputs=path)
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["text"], row["n"], row["code"]) for row in rows] == [
        ("a, b", "1", "purged"),
        ("", "", "invalid_input"),
        ("ü", "2", "purged"),
    ]
    client.jobs.save(job_id, str(tmp_path / "out.jsonl"), inputs=path)
    assert lines(tmp_path / "out.jsonl")[0] | {"error": None} == {"text": "a, b", "n": "1", "error": None}
    client.jobs.save(job_id, str(tmp_path / "out.parquet"), inputs=path)
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["code"] for row in table] == ["purged", "invalid_input", "purged"]
    path.write_text("text,n\na,1\n")
    with pytest.raises(PipeqError, match="another input"):
        client.jobs.save(job_id, str(tmp_path / "no.csv"), inputs=path)
    assert not (tmp_path / "no.csv").exists()


def test_a_wrong_argument_about_files_is_named(client: Client) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"results": "out.jsonl"}, "results"), ({"results": "s3://bucket/"}, "results"), ({"results": 5}, "results"),
        ({"errors": "s3://b/e.jsonl"}, "errors needs results"), ({"order": "backwards"}, "order"),
        ({"output": "s3://b/{day}-{id}.json"}, "unknown field {day}"), ({"output": "s3://b/x.json"}, "many results"),
        ({"output": "s3://b/{stem}.json"}, "no {id}"), ({"include_inputs": 3}, "include_inputs"),
        ({"output": {"uri": "s3://b/", "include_inputs": "yes"}}, "include_inputs"),
        ({"results": "https://host/out.jsonl"}, "results"), ({"results": "gs://bucket/"}, "results"),
        ({"expires_s": -1}, "expires_s"), ({"expires_s": "soon"}, "expires_s"),
    ]  # fmt: skip
    for options, named in wrong:
        with pytest.raises(PipeqError, match=named):
            client.jobs.submit(PIPELINE, ["a"], check=False, **options)
    job_id = ended(client)
    for call in (
        lambda: list(client.jobs.results(job_id, order="x")),
        lambda: client.jobs.save(job_id, "x.jsonl", order="x"),
    ):
        with pytest.raises(PipeqError, match="order"):
            call()
    with pytest.raises(PipeqError, match="follow"):
        list(client.jobs.results(job_id, follow=True))
    with pytest.raises(PipeqError, match="step"):
        keep(client, "x", job_id)
