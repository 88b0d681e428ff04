"""Whose fault an error is: every kind of a worker's own faults, and its neighbours that are none, in each stage."""

from __future__ import annotations

import errno
import os
import resource
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pipeq.contract.errors import Blame, ErrorCode, PipeqError
from pipeq.contract.message import Ref
from pipeq.demo.embedded import S3Server
from pipeq_worker.children import protocol
from pipeq_worker.models.constant_pipeline import ConstantPipeline
from pipeq_worker.settings.sections import InputSettings, PipelineSettings, ResultSettings, S3Settings
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stages.infer import infer
from pipeq_worker.stages.task import Item, Task
from pipeq_worker.stores import disk
from pipeq_worker.stores.writer import Writer

from tests.integration.fetching import Dns, WebServer, answer, serve, use_s3

JSON = "application/json"
BUCKETS = ("s3://inputs/", "s3://no-such-bucket-here/")


@contextmanager
def no_file_handles() -> Iterator[None]:
    """Takes all file handles that this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    taken: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            taken.extend(iter(lambda: os.open("/dev/null", os.O_RDONLY), -1))
        yield
    finally:
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Place:
    """What a case may change, and what it is asked about."""

    def __init__(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch, folder: Path, web: WebServer, closed_port: int
    ) -> None:
        self.server, self.monkeypatch, self.folder, self.web = server, monkeypatch, folder, web
        self.closed_port = closed_port
        self.s3 = S3Settings()
        self.uri = "s3://inputs/blame/a.bin"

    def answers(self, status: int, code: str) -> None:
        """The store answers everything in this way."""
        body = f"<Error><Code>{code}</Code></Error>".encode()
        self.s3 = S3Settings(endpoint_url=f"http://127.0.0.1:{self.web.port}", region="us-east-1")
        self.web.answers["/inputs/blame/a.bin"] = lambda handler: answer(handler, status, body)

    def without_credentials(self) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            self.monkeypatch.delenv(name)

    def env(self, name: str, value: str) -> None:
        self.monkeypatch.setenv(name, value)

    def endpoint(self, url: str) -> None:
        self.s3 = S3Settings(endpoint_url=url)

    def unknown_host(self) -> None:
        Dns(self.monkeypatch)
        self.endpoint("http://no-such-store.example:9000")

    def named(self, uri: str) -> None:
        self.uri = uri


def nobody_listens(place: Place) -> None:
    place.endpoint(f"http://127.0.0.1:{place.closed_port}")


#: What is wrong with S3, and whose fault it is.
S3_CASES: dict[str, tuple[Callable[[Place], None], Blame]] = {
    "no credentials": (Place.without_credentials, Blame.WORKER),
    "a wrong secret": (lambda place: place.env("AWS_SECRET_ACCESS_KEY", "wrong"), Blame.WORKER),
    "an unknown key id": (lambda place: place.env("AWS_ACCESS_KEY_ID", "unknown"), Blame.WORKER),
    "an expired token": (lambda place: place.answers(400, "ExpiredToken"), Blame.WORKER),
    "a clock that is wrong": (lambda place: place.answers(403, "RequestTimeTooSkewed"), Blame.WORKER),
    "a host that nobody knows": (Place.unknown_host, Blame.WORKER),
    "an endpoint that is no URL": (lambda place: place.endpoint("nonsense"), Blame.WORKER),
    "access to this place denied": (lambda place: place.answers(403, "AccessDenied"), Blame.EITHER),
    "no such bucket": (lambda place: place.named("s3://no-such-bucket-here/a.bin"), Blame.EITHER),
    "a bucket that the store does not know": (lambda place: place.answers(404, "NoSuchBucket"), Blame.EITHER),
    "nobody listens": (nobody_listens, Blame.TASK),
    "throttled": (lambda place: place.answers(503, "SlowDown"), Blame.TASK),
    "broken": (lambda place: place.answers(500, "InternalError"), Blame.TASK),
    "a request that is none": (lambda place: place.answers(400, "InvalidRequest"), Blame.TASK),
}


@pytest.fixture
def place(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed_port: int) -> Iterator[Place]:
    s3_server.client().put_object(Bucket="inputs", Key="blame/a.bin", Body=b"abc")
    use_s3(s3_server, monkeypatch, tmp_path)
    for web in serve(WebServer()):
        yield Place(s3_server, monkeypatch, tmp_path, web, closed_port)


def fetched(place: Place, uri: str | None = None) -> PipeqError:
    fetcher = Fetcher(InputSettings(allow=(*BUCKETS, f"file://{place.folder}/"), timeout_s=2), place.s3)
    with pytest.raises(PipeqError) as error:
        fetcher.fetch(Ref(uri or place.uri))
    fetcher.close()
    return error.value


def written(place: Place, uri: str, results: ResultSettings) -> PipeqError:
    writer = Writer(results, place.s3)
    with pytest.raises(PipeqError) as error:
        writer.put(uri, b"abc", JSON)
    writer.close()
    return error.value


@pytest.mark.parametrize("case", S3_CASES)
def test_fetch_from_s3(case: str, place: Place) -> None:
    breaks, blame = S3_CASES[case]
    breaks(place)
    error = fetched(place)
    assert error.blame is blame, error
    assert place.server.secret_key not in "".join(traceback.format_exception(error))


# The server of the tests creates a bucket that is written to.
@pytest.mark.parametrize("case", [case for case in S3_CASES if case != "no such bucket"])
@pytest.mark.parametrize("whose", ["the worker's own store", "a place that the producer chose"])
def test_write_to_s3(case: str, whose: str, place: Place) -> None:
    breaks, blame = S3_CASES[case]
    breaks(place)
    if whose == "the worker's own store":
        # What the worker chose itself, no task can have got wrong.
        blame = Blame.WORKER if blame is Blame.EITHER else blame
        results = ResultSettings(store=place.uri.removesuffix("a.bin"))
    else:
        results = ResultSettings(allow=(place.uri.removesuffix("a.bin"),))
    if "answers" in breaks.__code__.co_names:
        place.web.RequestHandlerClass.do_PUT = place.web.RequestHandlerClass.do_GET  # type: ignore[attr-defined]
    error = written(place, place.uri, results)
    assert (error.code, error.blame) == (ErrorCode.OUTPUT_FAILED, blame), error


def test_a_key_that_is_not_there_is_the_tasks(place: Place) -> None:
    error = fetched(place, "s3://inputs/blame/none")
    assert (error.code, error.blame) == (ErrorCode.INPUT_NOT_FOUND, Blame.TASK)
    assert fetched(place, "https://not.allowed/a").blame is Blame.TASK


def test_no_file_handles(place: Place) -> None:
    fetcher = Fetcher(InputSettings(allow=(*BUCKETS, f"file://{place.folder}/")), place.s3)
    writer = Writer(ResultSettings(allow=("s3://results/", f"file://{place.folder}/")), place.s3)
    (place.folder / "a").write_bytes(b"abc")
    fetcher.fetch(Ref(place.uri))  # so that libraries are loaded, and a client is there
    writer.put("s3://results/blame", b"", JSON)
    found = {}
    # A connection that is kept open needs no new handle.
    fetcher.close()
    writer.close()
    fetcher.warm_up()
    with no_file_handles():
        for name, call in {
            "fetch s3": lambda: fetcher.fetch(Ref(place.uri)),
            "fetch file": lambda: fetcher.fetch(Ref(f"file://{place.folder}/a")),
            "write file": lambda: writer.put(f"file://{place.folder}/b", b"", JSON),
        }.items():
            try:
                call()
            except PipeqError as error:
                found[name] = error.blame
    assert found == dict.fromkeys(("fetch s3", "fetch file", "write file"), Blame.WORKER)
    assert fetcher.fetch(Ref(place.uri)) == b"abc"
    writer.put("s3://results/blame", b"", JSON)
    fetcher.close()
    writer.close()


@pytest.mark.parametrize(
    ("number", "blame"),
    [
        (errno.ENOSPC, Blame.WORKER),
        (errno.EDQUOT, Blame.WORKER),
        (errno.EROFS, Blame.WORKER),
        (errno.EMFILE, Blame.WORKER),
        (errno.ENOMEM, Blame.WORKER),
        (errno.EACCES, Blame.EITHER),
        (errno.EPERM, Blame.EITHER),
        (errno.EIO, Blame.TASK),
        (errno.ENAMETOOLONG, Blame.TASK),
    ],
    ids=lambda value: errno.errorcode.get(value, value) if isinstance(value, int) else str(value),
)
def test_a_disk(number: int, blame: Blame, place: Place) -> None:
    """Tests may run as root, to whom nothing is denied, and on a disk with room."""

    def fails(*_: Any, **__: Any) -> int:
        raise OSError(number, os.strerror(number))

    file = f"file://{place.folder}/a"
    (place.folder / "a").write_bytes(b"abc")
    place.monkeypatch.setattr(disk.os, "open", fails)
    assert fetched(place, file).blame is blame
    assert written(place, file, ResultSettings(allow=(f"file://{place.folder}/",))).blame is blame
    own = Blame.WORKER if blame is Blame.EITHER else blame
    assert written(place, file, ResultSettings(store=f"file://{place.folder}/")).blame is own


def test_a_folder_that_is_not_there(place: Place) -> None:
    folder = place.folder / "mount"
    fetcher = Fetcher(InputSettings(allow=(f"file://{folder}/",)), place.s3)
    with pytest.raises(PipeqError) as error:
        fetcher.fetch(Ref(f"file://{folder}/a"))
    assert (error.value.code, error.value.blame) == (ErrorCode.INPUT_NOT_FOUND, Blame.EITHER)
    folder.mkdir()
    with pytest.raises(PipeqError) as error:
        fetcher.fetch(Ref(f"file://{folder}/a"))
    assert (error.value.code, error.value.blame) == (ErrorCode.INPUT_NOT_FOUND, Blame.TASK)
    fetcher.close()


#: What a library may raise in any other stage, and whose fault it is.
RAISED: dict[str, tuple[BaseException, Blame]] = {
    "no file handles": (OSError(errno.EMFILE, "too many open files"), Blame.WORKER),
    "a full disk": (OSError(errno.ENOSPC, "no space left"), Blame.WORKER),
    "no threads": (RuntimeError("can't start new thread"), Blame.WORKER),
    "too much memory": (MemoryError(), Blame.TASK),
    "a bad input": (ValueError("bad"), Blame.TASK),
}


@pytest.mark.parametrize("case", RAISED)
def test_decode_and_prepare(case: str) -> None:
    raised, blame = RAISED[case]
    task = Task(id="t")
    error = PipeqError(ErrorCode.INPUT_UNDECODABLE, "it cannot be decoded")
    error.__cause__ = raised
    task.fail(error)
    assert task.error is not None
    assert task.error.blame is blame
    # As the host hears it.
    (ended,) = protocol.for_host(
        protocol.encode([protocol.Ended(1, protocol.Error.of(task.error), b"null", None, {}, 0.0)])
    )
    assert isinstance(ended, protocol.Ended)
    assert ended.error is not None
    heard = ended.error.error()
    assert (heard.args, heard.blame) == (task.error.args, blame)
    assert heard.bare("inputs[1]: ").blame is blame


class Fails(ConstantPipeline):
    """Its forward pass raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("it", PipelineSettings(task="constant"))
        self.error = error
        self.passes = 0

    def forward(self, features: list[Any], call: Any, running: Any = None) -> list[Any]:
        self.passes += 1
        raise self.error


@pytest.mark.parametrize("case", [*RAISED, "weights that went away"])
def test_infer(case: str) -> None:
    gone = FileNotFoundError(errno.ENOENT, "No such file", "weights.dat")
    raised, blame = RAISED.get(case, (gone, Blame.WORKER))
    pipeline = Fails(raised)
    items: list[Item] = [Item(Task(id=str(at)), 0, 0, at, group="g", cost=1, nbytes=1) for at in range(8)]
    infer(pipeline, items)
    assert {item.error.blame for item in items if item.error is not None} == {blame}
    # The halves of a batch that failed by a fault of the worker would fail, too.
    assert pipeline.passes == (1 if blame is Blame.WORKER else 15)
