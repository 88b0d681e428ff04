"""Rows of a job on their way to Redis: the names of their results, and what they have in memory or in local files."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from PIL import Image
from pipeq import AsyncClient, Client, PipeqError, uploading, uploads
from pipeq.contract import job, keys
from pipeq.contract.job import JobState
from pipeq.contract.message import Ref
from pipeq.contract.pack import PARAMS_BYTES

from tests.integration.conftest import PIPELINE, New

PICTURE = np.random.default_rng(1).integers(0, 255, (200, 300, 3), dtype=np.uint8)


def packs(db: redis.Redis) -> list[dict[str, Any]]:
    """The packs that wait, in their order."""
    raws = reversed(db.lrange(keys.list_key(PIPELINE, keys.JOB_PRIORITY), 0, -1))
    return [json.loads(base64.b64decode(json.loads(raw)["body"]))[1] for raw in raws]


def rows(db: redis.Redis) -> list[dict[str, Any]]:
    return [row for one in packs(db) for row in one["rows"]]


def failed(client: Client, job_id: str) -> list[tuple[int, str, str]]:
    found = [one for one in client.jobs.results(job_id) if "error" in one]
    return [(one["line"], one["error"]["code"], one["error"]["message"]) for one in found]


def content(row: dict[str, Any]) -> bytes:
    """What a row's input refers to, in a store on this disk."""
    return Path(row["inputs"]["uri"].removeprefix("file://")).read_bytes()


# -- names of results -------------------------------------------------------------------------------------------------


def test_each_row_has_the_name_of_its_result_or_says_why_it_has_none(client: Client, db: redis.Redis) -> None:
    inputs = [
        {"inputs": Ref("s3://talks/2026/intro.flac"), "custom_id": "a/b"},
        {"inputs": "no reference", "custom_id": "c"},
        {"inputs": Ref("s3://talks/x.y.wav")},
    ]
    output = "s3://results/{pipeline}/{stem}.{extension}-{custom_id}-{id}.json"
    job_id = client.jobs.submit(PIPELINE, inputs, job_id="named", output=output, check=False)
    (pack,) = packs(db)
    assert "output" not in pack
    assert "include_inputs" not in pack
    assert [row["output"] for row in pack["rows"]] == [f"s3://results/{PIPELINE}/intro.flac-a~2Fb-named-line1.json"]
    wrong = failed(client, job_id)
    assert [one[:2] for one in wrong] == [(2, "invalid_message"), (3, "invalid_message")]
    assert "custom_id" in wrong[1][2]
    # No task of a job has the id of a row, so that no large outcome lies where a row's result does.
    assert job.pack_of("named-line1") is None


def test_the_day_in_a_name_is_that_of_the_job_and_a_folder_gets_the_row_s_id(client: Client, db: redis.Redis) -> None:
    options: dict[str, Any] = {"output": "file:///results/{date}/", "check": False, "pack_rows": 1, "job_id": "daily"}

    def breaks() -> Any:
        yield "a"
        raise OSError("gone")

    with pytest.raises(PipeqError, match=r"inputs raised OSError.*gone.* after 1 row$"):
        client.jobs.submit(PIPELINE, breaks(), **options)
    db.hset(job.job_key("daily"), "created_at", 86_400 * 3 + 5)
    db.hdel(job.job_key("daily"), "spec")  # a list is another input than a generator
    client.jobs.submit(PIPELINE, ["a", "b"], **options)
    assert rows(db)[-1]["output"] == "file:///results/1970-01-04/daily-line2.json"


def test_inputs_beside_results_are_asked_for_once_for_all_rows(client: Client, db: redis.Redis) -> None:
    client.jobs.submit(PIPELINE, ["a"], include_inputs=True, check=False)
    client.jobs.submit(PIPELINE, ["a"], output={"uri": "s3://r/", "include_inputs": True}, check=False)
    client.jobs.submit(PIPELINE, ["a"], output={"uri": "s3://r/{id}.json", "include_inputs": True}, check=False)
    first, second, third = packs(db)
    assert [one.get("include_inputs") for one in (first, second, third)] == [True] * 3
    assert [one.get("output") for one in (first, second, third)] == [None, {"uri": "s3://r/"}, None]
    options: dict[str, Any] = {"job_id": "x", "check": False}
    client.jobs.submit(PIPELINE, ["a"], **options)
    with pytest.raises(PipeqError, match="another job"):
        client.jobs.submit(PIPELINE, ["a"], include_inputs=True, **options)


