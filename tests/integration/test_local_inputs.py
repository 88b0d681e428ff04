"""Inputs from the caller's memory and disk: a worker decodes what is sent; what is too large is uploaded."""

from __future__ import annotations

import base64
import io
import json
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from PIL import Image
from pipeq import Client, PipeqError, SettingsError, SubmitError, uploading, uploads
from pipeq.contract import keys
from pipeq.demo.embedded import S3Server
from pipeq_worker.media.audio import decode_audio

from tests import both_clients
from tests.integration.conftest import PIPELINE, New
from tests.integration.test_fsspec_stores import lead
from tests.object_servers import object_server


@pytest.fixture(params=both_clients.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sent(db: redis.Redis) -> Any:
    """The inputs of the newest message."""
    return json.loads(base64.b64decode(json.loads(db.lindex(PIPELINE, 0))["body"]))[1]["inputs"]


PICTURE = np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "given",
    [PICTURE, PICTURE[:, :, 0], PICTURE[:, :, :1], Image.fromarray(PICTURE), Image.fromarray(PICTURE).convert("P"),
     PICTURE[::2, ::-1], np.dstack([PICTURE, PICTURE[:, :, 0]])],
    ids=["rgb", "grey", "one channel", "PIL", "palette", "a view", "rgba"],
)  # fmt: skip
def test_a_picture_is_a_png(client: Client, db: redis.Redis, given: Any) -> None:
    client.submit(PIPELINE, {"image": given, "question": "what?"})
    found = sent(db)
    assert (found["question"], found["image"]["media_type"]) == ("what?", "image/png")
    with Image.open(io.BytesIO(base64.b64decode(found["image"]["base64"]))) as image:
        want = np.asarray(given if isinstance(given, np.ndarray) else given.convert("RGB"))
        got = np.asarray(image if isinstance(given, np.ndarray) else image.convert("RGB"))
    assert np.array_equal(got, want.reshape(got.shape))


@pytest.mark.parametrize("as_list", [False, True])
def test_a_sound_is_a_wav(client: Client, db: redis.Redis, as_list: bool) -> None:
    samples = np.sin(np.arange(1600) / 20).astype(np.float32)
    array: Any = samples.tolist() if as_list else samples.astype(np.float64)
    client.submit(PIPELINE, [{"array": array, "sampling_rate": 16000, "path": "a.flac"}])
    [found] = sent(db)
    decoded = decode_audio(base64.b64decode(found["base64"]), "it", 16000, 60)
    assert np.allclose(decoded, samples, atol=1e-6)


@pytest.mark.parametrize(
    "given", [b"bytes", bytearray(b"bytes"), memoryview(b"bytes")], ids=lambda one: type(one).__name__
)
def test_bytes_travel_in_the_message(client: Client, db: redis.Redis, given: Any) -> None:
    client.submit(PIPELINE, given)
    assert sent(db) == {"base64": "Ynl0ZXM="}


def test_what_is_too_large_needs_a_store(client: Client, db: redis.Redis) -> None:
    with pytest.raises(SubmitError, match=r"give the client a store for such inputs, upload='s3://") as caught:
        client.submit(PIPELINE, b"x" * 300_000)
    assert caught.value.code == "input_too_large"
    with pytest.raises(SubmitError, match=r"inputs\[1\]: .*upload="):
        client.submit_many(PIPELINE, [b"x", b"x" * 300_000])


