"""Writing results to a real S3 store and a real disk."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.pack import PackMessage, PackOf, PackRow
from pipeq.demo.embedded import S3Server
from pipeq_worker.models.constant_pipeline import load_constant_pipeline
from pipeq_worker.settings.sections import PipelineSettings, ResultSettings, S3Settings
from pipeq_worker.stages.pack import Pack
from pipeq_worker.stages.placing import Placer
from pipeq_worker.stages.task import Input, Task
from pipeq_worker.stores import disk
from pipeq_worker.stores.writer import Writer

from tests.integration.fetching import use_s3

JSON = "application/json"


@pytest.fixture
def s3_env(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    use_s3(s3_server, monkeypatch, tmp_path)
    return s3_server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def store(s3_env: S3Server, root: Path) -> Iterator[Writer]:
    allow = ("s3://results/tenant/", f"file://{root}/")
    built = Writer(ResultSettings(store="s3://results/own/", allow=allow), S3Settings())
    yield built
    built.close()


def failure(store: Writer, uri: str) -> PipeqError:
    with pytest.raises(PipeqError) as error:
        store.put(uri, b"{}", JSON)
    return error.value


# --- what producers may ask for


def test_output_below_an_allowed_prefix(store: Writer, root: Path) -> None:
    for uri in ("s3://results/tenant/a.json", "s3://results/tenant/", f"file://{root}/a/b.json"):
        store.check_allowed(uri)


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("s3://other/a.json", "s3://other/"),
        ("s3://results/a.json", "s3://results/"),
        # Producers may not write to the worker's own store.
        ("s3://results/own/a.json", "s3://results/"),
        ("file:///etc/cron.d/job", "file:///etc/cron.d/"),
    ],
)
def test_output_elsewhere_is_forbidden(store: Writer, uri: str, line: str) -> None:
    with pytest.raises(PipeqError) as error:
        store.check_allowed(uri)
    assert (error.value.code, error.value.retryable) == (ErrorCode.INPUT_FORBIDDEN, False)
    assert error.value.message == f'this worker\'s settings do not allow {uri}: add "{line}" to [results] allow'


def test_output_to_another_scheme_is_forbidden(store: Writer) -> None:
    with pytest.raises(PipeqError, match="output goes to s3://, file://, gs:// or az://"):
        store.check_allowed("https://example.org/a.json?X-Amz-Signature=secret")


def test_nothing_is_allowed_by_default() -> None:
    with pytest.raises(PipeqError):
        Writer(ResultSettings(), S3Settings()).check_allowed("s3://results/a.json")


# --- S3


@pytest.mark.parametrize("uri", ["s3://results/tenant/a b/ü?#%20.json", "s3://results/own/a.json"])
def test_an_object(store: Writer, s3_env: S3Server, uri: str) -> None:
    for data in (b'{"first": 1}', b"{}"):
        store.put(uri, data, JSON)
        client = s3_env.client()
        response = client.get_object(Bucket="results", Key=uri.removeprefix("s3://results/"))
        assert (response["Body"].read(), response["ContentType"]) == (data, JSON)
        client.close()


def test_threads_share_one_store(store: Writer, s3_env: S3Server) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.put(f"s3://results/own/threads/{n}", b"x" * n, JSON), range(64)))
    client = s3_env.client()
    listed = client.list_objects_v2(Bucket="results", Prefix="own/threads/")["Contents"]
    client.close()
    assert sorted(item["Size"] for item in listed) == list(range(64))


@pytest.mark.parametrize(
    ("status", "s3_code", "retryable"),
    [
        (404, "NoSuchBucket", False),
        (403, "AccessDenied", False),
        (400, "EntityTooLarge", False),
        (503, "SlowDown", True),
    ],
)
def test_answers_of_a_store(s3_env: S3Server, status: int, s3_code: str, retryable: bool) -> None:
    """Uses a server of our own, because the real one of these tests creates missing buckets."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # botocore waits for "100 Continue"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = f"<Error><Code>{s3_code}</Code></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        endpoint = S3Settings(endpoint_url=f"http://127.0.0.1:{server.server_port}")
        store = Writer(ResultSettings(store="s3://nowhere/"), endpoint)
        error = failure(store, "s3://nowhere/a.json")
        store.close()
        server.shutdown()
        thread.join()
    assert (error.code, error.retryable) == (ErrorCode.OUTPUT_FAILED, retryable)
    assert "s3://nowhere/a.json: the store" in error.message
    assert s3_code in error.message