# -- what is in memory or in local files ------------------------------------------------------------------------------


def test_what_is_small_travels_in_the_pack_and_the_rest_is_uploaded(
    new: New, db: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    (tmp_path / "a.bin").write_bytes(b"file")
    client = new(valkey_url, upload=f"{tmp_path.as_uri()}/out/")
    sound = {"array": np.zeros(16_000, dtype=np.float32), "sampling_rate": 16_000}
    given = [b"small", b"x" * 100_000, tmp_path / "a.bin", PICTURE, Image.fromarray(PICTURE), sound, "text"]
    job_id = client.jobs.submit(PIPELINE, given, check=False)
    found = rows(db)
    assert [row["line"] for row in found] == list(range(1, 8))
    assert found[0]["inputs"] == {"base64": base64.b64encode(b"small").decode()}
    assert [content(row)[:4] for row in found[1:6]] == [b"xxxx", b"file", b"\x89PNG", b"\x89PNG", b"RIFF"]
    assert found[6]["inputs"] == "text"
    assert failed(client, job_id) == []


def test_a_column_of_pictures_is_uploaded(new: New, db: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
    client = new(valkey_url, upload=f"{tmp_path.as_uri()}/out/")
    records = ({"picture": PICTURE + at, "q": "what?", "n": at} for at in range(3))
    client.jobs.submit(PIPELINE, records, field={"image": "picture", "question": "q"}, id="n", check=False)
    found = rows(db)
    assert [row["custom_id"] for row in found] == ["0", "1", "2"]
    assert len({row["inputs"]["image"]["uri"] for row in found}) == 3
    assert {row["inputs"]["question"] for row in found} == {"what?"}


def test_files_of_a_folder_are_uploaded_where_the_client_has_a_store(
    new: New, db: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    for at in range(3):
        (tmp_path / f"{at}.bin").write_bytes(b"%d" % at)
    new(valkey_url).jobs.submit(PIPELINE, f"{tmp_path}/*.bin", check=False)
    assert [row["inputs"]["uri"] for row in rows(db)] == [f"file://{tmp_path}/{at}.bin" for at in range(3)]
    db.delete(keys.list_key(PIPELINE, keys.JOB_PRIORITY))
    new(valkey_url, upload=f"{tmp_path.as_uri()}/out/").jobs.submit(PIPELINE, f"{tmp_path}/*.bin", check=False)
    found = rows(db)
    assert [content(row) for row in found] == [b"0", b"1", b"2"]
    assert all(row["inputs"]["uri"].startswith(f"{tmp_path.as_uri()}/out/") for row in found)
    assert [row["custom_id"] for row in found] == [f"{tmp_path}/{at}.bin" for at in range(3)]


def test_what_cannot_be_sent_is_an_error_of_its_row(new: New, db: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
    given = [b"x" * 300_000, np.zeros((2, 2), dtype=np.float64), "text"]
    without = new(valkey_url)
    found = failed(without, without.jobs.submit(PIPELINE, given, check=False))
    assert [one[:2] for one in found] == [(1, "input_too_large"), (2, "invalid_input")]
    assert "upload=" in found[0][2]
    client = new(valkey_url, upload=f"{tmp_path.as_uri()}/out/")
    found = failed(client, client.jobs.submit(PIPELINE, [tmp_path / "none.bin", *given], check=False))
    assert [one[:2] for one in found] == [(1, "input_not_found"), (3, "invalid_input")]


def test_packs_are_queued_after_what_they_refer_to_and_a_submit_goes_on_when_the_store_is_back(
    new: New, db: redis.Redis, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written, is_away = uploading._write_file, set[str](), True

    def refusing(uri: str, data: Any) -> None:
        if is_away and len(written) == 150:
            raise OSError("no room")
        write(uri, data)
        written.add(uri)

    monkeypatch.setitem(uploading._WRITERS, "file", lambda: refusing)
    monkeypatch.setattr(uploads, "AT_ONCE", 1)
    client = new(valkey_url, upload=f"{tmp_path.as_uri()}/out/")
    given = [b"%05d" % at * 4000 for at in range(300)]
    with pytest.raises(PipeqError, match=r"line \d+: cannot upload to .*no room") as caught:
        client.jobs.submit(PIPELINE, given, job_id="goes on", check=False)
    assert caught.value.code == "input_unavailable"
    status = client.jobs.status("goes on")
    assert status.state is JobState.FAILED
    assert "no room" in str(status.error)
    before = rows(db)
    assert 0 < len(before) < 300
    assert {row["inputs"]["uri"] for row in before} <= written
    is_away = False
    client.jobs.submit(PIPELINE, given, job_id="goes on", check=False)
    assert [content(row) for row in rows(db)] == given
    assert client.jobs.status("goes on").state is JobState.IN_PROGRESS


def test_packs_with_many_parameters_have_few_rows(client: Client, db: redis.Redis) -> None:
    params = {"labels": ["x" * 100_000]}
    client.jobs.submit(PIPELINE, map(str, range(50)), params=params, include_inputs=True, check=False)
    found = packs(db)
    assert sorted(row["inputs"] for one in found for row in one["rows"]) == sorted(map(str, range(50)))
    assert [len(one["rows"]) for one in found] == [20, 20, 10]
    assert all(len(one["rows"]) * len(json.dumps(one["params"])) < PARAMS_BYTES for one in found)


# -- what is read asynchronously --------------------------------------------------------------------------------------


async def texts(count: int, breaks_at: int | None = None) -> AsyncIterator[str]:
    for at in range(count):
        if at % 1000 == 0:
            await asyncio.sleep(0.001)
        if at == breaks_at:
            raise OSError("the table is gone")
        yield f"text {at}"


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 5000])
def test_an_asynchronous_generator_is_read_in_its_loop(valkey_url: str, db: redis.Redis, count: int) -> None:
    async def story() -> Any:
        async with AsyncClient(valkey_url) as client:
            job_id = await client.jobs.submit(PIPELINE, texts(count), check=False)
            return await client.jobs.status(job_id)

    status = asyncio.run(story())
    assert (status.submitted, status.is_sealed, status.lines) == (count, True, count)
    assert [(row["line"], row["inputs"]) for row in rows(db)] == [(at + 1, f"text {at}") for at in range(count)]


def test_an_asynchronous_submit_that_broke_off_goes_on(valkey_url: str, db: redis.Redis) -> None:
    async def story() -> Any:
        async with AsyncClient(valkey_url) as client:
            with pytest.raises(PipeqError, match=r"inputs raised .*the table is gone.* after 4500 of them"):
                await client.jobs.submit(PIPELINE, texts(5000, 4500), job_id="broken", check=False)
            queued = (await client.jobs.status("broken")).lines
            with pytest.raises(PipeqError, match=rf"has 100 lines, and {queued} were submitted"):
                await client.jobs.submit(PIPELINE, texts(100), job_id="broken", check=False)
            await client.jobs.submit(PIPELINE, texts(5000), job_id="broken", check=False)
            return queued

    assert 0 < asyncio.run(story()) < 4500
    assert [row["inputs"] for row in rows(db)] == [f"text {at}" for at in range(5000)]


def test_a_submit_that_is_cancelled_ends_at_once(valkey_url: str, db: redis.Redis) -> None:
    async def endless() -> AsyncIterator[str]:
        yield "one"
        await asyncio.Event().wait()

    async def story() -> None:
        async with AsyncClient(valkey_url) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.jobs.submit(PIPELINE, endless(), check=False), 0.5)

    asyncio.run(asyncio.wait_for(story(), 5))


def test_a_client_that_blocks_names_the_one_that_does_not(client: Client) -> None:
    with pytest.raises(PipeqError, match="use AsyncClient"):
        client.jobs.submit(PIPELINE, texts(1), check=False)
    job_id = client.jobs.submit(PIPELINE, ["x"], check=False)
    with pytest.raises(PipeqError, match=r"inputs is an async_generator, .* give a file, or a list"):
        client.jobs.save(job_id, "/tmp/never.jsonl", inputs=texts(1))


# -- failed rows, again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_all", [True, False])
def test_an_input_that_lacks_lines_that_failed_is_warned_of(
    client: Client, tmp_path: Path, recwarn: pytest.WarningsRecorder, has_all: bool
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("no JSON\n" * 3)
    client.jobs.submit(PIPELINE, str(path), job_id="night", check=False)
    assert [line for line, *_ in failed(client, "night")] == [1, 2, 3]
    path.write_text('"fine now"\n' * (3 if has_all else 1))
    again = client.jobs.retry("night", str(path), check=False)
    assert again is not None
    assert client.jobs.status(again).submitted == (3 if has_all else 1)
    said = [str(one.message) for one in recwarn if one.category is UserWarning]
    assert said == [] if has_all else said[0].startswith("the input has only 1 of the 3 lines that failed in 'night'")
