"""FETCH from a real HTTPS server, with names that our own name server resolves."""

from __future__ import annotations

import gzip
import http.server
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from pipeq.contract.errors import ErrorCode, SettingsError
from pipeq.contract.message import Ref
from pipeq_worker.settings.sections import InputSettings, S3Settings
from pipeq_worker.stages.fetch import Fetcher

from tests.integration.fetching import Budget, Dns, WebServer, answer, chunked, failure, serve

LOOPBACK = ("127.0.0.0/8",)


@pytest.fixture
def plain_server() -> Iterator[WebServer]:
    yield from serve(WebServer())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_bundle(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def web(authority: trustme.CA) -> Iterator[WebServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("store.example", "cdn.example").configure_cert(context)
    yield from serve(WebServer(context))


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    answers = Dns(monkeypatch)
    answers.hosts = {"store.example": ["127.0.0.1"], "cdn.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
    return answers


Make = Callable[..., Fetcher]


@pytest.fixture
def make(web: WebServer, dns: Dns, ca_bundle: Path) -> Iterator[Make]:
    made: list[Fetcher] = []

    def build(**settings: Any) -> Fetcher:
        allow = tuple(f"https://{host}:{web.port}/" for host in ("store.example", "cdn.example", "internal.example"))
        defaults = {
            "allow": allow,
            "private_networks": LOOPBACK,
            "ca_bundle": ca_bundle,
            "timeout_s": 5,
            "max_bytes": 1000,
        }
        made.append(Fetcher(InputSettings(**{**defaults, **settings}), S3Settings()))
        return made[-1]

    yield build
    for fetcher in made:
        fetcher.close()


def url(web: WebServer, path: str, host: str = "store.example") -> Ref:
    return Ref(f"https://{host}:{web.port}{path}")


def test_a_page(make: Make, web: WebServer, dns: Dns) -> None:
    web.answers["/a%20b"] = lambda handler: answer(handler, 200, b"bytes")
    fetcher, budget = make(), Budget()
    for _ in range(3):
        assert fetcher.fetch(url(web, "/a%20b?c=%2F#d"), budget) == b"bytes"
    assert budget.sizes == [5, 5, 5]
    path, headers = web.requests[0]
    assert path == "/a%20b?c=%2F"
    assert headers["Host"] == f"store.example:{web.port}"
    assert headers["Accept-Encoding"] == "identity"
    # One connection is kept open, but the name is looked up and checked for each fetch.
    assert web.connections == 1
    assert dns.asked == ["store.example"] * 3


def test_an_authority_from_the_environment(
    make: Make, web: WebServer, ca_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.answers["/a"] = lambda handler: answer(handler, 200, b"bytes")
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_bundle))
    assert make(ca_bundle=None).fetch(url(web, "/a")) == b"bytes"


def test_proxies_of_the_environment_are_not_used(make: Make, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    web.answers["/a"] = lambda handler: answer(handler, 200, b"bytes")
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert make().fetch(url(web, "/a")) == b"bytes"


def test_private_addresses_are_refused_before_anyone_connects(make: Make, web: WebServer) -> None:
    error = failure(make(private_networks=()), url(web, "/a"))
    assert error.code == ErrorCode.INPUT_FORBIDDEN
    assert "store.example is 127.0.0.1" in error.message
    assert "[inputs] private_networks" in error.message
    assert web.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "localhost"])
def test_other_spellings_of_loopback(make: Make, web: WebServer, dns: Dns, host: str) -> None:
    dns.hosts["localhost"] = ["127.0.0.1", "::1"]
    # Addresses that a resolver reads from numbers in unusual notation.
    dns.hosts["0x7f.1"] = dns.hosts["2130706433"] = ["127.0.0.1"]
    fetcher = make(allow=(f"https://{host}:{web.port}/",), private_networks=())
    assert failure(fetcher, url(web, "/a", host)).code == ErrorCode.INPUT_FORBIDDEN
    assert web.connections == 0


@pytest.mark.parametrize("bad", ["10.0.0.1", "169.254.169.254", "::1", "fe80::1%1", "::ffff:10.0.0.1"])
def test_one_bad_address_condemns_a_host(make: Make, web: WebServer, dns: Dns, bad: str) -> None:
    dns.hosts["store.example"] = ["127.0.0.1", bad]
    assert failure(make(), url(web, "/a")).code == ErrorCode.INPUT_FORBIDDEN
    assert web.connections == 0


def test_the_connection_goes_to_the_address_that_was_judged(make: Make, web: WebServer, dns: Dns) -> None:
    """A name server whose second answer differs gains nothing, because it is not asked twice."""
    web.answers["/a"] = lambda handler: answer(handler, 200, b"bytes")
    make().fetch(url(web, "/a"))
    assert dns.asked == ["store.example"]


def test_the_next_address_is_tried_where_one_does_not_answer(make: Make, web: WebServer, dns: Dns) -> None:
    web.answers["/a"] = lambda handler: answer(handler, 200, b"bytes")
    dns.hosts["store.example"] = ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
    assert make().fetch(url(web, "/a")) == b"bytes"


def test_hosts_and_paths_outside_the_list(make: Make, web: WebServer) -> None:
    fetcher = make(allow=(f"https://store.example:{web.port}/public/",))
    for ref in (url(web, "/secret"), url(web, "/public/../secret"), url(web, "/public/a", "cdn.example")):
        assert failure(fetcher, ref).code == ErrorCode.INPUT_FORBIDDEN
    assert failure(make(allow=()), url(web, "/a")).code == ErrorCode.INPUT_FORBIDDEN
    assert web.connections == 0


def redirect(location: str, status: int = 302) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    return lambda handler: answer(handler, status, b"elsewhere", Location=location)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(make: Make, web: WebServer, status: int) -> None:
    web.answers["/a"] = redirect("b?c", status)
    web.answers["/b"] = redirect(f"https://cdn.example:{web.port}/c", status)
    web.answers["/c"] = lambda handler: answer(handler, 200, b"bytes")
    budget = Budget()
    assert make().fetch(url(web, "/a"), budget) == b"bytes"
    assert budget.sizes == [5]
    assert [path for path, _ in web.requests] == ["/a", "/b?c", "/c"]


def test_at_most_five_redirects(make: Make, web: WebServer) -> None:
    for hop in range(6):
        web.answers[f"/{hop}"] = redirect(f"/{hop + 1}")
    web.answers["/6"] = lambda handler: answer(handler, 200, b"bytes")
    assert make().fetch(url(web, "/1")) == b"bytes"
    error = failure(make(), url(web, "/0"))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, False)
    assert "redirects" in error.message


