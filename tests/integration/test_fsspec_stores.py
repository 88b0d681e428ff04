"""gs, az and hf over their own libraries, against a server on loopback; and any other, over fsspec's memory."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pipeq.contract import schemes
from pipeq.contract.errors import ErrorCode, MissingPackageError, PipeqError, SettingsError
from pipeq.contract.message import Ref
from pipeq.read_allow import ReadAllow
from pipeq.results import read_result
from pipeq_worker.models.model_archive import unpacked
from pipeq_worker.settings.sections import InputSettings, ResultSettings, S3Settings
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stores import fsspec_store, registry
from pipeq_worker.stores.base import Access, Fault, StoreError
from pipeq_worker.stores.writer import Writer

from tests.integration.fetching import Budget, failure
from tests.object_servers import ObjectServer, object_server

OURS = ("gs", "az", "hf")
WRITABLE = ("gs", "az")
# Their libraries leave sessions and tasks to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@dataclass
class Place:
    """A store of one scheme, its objects, and how to disturb them."""

    scheme: str
    server: ObjectServer
    fetchers: list[Any] = field(default_factory=list)

    def uri(self, key: str, bucket: str = "inputs") -> str:
        return f"{self.scheme}://{self._bucket(bucket)}/{key}"

    def _bucket(self, name: str) -> str:
        return f"{name}/model" if self.scheme == "hf" else name

    def put(self, key: str, data: bytes, bucket: str = "inputs") -> None:
        self.server.objects[f"{self._bucket(bucket)}/{key}"] = data

    def fetcher(self, **more: Any) -> Fetcher:
        inputs = {"allow": (self.uri(""), self.uri("", "nowhere")), "max_bytes": 2**25, "timeout_s": 5} | more
        made = Fetcher(InputSettings(**inputs), S3Settings())
        self.fetchers.append(made)
        return made

    def writer(self, **more: Any) -> Writer:
        made = Writer(ResultSettings(allow=(self.uri("results/"),), **more), S3Settings())
        self.fetchers.append(made)
        return made


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with object_server() as server:
        yield server


@pytest.fixture(params=OURS)
def place(request: pytest.FixtureRequest, server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    lead(server, monkeypatch)
    made = Place(request.param, server)
    made.put("a.bin", bytes(range(256)) * 8)
    yield made
    for one in made.fetchers:
        one.close()


def lead(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leads the three libraries to a server, and to no account of the computer that runs the tests."""
    from adlfs.spec import AzureBlobFileSystem
    from gcsfs.core import GCSFileSystem
    from huggingface_hub import constants

    # A client reads results through instances that fsspec keeps: one that knows the server of an earlier test would ask
    # for a minute and more whoever listens at its port now, if anybody does.
    for kind in (AzureBlobFileSystem, GCSFileSystem):
        kind.clear_instance_cache()
    # What FSSPEC_GS_TOKEN and FSSPEC_HF_ENDPOINT say, where they are set before Python starts.
    for name in ("gs", "gcs"):
        monkeypatch.setitem(fsspec.config.conf, name, {"token": "anon"})
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.url})
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.azure)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)


# --- reading


def test_an_object(place: Place) -> None:
    data, budget = bytes(range(256)) * 8, Budget()
    ref = Ref(place.uri("a.bin"), sha256=hashlib.sha256(data).hexdigest())
    assert place.fetcher().fetch(ref, budget) == data
    assert budget.sizes == [2048]


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 20_000])
def test_an_object_is_read_block_by_block(place: Place, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(fsspec_store, "BLOCK_BYTES", 4096)
    data = bytes(at % 251 for at in range(size))
    place.put("b", data)
    assert place.fetcher().fetch(Ref(place.uri("b"))) == data


def test_names_are_taken_literally(place: Place) -> None:
    key = "a b/c%20d+e&f=ü" + ("?g#h" if place.scheme == "gs" else "")
    place.put(key, b"odd")
    assert place.fetcher().fetch(Ref(place.uri(key))) == b"odd"


@pytest.mark.parametrize("key", ["missing", "a.bin/", "", "folder/missing"])
def test_missing_objects(place: Place, key: str) -> None:
    error = failure(place.fetcher(), Ref(place.uri(key)))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_NOT_FOUND, False)
    assert place.uri(key) in error.message


