"""A server sends a byte now and then, at each place where it can: the fetch still ends at `max_fetch_s`.

The servers are real, and their answers would take minutes. Each byte comes well before `timeout_s`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import Ref
from pipeq.demo.embedded import S3Server
from pipeq_worker.settings.sections import InputSettings, ResultSettings, S3Settings
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stores import writer

from tests.integration.fetching import Dns, WebServer, answer, failure, serve, use_s3
from tests.proxy import Proxy
from tests.waiting import until

# If an answer cannot be read, frames of urllib3 and botocore keep its connection until the garbage collector runs.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

MAX_FETCH_S = 1.0
TIMEOUT_S = 0.7
DRIP_S = 0.2
#: Time that a busy machine may need beyond the deadline; without a deadline each case takes over a minute.
GRACE_S = 100.0


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def context(authority: trustme.CA) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("store.example").configure_cert(made)
    return made


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    answers = Dns(monkeypatch)
    answers.hosts = {"store.example": ["127.0.0.1"]}
    return answers


class RawServer:
    """Sends fixed bytes slowly after any request on any connection."""

    def __init__(self, context: ssl.SSLContext | None, send: Callable[[socket.socket], None]) -> None:
        self._context = context
        self._send = send
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
            with client:
                while client.recv(65536):
                    self._send(client)

    def close(self) -> None:
        # Otherwise the thread goes on to wait, and lets one more client in.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@contextlib.contextmanager
def raw(context: ssl.SSLContext | None, send: Callable[[socket.socket], None]) -> Iterator[RawServer]:
    server = RawServer(context, send)
    try:
        yield server
    finally:
        server.close()


def dripping(begin: bytes, drip: bytes) -> Callable[[socket.socket], None]:
    def send(client: socket.socket) -> None:
        client.sendall(begin)
        for _ in range(2000):
            for at in range(len(drip)):
                client.sendall(drip[at : at + 1])
                time.sleep(DRIP_S)

    return send


def https(authority: trustme.CA, port: int, folder: Path, **more: object) -> Fetcher:
    if not (folder / "ca.pem").exists():
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    fields = {"timeout_s": TIMEOUT_S, "max_fetch_s": MAX_FETCH_S} | more
    return Fetcher(
        InputSettings(
            allow=(f"https://store.example:{port}/",),
            private_networks=("127.0.0.0/8",),
            ca_bundle=folder / "ca.pem",
            **fields,
        ),
        S3Settings(),
    )


def ends_in_time(fetcher: Fetcher, uri: str) -> None:
    began = time.monotonic()
    error = failure(fetcher, Ref(uri))
    assert time.monotonic() - began < MAX_FETCH_S + GRACE_S
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, True)
    assert "took over 1 s to read ([inputs] max_fetch_s)" in error.message
    fetcher.close()


def at_once(fetch: Callable[[str], None], places: list[str]) -> None:
    """Runs the cases in parallel, because they only wait."""
    with ThreadPoolExecutor(len(places)) as pool:
        for place, future in [(place, pool.submit(fetch, place)) for place in places]:
            try:
                future.result()
            except AssertionError as error:
                raise AssertionError(place) from error


OK = b"HTTP/1.1 200 OK\r\n"
PLACES = {
    "status line": (b"", b"HTTP/1.1 200 OOOOOOOOOOOOOOOOOOOOOOO"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "header": (OK + b"X: ", b"y"),
    "headers": (OK, b"X: y\r\n"),
    "body": (OK + b"Content-Length: 500\r\n\r\n", b"y"),
    "body without a size": (OK + b"Connection: close\r\n\r\n", b"y"),
    "chunk size": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "chunk extension": (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\ny\r\n"),
    "chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\n", b"y"),
    "trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\ny\r\n0\r\n", b"X: y\r\n"),
    "body of an error": (b"HTTP/1.1 503 Slow\r\nContent-Length: 500\r\nRetry-After: 1\r\n\r\n", b"y"),
}


def test_a_web_server_that_drips(authority: trustme.CA, context: ssl.SSLContext, dns: Dns, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def fetch(place: str) -> None:
        with raw(context, dripping(*PLACES[place])) as server:
            uri = f"https://store.example:{server.port}/a"
            ends_in_time(https(authority, server.port, tmp_path), uri)

    # The body of an error is not read.
    at_once(fetch, [name for name in PLACES if name != "body of an error"])


def test_a_web_server_whose_tls_drips(authority: trustme.CA, context: ssl.SSLContext, dns: Dns, tmp_path: Path) -> None:
    with raw(context, dripping(*PLACES["body"])) as server:
        between = Proxy(server.port)
        between.drip_s = 0.1
        # Without a timeout for each step, only the deadline can end it.
        fetcher = https(authority, between.port, tmp_path, timeout_s=60)
        ends_in_time(fetcher, f"https://store.example:{between.port}/a")
        between.close()


def test_a_web_server_whose_redirects_drip(
    authority: trustme.CA, context: ssl.SSLContext, dns: Dns, tmp_path: Path
) -> None:
    def send(client: socket.socket) -> None:
        time.sleep(0.4)
        client.sendall(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /b\r\n\r\n")

    with raw(context, send) as server:
        ends_in_time(https(authority, server.port, tmp_path), f"https://store.example:{server.port}/a")


def test_a_host_with_many_addresses_that_do_not_answer(authority: trustme.CA, dns: Dns, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("0.0.0.0", 0))
        full.listen(0)
        port = full.getsockname()[1]
        # The server never accepts: once its queue is full, a client that connects has to wait.
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        dns.hosts["store.example"] = [f"127.0.0.{last}" for last in range(1, 100)]
        ends_in_time(https(authority, port, tmp_path, timeout_s=0.6), f"https://store.example:{port}/a")


def test_a_name_server_that_does_not_answer(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(120) and [])
    ends_in_time(https(authority, 443, tmp_path, timeout_s=60), "https://store.example:443/a")
    error = failure(https(authority, 443, tmp_path, timeout_s=0.2), Ref("https://store.example:443/a"))
    assert "has no address (no answer to the name store.example in time)" in error.message
    done.set()


def test_waiting_for_memory_is_not_the_servers_time(
    authority: trustme.CA, context: ssl.SSLContext, dns: Dns, tmp_path: Path
) -> None:
    server = WebServer(context)
    server.answers["/a"] = lambda handler: answer(handler, 200, b"bytes")
    fetcher = https(authority, server.port, tmp_path, max_fetch_s=1, timeout_s=30)
    uri = f"https://store.example:{server.port}/a"
    for _ in serve(server):
        # On a busy machine the server's own time may be over; were the wait a part of it, it would always be.
        until(lambda: fetched(fetcher, uri, lambda _: time.sleep(1.2)) == (b"bytes", None))
    fetcher.close()


@pytest.fixture
def s3_env(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    use_s3(s3_server, monkeypatch, tmp_path)
    return s3_server


def s3(endpoint_url: str, **more: object) -> Fetcher:
    inputs = {"allow": ("s3://inputs/",), "timeout_s": TIMEOUT_S, "max_fetch_s": MAX_FETCH_S} | more
    return Fetcher(InputSettings(**inputs), S3Settings(endpoint_url=endpoint_url, region="us-east-1"))


def test_a_store_that_drips(s3_env: S3Server) -> None:
    def fetch(place: str) -> None:
        with raw(None, dripping(*PLACES[place])) as server:
            ends_in_time(s3(f"http://127.0.0.1:{server.port}"), "s3://inputs/a")

    at_once(fetch, list(PLACES))


def test_a_store_that_drips_while_a_result_is_written(s3_env: S3Server) -> None:
    """A PUT first waits for an interim answer, which may also be sent slowly and never end."""

    def put(place: str) -> None:
        with raw(None, dripping(*PLACES[place])) as server:
            began = time.monotonic()
            settings = S3Settings(endpoint_url=f"http://127.0.0.1:{server.port}", region="us-east-1")
            results = writer.Writer(ResultSettings(allow=("s3://inputs/",), max_write_s=MAX_FETCH_S), settings)
            with pytest.raises(PipeqError) as caught:
                results.put("s3://inputs/a", b"result", "text/plain")
            assert time.monotonic() - began < MAX_FETCH_S + GRACE_S
            assert (caught.value.code, caught.value.retryable) == (ErrorCode.OUTPUT_FAILED, True)
            results.close()

    # The body of an answer to PUT is empty, or read whole.
    at_once(put, ["status line", "interim answers", "header", "headers", "body", "chunks", "body of an error"])


@pytest.mark.parametrize("place", ["TLS", "body"])
def test_a_store_behind_tls_that_drips(
    s3_env: S3Server,
    authority: trustme.CA,
    context: ssl.SSLContext,
    dns: Dns,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    place: str,
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with raw(context, dripping(*PLACES["body"])) as server:
        between = Proxy(server.port)
        between.drip_s = 0.1 if place == "TLS" else 0
        ends_in_time(s3(f"https://store.example:{between.port}", timeout_s=60), "s3://inputs/a")
        between.close()


def test_a_real_store_behind_a_line_that_drips(s3_env: S3Server) -> None:
    s3_env.client().put_object(Bucket="inputs", Key="dripping", Body=bytes(5000))
    between = Proxy(int(s3_env.env()["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    fetcher = s3(f"http://127.0.0.1:{between.port}")
    # On a busy machine the first fetch, which makes the connection, may take longer than it may.
    until(lambda: fetched(fetcher, "s3://inputs/dripping") == (bytes(5000), None))
    # The connection exists already, and a later answer on it is sent slowly.
    between.drip_s = DRIP_S
    ends_in_time(fetcher, "s3://inputs/dripping")
    between.drip_s = 0
    between.close()


def test_a_store_whose_tries_add_up(s3_env: S3Server) -> None:
    def send(client: socket.socket) -> None:
        time.sleep(0.5)
        client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")

    with raw(None, send) as server:
        ends_in_time(s3(f"http://127.0.0.1:{server.port}"), "s3://inputs/a")


LENGTHS = ["9" * 5000, "9" * 19, "-1", "1e3", "x", "", " ", "1, 1", "0x10", "１", "+1", "1 1"]


@pytest.mark.parametrize("scheme", ["https", "s3"])
def test_a_length_that_is_none(
    s3_env: S3Server, authority: trustme.CA, context: ssl.SSLContext, dns: Dns, tmp_path: Path, scheme: str
) -> None:
    length = b""

    def send(client: socket.socket) -> None:
        client.sendall(OK + b"Connection: close\r\nContent-Length: " + length + b"\r\n\r\na")
        client.close()

    with raw(context if scheme == "https" else None, send) as server:
        fetcher, uri = fetcher_of(scheme, authority, server.port, tmp_path)
        for text in LENGTHS:
            length = text.encode()
            data, error = fetched(fetcher, uri)
            assert data == b"a" or error is not None
            if error is not None:
                assert error.code in (ErrorCode.INPUT_UNAVAILABLE, ErrorCode.INPUT_TOO_LARGE), (error, text)
                assert len(error.message) < 600
        fetcher.close()


def fetcher_of(scheme: str, authority: trustme.CA, port: int, folder: Path) -> tuple[Fetcher, str]:
    if scheme == "https":
        return https(authority, port, folder, max_bytes=1000), f"https://store.example:{port}/a"
    return s3(f"http://127.0.0.1:{port}", max_bytes=1000), "s3://inputs/a"


def fetched(
    fetcher: Fetcher, uri: str, reserve: Callable[[int], None] = lambda size: None
) -> tuple[bytes, PipeqError | None]:
    try:
        return fetcher.fetch(Ref(uri), reserve), None
    except PipeqError as error:
        return b"", error


PARTS = (
    b"HTTP/1.1 200 OK\r\n|HTTP/1.0 200\r\n|HTTP/1.1 302 Found\r\n|HTTP/1.1 99999 \r\n|HTTP/9.9 200 OK\r\n|"
    b"HTTP/1.1 -5 \r\n|"
    b"HTTP/1.1 204 None\r\n|HTTP/1.1 206 Part\r\n|HTTP/1.1 304 Same\r\n|\r\n|\x00|ICY 200 OK\r\n|"
    b"HTTP/1.1 404 Not found\r\n|HTTP/1.1 500 Oh\r\n"
).split(b"|")
HEADERS = (
    b"Content-Length: 5\r\n|Content-Length: 6\r\n|Transfer-Encoding: chunked\r\n|Transfer-Encoding: gzip, chunked\r\n|"
    b"Location: https://[\r\n|Location: //\r\n|Location: \xff\xfe\r\n|Location: \r\n|"
    b"Location: https://store.example:x/\r\n|"
    b"Content-Encoding: \x01\x02\r\n|Content-Encoding: gzip\r\n|: x\r\n|a b\r\n|X: \xc3\x28\r\n|Set-Cookie: a\r\n"
    b"|x-amz-request-id: \xe2\x80\xa8\r\n|ETag: \r\n|Last-Modified: never\r\n|x-amz-meta-a: =?utf-8?b?/w==?=\r\n|"
    b"Expires: 99999999999999999999\r\n|Content-Type: a\rb\r\n|Content-Range: x\r\n|Connection: close\r\n"
).split(b"|")
BODIES = (
    b"hello",
    b"",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"zz\r\nhello",
    b"-5\r\nhello\r\n",
    b"<Error><Code>",
    b"f" * 70000,
)


@pytest.mark.parametrize("scheme", ["https", "s3"])
def test_any_answer_ends_as_an_error_of_ours(
    s3_env: S3Server, authority: trustme.CA, context: ssl.SSLContext, dns: Dns, tmp_path: Path, scheme: str
) -> None:
    chance = random.Random(scheme)
    # urllib3 leaves a connection to the garbage collector if botocore reads such a redirect.
    headers = [header for header in HEADERS if scheme == "https" or not header.startswith(b"Location")]
    current = b""

    def send(client: socket.socket) -> None:
        client.sendall(current)
        client.close()

    with raw(context if scheme == "https" else None, send) as server:
        fetcher, uri = fetcher_of(scheme, authority, server.port, tmp_path)
        for _ in range(int(os.environ.get("ANSWERS", "100"))):
            many = b"".join(chance.choice(headers) for _ in range(chance.choice((0, 1, 2, 5, 120))))
            data = chance.choice(PARTS) + many + b"\r\n" + chance.choice(BODIES)
            current = data if chance.random() < 0.7 else data[: chance.randrange(len(data))]
            _, error = fetched(fetcher, uri)
            if error is not None:
                assert error.code.startswith("input_"), (error, current)
                assert error.message.isprintable(), (error, current)
        fetcher.close()