@pytest.mark.parametrize(
    "location",
    [
        "https://internal.example:{port}/b?secret",
        "https://other.example:{port}/b?secret",
        "http://store.example:{port}/b?secret",
        "//other.example:{port}/b?secret",
        "https://store.example:{port}/a/%2e%2e/b?secret",
        "https://user:secret@store.example:{port}/b",
        "https://169.254.169.254/latest/meta-data/?secret",
        "file:///etc/passwd?secret",
    ],
)
def test_each_hop_is_checked_like_the_first(make: Make, web: WebServer, dns: Dns, location: str) -> None:
    # This host is allowed by name, but its address is in a private network.
    dns.hosts["internal.example"] = ["10.0.0.1"]
    web.answers["/a"] = redirect(location.format(port=web.port))
    web.answers["/b"] = lambda handler: answer(handler, 200, b"bytes")
    error = failure(make(), url(web, "/a?signature=hidden"))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_FORBIDDEN, False)
    assert f"https://store.example:{web.port}/a?... (redirected to" in error.message
    if "file:" not in location and "http:" not in location:
        assert "secret" not in error.message
    assert "hidden" not in error.message
    assert [path for path, _ in web.requests] == ["/a?signature=hidden"]


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (404, ErrorCode.INPUT_NOT_FOUND, False),
        (410, ErrorCode.INPUT_NOT_FOUND, False),
        (401, ErrorCode.INPUT_FORBIDDEN, False),
        (403, ErrorCode.INPUT_FORBIDDEN, False),
        (408, ErrorCode.INPUT_UNAVAILABLE, True),
        (429, ErrorCode.INPUT_UNAVAILABLE, True),
        (500, ErrorCode.INPUT_UNAVAILABLE, True),
        (503, ErrorCode.INPUT_UNAVAILABLE, True),
        (400, ErrorCode.INPUT_UNAVAILABLE, False),
        (206, ErrorCode.INPUT_UNAVAILABLE, False),
        (304, ErrorCode.INPUT_UNAVAILABLE, False),
    ],
)
def test_answers_of_a_web_server(make: Make, web: WebServer, status: int, code: str, retryable: bool) -> None:
    web.answers["/a"] = lambda handler: answer(handler, status, b"" if status == 304 else b"sorry")
    error = failure(make(), url(web, "/a?X-Amz-Signature=secret"))
    assert (error.code, error.retryable) == (code, retryable)
    assert f"https://store.example:{web.port}/a?..." in error.message
    assert "secret" not in "".join(traceback.format_exception(error))