def test_a_missing_bucket(place: Place) -> None:
    error = failure(place.fetcher(), Ref(place.uri("a", "nowhere")))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_NOT_FOUND, False)


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (401, ErrorCode.INPUT_FORBIDDEN, False),
        (403, ErrorCode.INPUT_FORBIDDEN, False),
        (400, ErrorCode.INPUT_UNAVAILABLE, False),
        (429, ErrorCode.INPUT_UNAVAILABLE, True),
        (500, ErrorCode.INPUT_UNAVAILABLE, True),
        (503, ErrorCode.INPUT_UNAVAILABLE, True),
    ],
)
def test_answers_of_a_store(place: Place, status: int, code: str, retryable: bool) -> None:
    place.server.status = status
    # Libraries try again for a minute and more: the deadline of a fetch ends that.
    error = failure(place.fetcher(max_fetch_s=1 if retryable else 30), Ref(place.uri("a.bin")))
    assert (error.code, error.retryable) == (code, retryable), error.message
    assert place.uri("a.bin") in error.message


def test_a_server_that_is_not_there(place: Place) -> None:
    place.server.shutdown()
    place.server.server_close()
    error = failure(place.fetcher(max_fetch_s=1), Ref(place.uri("a.bin")))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, True)


def test_an_object_beyond_the_limit_is_not_read(place: Place) -> None:
    budget = Budget()
    error = failure(place.fetcher(max_bytes=2047), Ref(place.uri("a.bin")), budget)
    assert error.code == ErrorCode.INPUT_TOO_LARGE
    assert error.message.endswith("has 2048 bytes, and this worker reads 2047 ([inputs] max_bytes)")
    assert budget.sizes == []


def test_what_the_budget_raises_ends_the_fetch(place: Place) -> None:
    def refuse(size: int) -> None:
        raise LookupError(f"no room for {size}")

    with pytest.raises(LookupError, match="no room for 2048"):
        place.fetcher().fetch(Ref(place.uri("a.bin")), refuse)


