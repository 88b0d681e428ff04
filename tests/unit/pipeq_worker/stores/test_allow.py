"""ALLOW: which URIs are below an allowed prefix, and which only seem to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeq.contract.errors import ErrorCode, PipeqError, SettingsError
from pipeq_worker.settings.sections import ResultSettings, S3Settings
from pipeq_worker.stores.allow import AllowList
from pipeq_worker.stores.base import Fault, Prefixes, StoreError, display
from pipeq_worker.stores.https import Https
from pipeq_worker.stores.https_url import HttpsUrl
from pipeq_worker.stores.writer import Writer


def allow(*entries: str) -> AllowList:
    return AllowList(entries, "[inputs] allow", "--allow")


def allowed(entries: tuple[str, ...], uri: str) -> bool:
    try:
        allow(*entries).check(uri)
    except StoreError as error:
        if error.fault is not Fault.REFUSED:
            raise
        return False
    return True


@pytest.mark.parametrize(
    ("entry", "uri", "expected"),
    [
        ("s3://talks/", "s3://talks/a.flac", True),
        ("s3://talks", "s3://talks/a.flac", True),
        ("s3://talks", "s3://talks", True),
        ("s3://talks", "s3://talks2/a.flac", False),
        ("s3://talks", "s3://Talks/a.flac", False),
        ("s3://talks/pub/", "s3://talks/pub/a", True),
        ("s3://talks/pub/", "s3://talks/public/a", False),
        ("s3://talks/pub", "s3://talks/pub", True),
        ("s3://talks/pub", "s3://talks/pub/a", True),
        ("s3://talks/pub", "s3://talks/public", False),
        ("s3://talks/pub/", "s3://talks/%70ub/a", False),
        ("s3://talks/", "s3:///talks/a", False),
        ("s3://talks/", "https://talks/a", False),
        ("https://h.example/", "https://h.example/a/b?c=d", True),
        ("https://h.example", "https://h.example/a", True),
        ("https://h.example", "https://h.example", True),
        ("https://H.example/", "https://h.EXAMPLE/a", True),
        ("https://h.example/", "https://h.example:443/a", True),
        ("https://h.example:443/", "https://h.example/a", True),
        ("https://h.example/", "https://h.example:8443/a", False),
        ("https://h.example:8443/", "https://h.example:8443/a", True),
        ("https://h.example:8443/", "https://h.example/a", False),
        ("https://h.example/", "https://h.example.evil.example/a", False),
        ("https://h.example", "https://h.example.evil.example/a", False),
        ("https://h.example/pub/", "https://h.example/pub/a#fragment", True),
        ("https://h.example/pub/", "https://h.example/public/a", False),
        ("https://h.example/pub/", "https://h.example/PUB/a", False),
        ("https://h.example/pub/a.png", "https://h.example/pub/a.png?signature=x", True),
        ("https://[2001:db8::1]/", "https://[2001:DB8::1]/a", True),
    ],
)
def test_prefixes(entry: str, uri: str, expected: bool) -> None:
    assert allowed((entry,), uri) is expected


@pytest.mark.parametrize(
    "url",
    [
        "https://h.example/pub/../secret",
        "https://h.example/pub/./secret",
        "https://h.example/pub/%2e%2e/secret",
        "https://h.example/pub/%2E./secret",
        "https://h.example/pub/..%2fsecret",
        "https://h.example/pub/%252e%252e/secret",
        "https://h.example/pub/%25252525252e./secret",
        "https://h.example/pub/..;x=1/secret",
        "https://h.example/pub/..%3bx/secret",
        "https://h.example/pub/..",
        "https://h.example/pub/..\\secret",
        "https://h.example/pub/%5c..%5csecret",
        "https://user@h.example/pub/a",
        "https://user:password@h.example/pub/a",
        "https://h.example@evil.example/pub/a",
        "https://h.example\\@evil.example/pub/a",
        "https://h.example /pub/a",
        "https://h.example/pub/a b",
        "https://h.example/pub/a\r\nHost: evil.example",
        "https://h\N{LATIN SMALL LETTER E WITH ACUTE}.example/pub/a",
        "https:///pub/a",
        "https://h.example:0/pub/a",
        "https://h.example:99999/pub/a",
        "https://h.example:/pub/a",
        "http://h.example/pub/a",
        "https:/h.example/pub/a",
    ],
)
def test_urls_that_parsers_disagree_on_are_refused(url: str) -> None:
    with pytest.raises(StoreError) as error:
        Https.check(url, Prefixes(tuple(map(Https.prefix, ("https://h.example/", "https://h.example/pub/"))), "allow"))
    assert error.value.fault is Fault.REFUSED
    assert error.value.of_input().code == ErrorCode.INPUT_FORBIDDEN


def test_what_a_request_asks_for() -> None:
    url = HttpsUrl.parse("https://H.example:8443/a%20b?c=%2F#d")
    assert (url.host, url.port, url.netloc, url.target) == ("h.example", 8443, "h.example:8443", "/a%20b?c=%2F")
    assert str(HttpsUrl.parse("https://[::1]")) == "https://[::1]/"


@pytest.mark.parametrize("entry", ["https://user@h/", "https://h/../", "https://h/?a", "https://h/#a", "https://h:0/"])
def test_entries_that_cannot_be_compared_stop_the_start(entry: str) -> None:
    with pytest.raises(SettingsError, match=r"\[inputs\] allow: 'https://"):
        allow(entry)


def test_s3_keys_are_taken_literally() -> None:
    assert allow("s3://b/").check("s3://b/a%20b?c=d#e/...f//g..\\h%5C%") == ("b", "a%20b?c=d#e/...f//g..\\h%5C%")


#: Segments that a store, or a server in front of it, may read as "." or "..".
CLIMBING = (
    "./k k/. ../k k/.. a/../k a/./k ..\\k a/..\\k %2e%2e/k a/%2E./k a/.%2e/k a/%252e%252e/k a/..;x/k a/..%2fk "
    "a%2f..%2fk a/..%5ck"
)


@pytest.mark.parametrize("key", CLIMBING.split())
def test_s3_keys_that_climb_are_refused(key: str) -> None:
    """As for files: `s3://b/pub/../secret` is not below `s3://b/pub/`."""
    writer = Writer(ResultSettings(allow=("s3://b/",)), S3Settings())
    for uri in (f"s3://b/pub/{key}", f"s3://b/{key}", f"s3://{key}"):
        for entry in ("s3://b/pub/", "s3://b/", "s3://"):
            with pytest.raises(StoreError) as refused:
                allow(entry).check(uri)
            assert refused.value.of_input().code == ErrorCode.INPUT_FORBIDDEN
        with pytest.raises(SettingsError, match="cannot be used"):
            allow(uri)
        with pytest.raises(PipeqError) as error:
            writer.check_allowed(uri)
        assert error.value.code == ErrorCode.INPUT_FORBIDDEN
        with pytest.raises(PipeqError) as error:
            writer.put(uri, b"", "text/plain")
        assert error.value.code == ErrorCode.INPUT_FORBIDDEN


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("s3://talks/2026/a.flac", "s3://talks/"),
        ("file:///data/in/a.wav", "file:///data/in/"),
        ("file:///a.wav", "file:///a.wav"),
        ("https://images.example.org/a/b.png?sig=secret", "https://images.example.org/"),
        ("https://images.example.org:8443/b.png", "https://images.example.org:8443/"),
    ],
)
def test_the_error_says_which_line_to_add(uri: str, line: str) -> None:
    with pytest.raises(StoreError) as refused:
        allow("s3://other/").check(uri)
    error = refused.value.of_input()
    assert error.message == (
        f"this worker's settings do not allow {display(uri)}: "
        f'add "{line}" to [inputs] allow, or start the worker with --allow {line}'
    )
    assert "secret" not in error.message
    assert not error.retryable
    assert allowed((line,), uri)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://h/a?X-Amz-Signature=secret", "https://h/a?..."),
        ("https://user:secret@h/a", "https://...@h/a"),
        ("https://user:sec/secret@h/a", "https://...@h/a"),
        ("https://h/@user/a", "https://h/@user/a"),
        ("HTTPS://user:secret@h/a?b", "https://...@h/a?..."),
        ("s3://b/a?b#c", "s3://b/a?b#c"),
        ("s3://b/a\nb\x1b[0m", "s3://b/a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[0m"),
    ],
)
def test_errors_show_no_credentials(uri: str, shown: str) -> None:
    assert display(uri) == shown


def test_a_long_uri_is_cut() -> None:
    assert len(display("s3://b/" + "a" * 10_000)) < 320


def test_files_below_a_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "b c.txt").touch()
    entry = f"file://{root}/"
    assert allow(entry).check(f"file://{root}/a/b%20c.txt") == (str(root), "a/b c.txt")
    assert allow(entry).check(f"file://{root}/a/../a/new?#") == (str(root), "a/new?#")
    assert allow(f"file://{root}").check(f"file://{root}/a/x") == (str(root), "a/x")
    assert allow(f"file://{root}/a/x").check(f"file://{root}/a/x") == (str(root / "a"), "x")
    assert allow("file:///").check(f"file://{root}/a/x") == ("/", f"{root}/a/x"[1:])


def test_files_outside_a_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "rootkit").touch()
    (tmp_path / "secret").touch()
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "loop").symlink_to(root / "loop")
    (root / "up").symlink_to("..")
    for uri in (
        f"file://{tmp_path}/rootkit",
        f"file://{root}/../secret",
        f"file://{root}/%2e%2e/secret",
        f"file://{root}/link",
        f"file://{root}/up/secret",
        "file://localhost/etc/hosts",
        "file://relative",
        f"file://{root}/a%00b",
    ):
        assert not allowed((f"file://{root}/",), uri), uri


def test_a_root_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "release-1").mkdir()
    (tmp_path / "current").symlink_to("release-1")
    entries = allow(f"file://{tmp_path}/current/")
    assert entries.check(f"file://{tmp_path}/current/a") == (str(tmp_path / "release-1"), "a")
    # The link is changed while the worker runs.
    (tmp_path / "release-2").mkdir()
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("release-2")
    assert entries.check(f"file://{tmp_path}/current/a") == (str(tmp_path / "release-2"), "a")
