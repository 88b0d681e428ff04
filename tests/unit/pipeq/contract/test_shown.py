"""Foreign text in errors, logs and records: no secret, one line, bounded."""

from __future__ import annotations

import copy
import itertools
import os
import time

import pytest
from pipeq.contract import shown
from pipeq.contract.errors import PipeqError

REPLACED = "\N{REPLACEMENT CHARACTER}"

SCHEMES = (
    "https http HTTP ftp sftp gs az abfss wasbs hdfs amqp amqps postgresql mongodb+srv git+https ws x-unknown "
    "redis rediss redis+socket redis+sentinel sentinel valkey pipeq+redis unix s3 file"
).split()
#: Users and passwords as people write them: quoted, unquoted, with every character that ends a host in a URL.
WHO = ("user:SECRET", ":SECRET", "SECRET", "user:SECRET/x", "user:SECRET#x", "user:SECRET?x", "u:SECRET@x")
WHERE = ("host", "host:6379", "[::1]:6379", "host:port", "ho st", "host,host2:1", "")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_user_and_password_of_any_scheme_is_shown(scheme: str) -> None:
    for who, where, tail in itertools.product(WHO, WHERE, ("", "/", "/0", "/a/b@2x.png", "/a?b=c@d&e=f#g")):
        for slashes in (
            ("://", ":/", ":///", ":\\\\") if scheme not in ("s3", "file", "unix", "redis+socket") else ("://",)
        ):
            text = f"{scheme}{slashes}{who}@{where}{tail}"
            assert "SECRET" not in shown.uri(text), text
        text = f'cannot reach "{scheme}://{who}@{where}{tail}" (HTTP 500)'
        assert "SECRET" not in shown.line(text), text


@pytest.mark.parametrize("scheme", [one for one in SCHEMES if one not in ("s3", "file")])
@pytest.mark.parametrize("name", ["sig", "X-Amz-Signature", "password", "credentials", "access_token", "pwd", "x"])
def test_no_query_of_any_scheme_is_shown(scheme: str, name: str) -> None:
    for tail in (f"?{name}=SECRET", f"?a=b&{name}=SECRET#c", f"#{name}=SECRET", f"?c=a@b&{name}=SECRET", "?SECRET"):
        for where in ("h", "h:1/0", "u:p@h/0", "h:port/a", "", "/run/a.sock"):
            text = f"{scheme}://{where}{tail}"
            assert "SECRET" not in shown.uri(text), text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://h/a?X-Amz-Signature=secret", "https://h/a?..."),
        ("https://user:secret@h/a", "https://...@h/a"),
        ("https://user:sec/secret@h/a", "https://...@h/a"),
        ("https://h/@user/a", "https://h/@user/a"),
        ("HTTPS://user:secret@h/a?b", "https://...@h/a?..."),
        ("http://h/?sig=secret", "http://h/?..."),
        ("ftp://u:pw@h/", "ftp://...@h/"),
        ("http://u:pw@minio:9000", "http://...@minio:9000"),
        ("https://u:secret", "https://u:***"),
        ("s3://b/a?b#c", "s3://b/a?b#c"),
        ("s3://b/a@2x:3", "s3://b/a@2x:3"),
        ("s3://AKIA:se/cret@b/a", "s3://...@b/a"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint/a/b@c", "s3://arn:aws:s3:eu-west-1:1:accesspoint/a/b@c"),
        ("file:///data/a@b?c#d", "file:///data/a@b?c#d"),
        ("file://u:secret@h/a", "file://...@h/a"),
        ("data:text/plain;base64,c2VjcmV0", "data:text/plain;base64,..."),
        ("u:secret@h:/a", "...@h:/a"),
        ("talks/a.flac?secret", "talks/a.flac?..."),
        ("talks/a.flac", "talks/a.flac"),
        ("", ""),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:pw@h/0", "redis://:***@h/0"),
        ("redis://forgotten-colon@h/0", "redis://***@h/0"),
        ("rediss://u:p/w#?@@h:1/0", "rediss://u:***@h:1/0"),
        ("redis://h/0?password=p@w&db=1", "redis://h/0?password=***&db=1"),
        ("redis://h?health_check_interval=10&protocol=3", "redis://h?health_check_interval=10&protocol=3"),
        ("unix:///run/r.sock?password=pw", "unix:///run/r.sock?password=***"),
        ("unix:///run/a@b.sock?db=2", "unix:///run/a@b.sock?db=2"),
        ("redis+socket://:pw@/run/r.sock", "redis+socket://:***@/run/r.sock"),
        ("redis+sentinel://:pw@h1:26379,h2:26379/0", "redis+sentinel://:***@h1:26379,h2:26379/0"),
        ("sentinel://:pw@h1:26379;sentinel://:pw2@h2:26379", "sentinel://:***@h2:26379"),
        ("s3://b/a\nb\x1b[0m", f"s3://b/a{REPLACED}b{REPLACED}[0m"),
    ],
)
def test_what_is_shown_of_a_uri(text: str, said: str) -> None:
    assert shown.uri(text) == said


@pytest.mark.parametrize("show", [shown.uri, shown.line])
def test_one_line_without_control_characters(show: object) -> None:
    # All characters with an effect on a terminal, a log reader or a screen: C0, C1, separators, bidirectional marks.
    bad = [chr(code) for code in (*range(32), *range(127, 160), 0x200B, 0x2028, 0x2029, *range(0x202A, 0x202F), 0xD800)]
    for scheme in ("", "s3://b/", "https://h/", "https://", "redis://", "x://u:p@"):
        said = show(scheme + "a" + "".join(bad) + "b")  # type: ignore[operator]
        assert said.isprintable()
        assert said.encode()


def test_a_text_of_others_on_one_line() -> None:
    assert shown.line("text/html\r\n12:00:00 INFO well\x1b[2J") == f"text/html 12:00:00 INFO well{REPLACED}[2J"
    assert shown.line("a" * 400) == "a" * 297 + "..."
    assert shown.line("a" * 400, 10) == "a" * 7 + "..."
    said = 'Could not connect to the endpoint URL: "http://u:pw@minio:9000/b/k?sig=1"'
    assert shown.line(said) == 'Could not connect to the endpoint URL: "http://...@minio:9000/b/k?..."'


@pytest.mark.parametrize("text", ["a", "a:", "://", "https://", "https://@", "redis://:", "?", "a://b ", "[", "s3://:"])
def test_long_texts_are_shown_quickly_and_cut(text: str) -> None:
    began = time.process_time()
    for show in (shown.uri, shown.line):
        assert len(show(text * 30_000)) <= 300
        assert len(show("https://" + text * 30_000)) <= 300
    assert time.process_time() - began < 10


def test_an_error_holds_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
        "AWS_SESSION_TOKEN": "session-of-somebody",
        "HF_TOKEN": "hf_abcdefghijkl",
        "DB_PASSWORD": "correct horse",
        "PIPEQ_REDIS_URL": "redis://:horse%2Fbattery@h/0",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SSH_KEY", "/home/somebody/.ssh/key")
    monkeypatch.setenv("A_TOKEN", "true")
    shown._secrets.cache_clear()
    text = f"RuntimeError: true {dict(os.environ)!r} horse/battery /home/somebody/.ssh/key"
    for error in (PipeqError("internal", text), copy.copy(PipeqError("internal", text))):
        assert "RuntimeError: true" in error.message
        assert error.message.endswith(" *** /home/somebody/.ssh/key")
        assert not [secret for secret in (*secrets.values(), "horse%2Fbattery") if secret in error.message]
    shown._secrets.cache_clear()