def test_a_page_of_unknown_size(make: Make, web: WebServer) -> None:
    web.answers["/fits"] = lambda handler: chunked(handler, bytes(1000))
    web.answers["/large"] = lambda handler: chunked(handler, bytes(1001))
    budget = Budget()
    assert make().fetch(url(web, "/fits"), budget) == bytes(1000)
    assert budget.sizes == [1000]
    error = failure(make(), url(web, "/large"))
    assert error.code == ErrorCode.INPUT_TOO_LARGE
    assert "more than 1000 bytes" in error.message


def test_a_page_without_an_end(make: Make, web: WebServer) -> None:
    sent = 0

    def flood(handler: http.server.BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        while True:
            sent += handler.wfile.write(bytes(2**16))

    web.answers["/a"] = flood
    assert failure(make(), url(web, "/a")).code == ErrorCode.INPUT_TOO_LARGE
    time.sleep(0.2)
    # As much as fits into the buffers of two sockets.
    assert sent < 2**26


def test_a_page_beyond_the_limit_is_not_read(make: Make, web: WebServer) -> None:
    web.answers["/a"] = lambda handler: answer(handler, 200, bytes(1001))
    budget = Budget()
    error = failure(make(), url(web, "/a"), budget)
    assert error.message.endswith("/a has 1001 bytes, and this worker reads 1000 ([inputs] max_bytes)")
    assert budget.sizes == []


def test_a_page_shorter_than_it_says(make: Make, web: WebServer) -> None:
    def break_off(handler: http.server.BaseHTTPRequestHandler) -> None:
        answer(handler, 200, b"short", Content_Length="500")
        handler.close_connection = True

    web.answers["/a"] = break_off
    budget = Budget()
    error = failure(make(), url(web, "/a"), budget)
    assert budget.sizes == [500]
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, True)


def test_compressed_answers_are_refused(make: Make, web: WebServer) -> None:
    bomb = gzip.compress(bytes(10_000_000))[:900]
    web.answers["/a"] = lambda handler: answer(handler, 200, bomb, Content_Encoding="gzip")
    error = failure(make(), url(web, "/a"))
    assert error.code == ErrorCode.INPUT_UNDECODABLE
    assert "Content-Encoding 'gzip'" in error.message


def test_a_certificate_for_another_host(make: Make, web: WebServer) -> None:
    fetcher = make(allow=(f"https://other.example:{web.port}/",))
    error = failure(fetcher, url(web, "/a", "other.example"))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, False)
    assert "certificate is not trusted" in error.message
    assert web.requests == []


def test_a_certificate_of_an_unknown_authority(make: Make, web: WebServer) -> None:
    error = failure(make(ca_bundle=None), url(web, "/a"))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, False)
    assert "[inputs] ca_bundle" in error.message
    assert web.requests == []


def test_a_web_server_that_is_away(make: Make, web: WebServer, dns: Dns, closed_port: int) -> None:
    fetcher = make(allow=(f"https://store.example:{closed_port}/", "https://gone.example/", "https://a..b/"))
    for uri in (
        f"https://store.example:{closed_port}/a?s=secret",
        "https://gone.example/a?s=secret",
        "https://a..b/?s=secret",
    ):
        error = failure(fetcher, Ref(uri))
        assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, True)
        assert "secret" not in "".join(traceback.format_exception(error))


def test_a_web_server_that_stalls(make: Make, web: WebServer) -> None:
    done = threading.Event()

    def stall(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path == "/body":
            answer(handler, 200, b"short", Content_Length="500")
        done.wait(10)
        handler.close_connection = True

    web.answers["/head"] = web.answers["/body"] = stall
    # The head of an answer must come within that time, on a busy machine too.
    for path, timeout_s, sizes in (("/head", 0.3, []), ("/body", 2, [500])):
        fetcher, budget = make(timeout_s=timeout_s), Budget()
        error = failure(fetcher, url(web, path), budget)
        assert (error.code, error.retryable) == (ErrorCode.INPUT_UNAVAILABLE, True)
        assert budget.sizes == sizes
    done.set()


def test_a_server_that_speaks_no_tls(make: Make, dns: Dns, plain_server: WebServer) -> None:
    fetcher = make(allow=(f"https://store.example:{plain_server.port}/",))
    error = failure(fetcher, url(plain_server, "/a"))
    assert error.code == ErrorCode.INPUT_UNAVAILABLE


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"private_networks": ("10.0.0.1/8",)}, "inputs.private_networks: 10.0.0.1/8 has host bits set"),
        ({"private_networks": ("intranet",)}, "inputs.private_networks: 'intranet'"),
        ({"ca_bundle": "/missing.pem"}, "inputs.ca_bundle: cannot use /missing.pem"),
        ({"allow": ("https://user:password@h/",)}, r"\[inputs\] allow: "),
    ],
)
def test_settings_that_cannot_be_used_stop_the_start(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Fetcher(InputSettings(**settings), S3Settings())