def test_what_is_too_large_is_uploaded_once(new: New, db: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
    client = new(valkey_url, upload=f"{tmp_path.as_uri()}/")
    (tmp_path / "far").mkdir()
    local = tmp_path / "far" / "talk one.flac"
    local.write_bytes(b"sound")
    client.submit(PIPELINE, [b"small", b"x" * 300_000, local, b"x" * 300_000])
    small, large, file, again = sent(db)
    assert small == {"base64": "c21hbGw="}
    assert large == again
    assert Path(large["uri"].removeprefix("file://")).read_bytes() == b"x" * 300_000
    assert file["uri"].endswith(".flac")
    assert Path(file["uri"].removeprefix("file://")).read_bytes() == b"sound"
    assert len([one for one in tmp_path.iterdir() if one.is_file()]) == 2
    # Without a store, the file is the workers', as before.
    new(valkey_url).submit(PIPELINE, local)
    assert sent(db) == {"uri": local.as_uri()}


def test_many_small_ones_share_the_room_of_a_message(
    new: New, db: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    client = new(valkey_url, upload=f"{tmp_path.as_uri()}/")
    client.submit(PIPELINE, [bytes([n]) * 60_000 for n in range(6)])
    assert ["uri" in one for one in sent(db)] == [False, False, True, True, True, True]


def test_an_upload_to_s3(
    new: New, db: redis.Redis, valkey_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in s3_server.env().items():
        if value:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIPEQ_CLIENT_UPLOAD", "s3://inputs/mine/")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # another test's credentials
    (tmp_path / "a.bin").write_bytes(b"file")
    client = new(valkey_url)
    client.submit(PIPELINE, [b"x" * 300_000, tmp_path / "a.bin"])
    for one, want in zip(sent(db), (b"x" * 300_000, b"file"), strict=True):
        bucket, _, key = one["uri"].removeprefix("s3://").partition("/")
        assert s3_server.client().get_object(Bucket=bucket, Key=key)["Body"].read() == want
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    with pytest.raises(SubmitError, match="cannot upload to s3://nowhere/") as caught:
        new(valkey_url, upload="s3://nowhere/").submit(PIPELINE, b"x" * 300_000)
    assert (caught.value.code, caught.value.retryable) == ("input_unavailable", True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros((3, 4), dtype=np.float32), "has the shape (3, 4) and the type float32: a picture has uint8"),
        (np.zeros(5, dtype=np.uint8), 'sound is {"array": ..., "sampling_rate": ...}'),
        (np.zeros((2, 2, 7), dtype=np.uint8), "(2, 2, 7)"),
        (np.zeros((0, 2), dtype=np.uint8), "(0, 2)"),
        ({"array": np.zeros((2, 5)), "sampling_rate": 16000}, "`array` has the shape (2, 5)"),
        ({"array": np.zeros(5, dtype=np.int16), "sampling_rate": 16000}, "the type int16"),
        ({"array": np.zeros(5), "sampling_rate": 0}, "`sampling_rate` is 0"),
        ({"array": np.zeros(5), "sampling_rate": "16k"}, "`sampling_rate` is '16k'"),
        ({"array": "abc", "sampling_rate": 16000}, "`array` is no list of samples"),
        ({"array": 5, "sampling_rate": 16000}, "`array` is no list of samples"),
    ],
)
def test_what_cannot_be_sent_is_said(client: Client, db: redis.Redis, given: Any, says: str) -> None:
    with pytest.raises(SubmitError) as caught:
        client.submit(PIPELINE, given)
    assert says in caught.value.message
    assert caught.value.code == "invalid_input"


@pytest.mark.parametrize(
    "wrong", ["s3://", "inputs/", "https://h/x/", "s3://b", "file:///", 5, "s3://b/{id}/"], ids=str
)
def test_a_store_that_is_none_is_refused_by_name(valkey_url: str, wrong: Any) -> None:
    with pytest.raises(SettingsError, match="upload"):
        Client(valkey_url, upload=wrong)


def test_a_local_file_that_is_not_there_is_said(new: New, valkey_url: str, db: redis.Redis, tmp_path: Path) -> None:
    with pytest.raises(PipeqError, match=r"nothing\.wav") as caught:
        new(valkey_url, upload=f"{tmp_path.as_uri()}/").submit(PIPELINE, tmp_path / "nothing.wav")
    assert caught.value.code == "input_not_found"


def test_neither_numpy_nor_pil_is_imported(valkey_url: str, db: redis.Redis) -> None:
    code = f"""
import sys
from pipeq import Client
with Client({valkey_url!r}) as client:
    client.submit({PIPELINE!r}, [b"x", {{"array": [0.5], "sampling_rate": 16000}}])
print([name for name in ("numpy", "PIL", "boto3") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    assert struct.unpack("<4s", base64.b64decode(sent(db)[1]["base64"])[:4]) == (b"RIFF",)


def test_several_are_uploaded_at_once_and_before_their_tasks_are_queued(
    new: New, db: redis.Redis, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, now, most = uploading._write_file, [0], [0]
    lock = threading.Lock()

    def slow(uri: str, data: bytes | Path) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            assert db.llen(queue) == 0
        time.sleep(0.02)
        write(uri, data)
        with lock:
            now[0] -= 1

    monkeypatch.setitem(uploading._WRITERS, "file", lambda: slow)
    queue = keys.list_key(PIPELINE, keys.JOB_PRIORITY)
    client = new(valkey_url, upload=f"{tmp_path.as_uri()}/out/")
    files = []
    for number in range(100):
        files.append(tmp_path / f"{number}.bin")
        files[-1].write_bytes(b"%d" % number)
    client.submit_many(PIPELINE, files)
    assert 2 <= most[0] <= uploads.AT_ONCE
    messages = [json.loads(one) for one in reversed(db.lrange(queue, 0, -1))]
    found = [json.loads(base64.b64decode(one["body"]))[1]["inputs"]["uri"] for one in messages]
    assert [Path(one.removeprefix("file://")).read_bytes() for one in found] == [b"%d" % n for n in range(100)]
    # One that cannot be uploaded is named, and no task of its chunk is queued.
    db.delete(queue)
    monkeypatch.setattr(uploads, "WAITING", 4)
    files[7].unlink()
    with pytest.raises(SubmitError, match=r"inputs\[7\]: cannot read .*7\.bin") as caught:
        client.submit_many(PIPELINE, iter(files))
    assert caught.value.code == "input_not_found"

    def refusing(uri: str, data: bytes | Path) -> None:
        if isinstance(data, Path) and data.name == "5.bin":
            raise OSError("no room")

    monkeypatch.setitem(uploading._WRITERS, "file", lambda: refusing)
    with pytest.raises(SubmitError, match=r"inputs\[5\]: cannot upload to .*no room") as caught:
        new(valkey_url, upload=f"{tmp_path.as_uri()}/out/").submit_many(PIPELINE, files[:7])
    assert (caught.value.code, caught.value.submitted) == ("input_unavailable", ())
    assert db.llen(queue) == 0


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_an_upload_to_another_store(
    new: New, db: redis.Redis, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    (tmp_path / "a.bin").write_bytes(b"file")
    with object_server() as server:
        lead(server, monkeypatch)
        client = new(valkey_url, upload=f"{scheme}://bucket/mine/", allow=[f"{scheme}://bucket/mine/"])
        client.submit(PIPELINE, [b"x" * 300_000, tmp_path / "a.bin"])
        large, file = sent(db)
        assert client.read(large) == b"x" * 300_000
        assert client.read(file) == b"file"