def test_wrong_credentials(store: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    error = failure(store, "s3://results/own/a.json")
    assert (error.code, error.retryable) == (ErrorCode.OUTPUT_FAILED, False)
    assert "refused this worker's credentials" in error.message


def test_an_endpoint_where_nobody_listens(s3_env: S3Server, closed_port: int) -> None:
    store = Writer(ResultSettings(store="s3://results/"), S3Settings(endpoint_url=f"http://127.0.0.1:{closed_port}"))
    error = failure(store, "s3://results/a.json")
    assert (error.code, error.retryable) == (ErrorCode.OUTPUT_FAILED, True)
    store.close()


@pytest.mark.parametrize("uri", ["s3://other/a.json", "s3://results/a.json", "file:///tmp/a.json"])
def test_nothing_is_written_elsewhere(store: Writer, s3_env: S3Server, uri: str) -> None:
    assert failure(store, uri).code == ErrorCode.INPUT_FORBIDDEN


# --- files


def test_a_file(store: Writer, root: Path) -> None:
    for data in (b'{"first": 1}', b"{}"):
        store.put(f"file://{root}/new/folder/a%20b.json", data, JSON)
        assert (root / "new/folder/a b.json").read_bytes() == data
    assert [path.name for path in (root / "new/folder").iterdir()] == ["a b.json"]


def test_the_store_may_be_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    store = Writer(ResultSettings(store=f"file://{tmp_path}/not/yet/"), S3Settings())
    store.put(f"file://{tmp_path}/not/yet/a.json", b"{}", JSON)
    assert (tmp_path / "not/yet/a.json").read_bytes() == b"{}"
    with pytest.raises(PipeqError):
        store.check_allowed(f"file://{tmp_path}/not/yet/a.json")


def test_readers_never_see_half_a_file(store: Writer, root: Path) -> None:
    uri, path = f"file://{root}/a", root / "a"
    stop, seen = threading.Event(), set()
    store.put(uri, b"0" * 1_000_000, JSON)

    def read() -> None:
        while not stop.is_set():
            data = path.read_bytes()
            seen.add((len(data), len(set(data))))

    reader = threading.Thread(target=read)
    reader.start()
    for digit in b"123456789":
        store.put(uri, bytes([digit]) * 1_000_000, JSON)
    stop.set()
    reader.join()
    assert seen == {(1_000_000, 1)}


def test_a_write_that_fails_leaves_nothing(store: Writer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (root / "a").write_bytes(b"before")
    monkeypatch.setattr(disk.os, "fsync", full)
    error = failure(store, f"file://{root}/a")
    assert (error.code, error.retryable) == (ErrorCode.OUTPUT_FAILED, True)
    assert "No space left on device" in error.message
    assert (root / "a").read_bytes() == b"before"
    assert os.listdir(root) == ["a"]


def test_links_do_not_lead_out_of_the_root(store: Writer, root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"before")
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "file")
    (root / "dangling").symlink_to(outside / "new")
    for path in ("link/new", "file", "dangling", "../outside/new", "link/../new", "%2e%2e/outside/new"):
        error = failure(store, f"file://{root}/{path}")
        assert error.code == ErrorCode.INPUT_FORBIDDEN, path
    assert (outside / "file").read_bytes() == b"before"
    assert os.listdir(outside) == ["file"]


def test_a_link_that_appears_after_the_check_is_not_followed(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"before")
    (root / "link").symlink_to(outside)
    with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
        disk.write_below(str(root), "link/new", b"{}")
    # A rename replaces a link, and does not touch its target.
    (root / "file").symlink_to(outside / "file")
    disk.write_below(str(root), "file", b"{}")
    assert (outside / "file").read_bytes() == b"before"
    assert os.listdir(outside) == ["file"]


def test_what_cannot_be_written(store: Writer, root: Path) -> None:
    (root / "file").touch()
    (root / "folder").mkdir()
    for path in ("file/a", "folder", "folder/", "", "a" * 300):
        error = failure(store, f"file://{root}/{path}")
        assert (error.code, error.retryable) == (ErrorCode.OUTPUT_FAILED, False), path
    assert failure(store, "s3://results/tenant/").code == ErrorCode.OUTPUT_FAILED
    assert sorted(os.listdir(root)) == ["file", "folder"]


# --- the rows of a pack


class Away(Writer):
    """A store that is away for what has this in its name."""

    away = "nothing"

    def put(self, uri: str, data: bytes, media_type: str) -> None:
        if self.away in uri:
            raise PipeqError(ErrorCode.OUTPUT_FAILED, "the store is away", True)
        super().put(uri, data, media_type)


@pytest.mark.parametrize("away", ["nothing", "b.objects/", "b.json"])
def test_the_result_of_a_row_is_an_object_beside_its_parts(root: Path, away: str) -> None:
    """What cannot be written leaves its row, and no result that refers to what is not there."""
    pipeline = load_constant_pipeline("constant", PipelineSettings())
    rows = [PackRow({"text": name}, {"seconds": 0}, line, name, f"file://{root}/{name}.json")
        for line, name in enumerate("ab", 5)]  # fmt: skip
    pack = Pack(PackMessage("constant", (*rows, PackRow("c", line=7)), PackOf("nightly", 3), include_inputs=True))
    task = Task(id="nightly-3", pipeline=pipeline, call=pipeline.merge({}), pack=pack, is_list=True)
    task.inputs = [Input({"inputs": one.inputs}, True) for one in pack.rows]
    task.outputs = [[np.full((2, 2), 1.5)], [{"mask": np.zeros((2, 2)), "score": 2}], ["plain"]]
    settings = ResultSettings(allow=(f"file://{root}/",))
    writer = Away(settings, S3Settings())
    writer.away = away
    placer = Placer(settings, writer, signatures=None)  # type: ignore[arg-type] - no task gets a result of this one
    uploads = placer.convert(task)
    assert uploads is not None
    assert not list(root.iterdir())
    placer.upload(task, uploads)
    placer.close()
    writer.close()
    assert task.error is None
    assert pack.outcomes is not None
    done = json.loads(pack.outcomes.done)
    there = "ab" if away == "nothing" else "a"
    assert [one["result"] for one in done] == [*({"uri": f"file://{root}/{name}.json"} for name in there), "plain"]
    assert (pack.outcomes.left, pack.outcomes.left_codes) == (
        ([], {}) if there == "ab" else ([1], {"output_failed": 1})
    )
    assert [(one["inputs"], one["params"]) for one in done if one["line"] != 6] == [
        ({"text": "a"}, {"seconds": 0}),
        ("c", {}),
    ]
    first = json.loads((root / "a.json").read_text())
    assert first["pipeq"] == {
        "version": 1, "id": "nightly-line5", "pipeline": "constant", "custom_id": "a", "inputs": {"text": "a"},
        "params": {"seconds": 0},
    }  # fmt: skip
    assert np.load(first["result"]["uri"].removeprefix("file://")).tolist() == [[1.5, 1.5]] * 2
    assert (root / "b.json").exists() == (there == "ab")
