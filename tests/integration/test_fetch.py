"""FETCH: inline bytes, and objects of a real S3 store."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pipeq.contract.errors import ErrorCode
from pipeq.contract.message import Ref
from pipeq.demo.embedded import S3Server
from pipeq_worker.settings.sections import InputSettings, S3Settings
from pipeq_worker.stages.fetch import Fetcher

from tests.integration.fetching import Budget, WebServer, answer, chunked, failure, serve, use_s3

# --- inline


@pytest.fixture
def inline() -> Iterator[Fetcher]:
    fetcher = Fetcher(InputSettings(max_bytes=1000), S3Settings())
    yield fetcher
    fetcher.close()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000])
def test_inline_bytes(inline: Fetcher, size: int) -> None:
    budget = Budget()
    data = os.urandom(size)
    assert inline.fetch(Ref.from_bytes(data), budget) == data
    assert budget.sizes == [size]


def test_inline_bytes_beyond_the_limit(inline: Fetcher) -> None:
    budget = Budget()
    error = failure(inline, Ref.from_bytes(bytes(1001)), budget)
    assert error.code == ErrorCode.INPUT_TOO_LARGE
    assert error.message == "the inline input has 1001 bytes, and this worker reads 1000 ([inputs] max_bytes)"
    assert budget.sizes == []


def test_a_digest_that_differs_is_named_with_the_one_that_was_sent(inline: Fetcher) -> None:
    right, wrong = hashlib.sha256(b"abc").hexdigest(), hashlib.sha256(b"abd").hexdigest()
    ref = Ref.from_bytes(b"abc")
    assert inline.fetch(Ref(base64=ref.base64, sha256=right.upper())) == b"abc"
    error = failure(inline, Ref(base64=ref.base64, sha256=wrong))
    assert error.code == ErrorCode.INPUT_UNDECODABLE
    assert right in error.message
    assert wrong in error.message


# --- S3


@pytest.fixture(scope="module")
def talks(s3_server: S3Server) -> S3Server:
    """The shared S3 server with a bucket that may be read, and one that may not."""
    client = s3_server.client()
    for bucket in ("talks", "private"):
        client.create_bucket(Bucket=bucket)
    client.put_object(Bucket="talks", Key="a.bin", Body=bytes(range(256)) * 8)
    client.put_object(Bucket="talks", Key="a%20b?c=d#e f", Body=b"odd")
    client.put_object(Bucket="private", Key="a", Body=b"secret")
    client.close()
    return s3_server


@pytest.fixture
def s3_env(talks: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    use_s3(talks, monkeypatch, tmp_path)
    return talks


@pytest.fixture
def s3(s3_env: S3Server) -> Iterator[Fetcher]:
    inputs = InputSettings(allow=("s3://talks/", "s3://nowhere/"), max_bytes=4096, timeout_s=5)
    fetcher = Fetcher(inputs, S3Settings())
    yield fetcher
    fetcher.close()


def test_an_object(s3: Fetcher) -> None:
    budget = Budget()
    data = bytes(range(256)) * 8
    assert s3.fetch(Ref("s3://talks/a.bin", sha256=hashlib.sha256(data).hexdigest()), budget) == data
    assert budget.sizes == [2048]


def test_keys_are_taken_literally(s3: Fetcher) -> None:
    assert s3.fetch(Ref("s3://talks/a%20b?c=d#e f")) == b"odd"


def test_an_endpoint_from_the_settings(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    fetcher = Fetcher(InputSettings(allow=("s3://talks",)), S3Settings(endpoint_url=s3_env.endpoint_url))
    assert len(fetcher.fetch(Ref("s3://talks/a.bin"))) == 2048
    fetcher.close()


def test_sixteen_threads_share_one_fetcher(s3: Fetcher, recwarn: pytest.WarningsRecorder) -> None:
    barrier = threading.Barrier(16)

    def fetch(_: int) -> int:
        barrier.wait()
        return sum(len(s3.fetch(Ref("s3://talks/a.bin"))) for _ in range(10))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(fetch, range(16))) == [20_480] * 16
    assert not recwarn.list


def test_a_fetcher_works_again_after_close(s3: Fetcher) -> None:
    s3.close()
    assert s3.fetch(Ref("s3://talks/a%20b?c=d#e f")) == b"odd"


@pytest.mark.parametrize("key", ["missing", "a.bin/", "", "k" * 2000])
def test_missing_objects(s3: Fetcher, key: str) -> None:
    error = failure(s3, Ref(f"s3://talks/{key}"))
    assert error.code == ErrorCode.INPUT_NOT_FOUND
    assert f"s3://talks/{key}"[:200] in error.message


def test_a_missing_bucket(s3: Fetcher) -> None:
    error = failure(s3, Ref("s3://nowhere/a"))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_NOT_FOUND, False)
    assert "NoSuchBucket" in error.message


@pytest.mark.parametrize("uri", ["s3://private/a", "s3://talks/../private/a", "s3://talks/pub/../../private/a"])
def test_other_buckets_are_out_of_reach(s3: Fetcher, uri: str) -> None:
    # The S3 server of these tests accepts no "..". AWS accepts it in keys, where it has no meaning.
    error = failure(s3, Ref(uri))
    assert error.code in (ErrorCode.INPUT_FORBIDDEN, ErrorCode.INPUT_UNAVAILABLE, ErrorCode.INPUT_NOT_FOUND)
    assert not error.retryable


def test_an_object_beyond_the_limit_is_not_read(s3_env: S3Server) -> None:
    fetcher = Fetcher(InputSettings(allow=("s3://talks/",), max_bytes=2047), S3Settings())
    budget = Budget()
    error = failure(fetcher, Ref("s3://talks/a.bin"), budget)
    assert error.code == ErrorCode.INPUT_TOO_LARGE
    assert error.message == "s3://talks/a.bin has 2048 bytes, and this worker reads 2047 ([inputs] max_bytes)"
    assert budget.sizes == []
    fetcher.close()


def test_what_the_budget_raises_ends_the_fetch(s3: Fetcher) -> None:
    def refuse(size: int) -> None:
        raise LookupError(f"no room for {size}")

    with pytest.raises(LookupError, match="no room for 2048"):
        s3.fetch(Ref("s3://talks/a.bin"), refuse)
    assert len(s3.fetch(Ref("s3://talks/a.bin"))) == 2048


def test_wrong_credentials(s3: Fetcher, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    error = failure(s3, Ref("s3://talks/a.bin"))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_FORBIDDEN, False)
    assert "s3://talks/a.bin: the store refused this worker's credentials" in error.message
    assert s3_env.access_key not in "".join(traceback.format_exception(error))


def test_no_credentials(s3: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    error = failure(s3, Ref("s3://talks/a.bin"))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_FORBIDDEN, False)
    assert "no AWS credentials" in error.message


def test_an_endpoint_where_nobody_listens(s3_env: S3Server, closed_port: int) -> None:
    fetcher = Fetcher(InputSettings(allow=("s3://talks/",)), S3Settings(endpoint_url=f"http://127.0.0.1:{closed_port}"))
    error = failure(fetcher, Ref("s3://talks/a.bin"))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, True)
    fetcher.close()


@pytest.mark.parametrize("endpoint_url", ["localhost:9000", "nonsense"])
def test_an_endpoint_that_is_none(s3_env: S3Server, endpoint_url: str) -> None:
    fetcher = Fetcher(InputSettings(allow=("s3://talks/",)), S3Settings(endpoint_url=endpoint_url))
    error = failure(fetcher, Ref("s3://talks/a.bin"))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, False)
    fetcher.close()


@pytest.fixture
def broken_store() -> Iterator[WebServer]:
    yield from serve(WebServer())


def broken_s3(server: WebServer) -> Fetcher:
    s3 = S3Settings(endpoint_url=f"http://127.0.0.1:{server.port}", region="us-east-1")
    return Fetcher(InputSettings(allow=("s3://b/",), timeout_s=1, max_bytes=1000), s3)


@pytest.mark.parametrize(
    ("status", "s3_code", "code", "retryable"),
    [
        (503, "SlowDown", ErrorCode.INPUT_UNAVAILABLE, True),
        (500, "InternalError", ErrorCode.INPUT_UNAVAILABLE, True),
        (429, "TooManyRequests", ErrorCode.INPUT_UNAVAILABLE, True),
        (400, "ExpiredToken", ErrorCode.INPUT_FORBIDDEN, False),
        (403, "AccessDenied", ErrorCode.INPUT_FORBIDDEN, False),
        (404, "NoSuchKey", ErrorCode.INPUT_NOT_FOUND, False),
        (400, "InvalidRequest", ErrorCode.INPUT_UNAVAILABLE, False),
    ],
)
def test_answers_of_a_store(
    s3_env: S3Server, broken_store: WebServer, status: int, s3_code: str, code: str, retryable: bool
) -> None:
    body = f"<Error><Code>{s3_code}</Code><Message>arn:aws:iam::1:role/worker</Message></Error>".encode()
    broken_store.answers["/b/k"] = lambda handler: answer(handler, status, body)
    fetcher = broken_s3(broken_store)
    error = failure(fetcher, Ref("s3://b/k"))
    assert (error.code, error.retryable) == (code, retryable)
    assert "s3://b/k: the store" in error.message
    assert s3_code in error.message
    # Few tries inside botocore, because the worker's own tries come after them.
    assert len(broken_store.requests) <= 3
    if code == ErrorCode.INPUT_FORBIDDEN:
        assert "arn:" not in error.message
    fetcher.close()


def test_a_store_that_breaks_off(s3_env: S3Server, broken_store: WebServer) -> None:
    def break_off(handler: http.server.BaseHTTPRequestHandler) -> None:
        answer(handler, 200, b"short", Content_Length="500")
        handler.close_connection = True

    broken_store.answers["/b/k"] = break_off
    fetcher, budget = broken_s3(broken_store), Budget()
    error = failure(fetcher, Ref("s3://b/k"), budget)
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, True)
    assert budget.sizes == [500]
    fetcher.close()


def test_a_store_that_stalls(s3_env: S3Server, broken_store: WebServer) -> None:
    done = threading.Event()

    def stall(handler: http.server.BaseHTTPRequestHandler) -> None:
        answer(handler, 200, b"short", Content_Length="500")
        done.wait(10)
        handler.close_connection = True

    broken_store.answers["/b/k"] = stall
    fetcher, budget = broken_s3(broken_store), Budget()
    error = failure(fetcher, Ref("s3://b/k"), budget)
    done.set()
    assert budget.sizes == [500]
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, True)
    fetcher.close()


def test_a_store_that_does_not_say_its_size(s3_env: S3Server, broken_store: WebServer) -> None:
    for key, size in (("fits", 1000), ("large", 1001)):
        broken_store.answers[f"/b/{key}"] = lambda handler, size=size: chunked(handler, bytes(size))  # type: ignore[misc]
    fetcher = broken_s3(broken_store)
    budget = Budget()
    assert fetcher.fetch(Ref("s3://b/fits"), budget) == bytes(1000)
    assert budget.sizes == [1000]
    assert failure(fetcher, Ref("s3://b/large")).code == ErrorCode.INPUT_TOO_LARGE
    fetcher.close()
