"""Redis URLs: accepted options are passed to redis-py; others give an error that names them and shows no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from pipeq.contract.redis_url import connect, options, plain_url
from redis.connection import URL_QUERY_ARGUMENT_PARSERS, parse_url

from tests.waiting import until

#: Every accepted option, each with a value.
GOOD = {
    "db": "3",
    "username": "me",
    "password": "s%2Fcret",
    "socket_timeout": "20",
    "socket_connect_timeout": "2.5",
    "socket_keepalive": "true",
    "retry_on_timeout": "no",
    "health_check_interval": "10",
    "socket_read_size": "4096",
    "protocol": "3",
    "client_name": "mine",
    "ssl_cert_reqs": "required",
    "ssl_check_hostname": "false",
    "ssl_ciphers": "HIGH",
}


@pytest.mark.parametrize("name", GOOD)
def test_options_are_read_as_redis_py_reads_them(name: str) -> None:
    scheme = "rediss" if name.startswith("ssl_") else "redis"
    url = f"{scheme}://host:7000/1?{name}={GOOD[name]}"
    assert options(url) == {"connection_class": redis.Connection, "db": 1, **parse_url(url)}


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://me:s%2Fc%40ret@host:7000/5",
        "redis://:secret@host/0?username=other&password=other",
        "redis://[::1]:7000/2",
        "rediss://host:7000/0",
        "unix:///tmp/a%20b.sock?db=4",
        "unix://me:secret@/tmp/redis.sock",
    ],
)
def test_urls_are_read_as_redis_py_reads_them(url: str) -> None:
    found, theirs = options(url), parse_url(url)
    for name, value in theirs.items():
        assert found.pop(name) == value
    defaults = {"port": 6379, "host": "localhost", "connection_class": redis.Connection}
    assert all(value == defaults[name] for name, value in found.items())


def test_celerys_spellings_of_a_socket() -> None:
    want = options("unix:///tmp/redis.sock?db=3")
    for url in ("redis+socket:///tmp/redis.sock?db=3", "redis+socket:///tmp/redis.sock?virtual_host=3"):
        assert options(url) == want


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://:secret@host/0?db=x", "'db' is not a database's number"),
        ("redis://:secret@host/0?db=-1", "'db' is not"),
        ("redis://:secret@host/nonsense", "the database's number"),
        ("redis://:secret@host/0?socket_timeout=soon", "'socket_timeout' is not seconds"),
        ("redis://:secret@host/0?socket_timeout=nan", "'socket_timeout' is not seconds"),
        ("redis://:secret@host/0?protocol=4", "'protocol' is not 2 or 3"),
        ("redis://:secret@host/0?health_check_interval=1.5", "whole seconds"),
        ("redis://:secret@host/0?socket_keepalive=perhaps", "true or false"),
        ("redis://:secret@host/0?client_name=a%20b", "a name without blanks"),
        ("redis://:secret@host/0?max_connections=0", "a count from 1"),
        ("redis://:secret@host/0?decode_responses=true", "would change what pipeq reads"),
        ("redis://:secret@host/0?encoding=latin-1", "would change what pipeq reads"),
        ("redis://:secret@host/0?credential_provider=os.system", "names code"),
        ("redis://:secret@host/0?ssl_cert_reqs=none", "write rediss://"),
        ("redis://:secret@host/0?sockettimeout=5", "did you mean 'socket_timeout'?"),
        ("redis://:secret@host/0?xyzzy=5", "known are db, "),
        ("rediss://:secret@host/0?ssl_cert_reqs=perhaps", "required, optional or none"),
        ("rediss://:secret@host/0?ssl_ca_certs=/nothing.pem", "'ssl_ca_certs' is not a file that is there"),
        ("rediss://:secret@host/0?ssl_password=secret", "does not know the option 'ssl_password'"),
        ("sentinel://:secret@host:26379", "does not ask Sentinel"),
        ("redis+sentinel://:secret@a:26379,b:26379/mymaster/0", "does not ask Sentinel"),
        ("redis://:secret@a:1,b:2/0", ""),
        ("redis://:secret@a,b/0", "names several servers"),
        ("redis://:secret@host:99999/0", "is no Redis URL"),
        ("redis://:sec#ret@host/0", "is no Redis URL"),
        ("http://:secret@host/0", "is no Redis URL"),
        ("host:6379", "is no Redis URL"),
        ("", "is no Redis URL"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(url: str, words: str) -> None:
    for read in (options, connect):
        with pytest.raises(ValueError) as caught:
            read(url)
        assert words in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "sec#ret" not in str(caught.value)


def test_every_option_of_redis_py_is_taken_or_refused_by_name() -> None:
    for name in URL_QUERY_ARGUMENT_PARSERS:
        for scheme in ("redis", "rediss"):
            said = ""
            try:
                said = str(options(f"{scheme}://host/0?{name}=1"))
            except ValueError as error:
                said = str(error)
            assert repr(name) in said


def test_files_of_tls(tmp_path: Path) -> None:
    file = tmp_path / "a.pem"
    file.touch()
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        assert options(f"rediss://host/0?{name}={file}")[name] == str(file)
    assert options(f"rediss://host/0?ssl_ca_path={tmp_path}")["ssl_ca_path"] == str(tmp_path)
    assert options("rediss://host/0?ssl_cert_reqs=CERT_NONE")["ssl_check_hostname"] is False


@pytest.mark.parametrize(
    "url", ["redis://me:s%2F@[::1]:7000/2", "redis://:p%3B@host", "redis://host:1/0", "redis://u@h"]
)
def test_the_plain_url_says_the_same(url: str) -> None:
    want: dict[str, Any] = {"db": 0, **options(url)}
    assert options(plain_url(options(url))) == want


@pytest.mark.parametrize("query", ["client_name=counted", "client_name=counted&max_connections=3"])
def test_the_connections_end_with_the_client(valkey_url: str, query: str) -> None:
    with redis.Redis.from_url(valkey_url, decode_responses=True) as db:

        def counted() -> int:
            return sum(one["name"] == "counted" for one in db.client_list())

        client = connect(f"{valkey_url}?{query}")
        client.ping()
        assert counted() == 1
        client.close()
        until(lambda: not counted())


def test_a_limit_on_connections_waits() -> None:
    with connect("redis://host/0?max_connections=3&timeout=7") as client:
        assert isinstance(client.connection_pool, redis.BlockingConnectionPool)
        assert client.connection_pool.max_connections == 3
        assert client.connection_pool.timeout == 7