def test_a_store_that_drips_ends_at_the_deadline(place: Place) -> None:
    place.server.drip_s = 0.2  # 400 s in all
    began = time.monotonic()
    error = failure(place.fetcher(max_fetch_s=1.5), Ref(place.uri("a.bin")))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, True)
    assert "took over 1.5 s to read ([inputs] max_fetch_s)" in error.message
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("size", [3000, 9000])
def test_an_object_that_changes_while_it_is_read(place: Place, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Another one of the same size is told by its version, where more than one request reads it."""
    monkeypatch.setattr(fsspec_store, "BLOCK_BYTES", 4096)
    place.put("b", bytes(size))
    place.server.before_content = lambda: place.put("b", b"1" * (size + (size < 4096)))
    error = failure(place.fetcher(), Ref(place.uri("b")))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, True)
    assert "change" in error.message


# --- what is allowed


def test_other_places_are_out_of_reach(place: Place) -> None:
    place.put("secret", b"secret", "private")
    error = failure(place.fetcher(), Ref(place.uri("secret", "private")))
    assert error.code == ErrorCode.INPUT_FORBIDDEN
    line = place.uri("", "private")
    assert error.message == (
        f"this worker's settings do not allow {place.uri('secret', 'private')}: "
        f'add "{line}" to [inputs] allow, or start the worker with --allow {line}'
    )
    assert place.server.requests == []


@pytest.mark.parametrize(
    "key", "../b a/../b %2e%2e/b a/%252e%252e/b a/..;x/b a/..\\b a\tb a/..\tb a\nb a\x00b".split(" ")
)
def test_names_that_lead_elsewhere(place: Place, key: str) -> None:
    error = failure(place.fetcher(), Ref(place.uri(key)))
    assert error.code == ErrorCode.INPUT_FORBIDDEN
    assert "is not touched" in error.message
    assert place.server.requests == []


@pytest.mark.parametrize("key", ["a?b", "a#b", "..#b", "a@b", "a:b", "a?sig=SECRET"])
def test_characters_that_the_library_of_az_takes_for_something_else(server: ObjectServer, key: str) -> None:
    store = registry.OURS["az"]
    with pytest.raises(ValueError, match="which its library reads otherwise") as error:
        store.prefix(f"az://inputs/{key}")
    assert "SECRET" not in str(error.value)


# --- writing


@pytest.mark.parametrize("scheme", WRITABLE)
def test_a_result(server: ObjectServer, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    lead(server, monkeypatch)
    place = Place(scheme, server)
    writer = place.writer()
    for data in (b'{"first": 1}', b"{}"):
        writer.put(place.uri("results/a b.json"), data, "application/json")
        assert server.objects["inputs/results/a b.json"] == data
        assert server.types["inputs/results/a b.json"] == "application/json"
    # The client of the same scheme reads it, if it is told to.
    uri = place.uri("results/a b.json")
    assert read_result(uri, ReadAllow([place.uri("results/")])) == {}
    with pytest.raises(PipeqError, match="this client was not told to read"):
        read_result(uri, ReadAllow([]))
    with pytest.raises(PipeqError) as missing:
        read_result(place.uri("results/none"), ReadAllow([place.uri("results/")]))
    assert missing.value.code == ErrorCode.OUTPUT_FAILED
    writer.remove(uri)
    assert server.objects == {}
    writer.close()


@pytest.mark.parametrize("scheme", WRITABLE)
@pytest.mark.parametrize(("status", "retryable"), [(403, False), (400, False), (503, True)])
def test_a_result_that_is_not_taken(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, scheme: str, status: int, retryable: bool
) -> None:
    lead(server, monkeypatch)
    place = Place(scheme, server)
    server.status = status
    with pytest.raises(PipeqError) as error:
        place.writer(max_write_s=1 if retryable else 30).put(place.uri("results/a"), b"{}", "application/json")
    assert (error.value.code, error.value.retryable) == (ErrorCode.OUTPUT_FAILED, retryable), error.value.message
    assert server.objects == {}


@pytest.mark.parametrize("scheme", WRITABLE)
def test_output_elsewhere_is_forbidden(server: ObjectServer, scheme: str) -> None:
    place = Place(scheme, server)
    for uri in (place.uri("a"), place.uri("results/../a"), place.uri("results/a", "other")):
        for call in (place.writer().check_allowed, lambda uri: place.writer().put(uri, b"", "text/plain")):
            with pytest.raises(PipeqError) as error:
                call(uri)
            assert error.value.code == ErrorCode.INPUT_FORBIDDEN
    with pytest.raises(PipeqError) as error:
        place.writer().put(place.uri("results/"), b"", "text/plain")
    assert error.value.code == ErrorCode.OUTPUT_FAILED


def test_nothing_is_written_to_the_hub() -> None:
    writer = Writer(ResultSettings(), S3Settings())
    with pytest.raises(PipeqError, match=r"cannot be written: output goes to s3://, file://, gs:// or az://"):
        writer.check_allowed("hf://user/model/a")


# --- models, and what a worker looks at before it starts


@pytest.mark.parametrize("scheme", WRITABLE)
def test_a_version_changes_with_the_content(server: ObjectServer, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    lead(server, monkeypatch)
    place = Place(scheme, server)
    store = registry.OURS[scheme](Access(5, 1))
    versions = set()
    for data in (b"1", b"2"):
        place.put("a", data)
        versions.add(store.version(store.split(place.uri("a")), "it"))
    assert len(versions) == 2


@pytest.mark.parametrize("scheme", WRITABLE)
def test_a_model_in_an_archive(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str
) -> None:
    lead(server, monkeypatch)
    monkeypatch.setenv("PIPEQ_CACHE", str(tmp_path))
    place = Place(scheme, server)
    uri = place.uri("models/it.zip")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("config.json", "{}")
    place.put("models/it.zip", packed.getvalue())
    folder = unpacked(uri, S3Settings())
    assert [path.name for path in Path(folder).iterdir()] == ["config.json"]
    # The second time, its version alone is asked for.
    read: list[str] = []
    server.before_content = lambda: read.append("content")
    assert unpacked(uri, S3Settings()) == folder
    assert read == []
    with pytest.raises(SettingsError, match="is no archive"):
        unpacked(place.uri("models/"), S3Settings())
    with pytest.raises(SettingsError, match="cannot be used"):
        unpacked(place.uri("../it.zip"), S3Settings())


def test_look(place: Place) -> None:
    store = registry.OURS[place.scheme](Access(5, 1))
    store.look(place.uri(""), "it")
    with pytest.raises(StoreError) as error:
        store.look(place.uri("", "nowhere"), "it")
    assert error.value.fault is Fault.MISSING


# --- without the library


@pytest.mark.parametrize("scheme", OURS)
def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    package = schemes.SCHEMES[scheme].package
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else real(name, *more))
    uri = f"{scheme}://user/name/a"
    said = f"{scheme}:// needs the package {package}, which is not installed: pip install 'pipeq[{scheme}]'"
    # The worker does not start; a task that names such a reference is refused before anything is asked for.
    with pytest.raises(MissingPackageError, match="pip install") as error:
        Fetcher(InputSettings(allow=(uri,)), S3Settings())
    assert error.value.message == said
    assert failure(Fetcher(InputSettings(), S3Settings()), Ref(uri)).code == ErrorCode.INPUT_FORBIDDEN
    if scheme in WRITABLE:
        with pytest.raises(MissingPackageError):
            Writer(ResultSettings(allow=(uri,)), S3Settings())
        with pytest.raises(MissingPackageError) as client:
            read_result(uri, ReadAllow([uri]))
        assert client.value.message == said


# --- a synchronous file system


class Memory(fsspec_store.FsspecStore):
    """Over fsspec's own memory, which is synchronous."""

    scheme = "memory"
    writable = True
    version_fields = ("created",)

    def build(self) -> Any:
        return fsspec.filesystem("memory", skip_instance_cache=True)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setitem(registry.OURS, "memory", Memory)
    monkeypatch.setitem(schemes.SCHEMES, "memory", schemes.Scheme("memory", writable=True, first="bucket"))
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()


def test_memory(memory: Any) -> None:
    writer = Writer(ResultSettings(allow=("memory://b/",)), S3Settings())
    writer.put("memory://b/a", b"data", "text/plain")
    fetcher = Fetcher(InputSettings(allow=("memory://b/",), max_fetch_s=60), S3Settings())
    assert fetcher.fetch(Ref("memory://b/a")) == b"data"
    assert failure(fetcher, Ref("memory://b/none")).code == ErrorCode.INPUT_NOT_FOUND
    writer.remove("memory://b/a")
    assert failure(fetcher, Ref("memory://b/a")).code == ErrorCode.INPUT_NOT_FOUND


def test_a_call_that_does_not_end_is_left_alone(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of abandoned calls is at most the number of threads."""
    memory.pipe_file("/b/a", b"data")
    asked = []

    def hang(*_: Any, **__: Any) -> None:
        asked.append(1)
        time.sleep(60)

    monkeypatch.setattr(type(memory), "info", hang)
    fetcher = Fetcher(InputSettings(allow=("memory://b/",), max_fetch_s=0.3), S3Settings(), threads=2)
    for _ in range(4):
        began = time.monotonic()
        error = failure(fetcher, Ref("memory://b/a"))
        assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, True)
        assert "took over 0.3 s" in error.message
        assert time.monotonic() - began < 30
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (FileNotFoundError("x"), Fault.MISSING),
        (IsADirectoryError("x"), Fault.MISSING),
        (PermissionError("x"), Fault.REFUSED),
        (TimeoutError("x"), Fault.PASSING),
        (TimeoutError(), Fault.PASSING),
        (ConnectionResetError("x"), Fault.PASSING),
        (OSError("x"), Fault.PASSING),
        (ValueError("x"), Fault.PERMANENT),
        (NotImplementedError("x"), Fault.PERMANENT),
        (RuntimeError("x"), Fault.PASSING),
    ],
)
def test_errors_of_a_file_system(memory: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, fault: Fault) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(type(memory), "info", fail)
    fetcher = Fetcher(InputSettings(allow=("memory://b/",)), S3Settings())
    said = failure(fetcher, Ref("memory://b/a"))
    assert (said.code, said.retryable) == (
        StoreError(fault, "").of_input().code,
        fault is Fault.PASSING,
    )
