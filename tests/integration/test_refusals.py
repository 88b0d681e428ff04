"""Who is refused by Redis or S3 is told so at once, in one sentence: a worker at its start, and every command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pipeq.contract import keys
from pipeq.contract.errors import SettingsError
from pipeq.demo.embedded import S3Server, valkey
from pipeq_worker.process import login, rights, startup
from pipeq_worker.process.login import Login
from pipeq_worker.settings.read import load_settings

from tests.commands import run
from tests.integration.conftest import PIPELINE
from tests.waiting import within

DEPLOYED = Path(__file__).parents[2] / "deploy/redis-users.acl"
#: All that a worker needs, as one user has it; a test leaves out one after the other.
NEEDED = list(rights._needed([PIPELINE], 0))
#: What each command does first needs one of these rights.
COMMANDS = (
    ("submit", PIPELINE, "x"),
    ("wait", "x", "--timeout", "5"),
    ("result", "x", "--wait"),
    ("status", "x"),
    ("cancel", "x"),
    ("queues",),
    ("dead", "list"),
    ("purge", PIPELINE, "--yes"),
    ("forget", PIPELINE),
    ("events",),
)


@pytest.fixture
def admin(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as admin:
        admin.flushdb()
        yield admin
        admin.acl_deluser("tester")


def as_tester(valkey_url: str, password: str = "right") -> str:
    return valkey_url.replace("redis://", f"redis://tester:{password}@")


def may(admin: redis.Redis, *words: str) -> None:
    admin.execute_command("ACL", "SETUSER", "tester", "reset", "on", ">right", *words)


def test_who_may_do_all_that_a_worker_does_may_start(admin: redis.Redis, valkey_url: str) -> None:
    may(admin, "~*", "&*", "+@all")
    rights.check(as_tester(valkey_url), [PIPELINE])
    (line,) = [one for one in DEPLOYED.read_text().splitlines() if one.startswith("user pipeq-worker")]
    may(admin, *line.split()[4:])
    rights.check(as_tester(valkey_url), [PIPELINE])
    assert admin.dbsize() == 0, "the check changes nothing"


@pytest.mark.parametrize("command", sorted({str(one[0]).lower() for one in NEEDED} | {"multi"}))
def test_without_one_of_its_commands_a_worker_does_not_start(admin: redis.Redis, valkey_url: str, command: str) -> None:
    may(admin, "~*", "&*", "+@all", f"-{command}")
    with pytest.raises(SettingsError, match=f"does not let this user serve pipelines .*{command}.*redis-users.acl"):
        rights.check(as_tester(valkey_url), [PIPELINE])


@pytest.mark.parametrize("number", [at for at, one in enumerate(NEEDED) if one[0] != "EVAL"])
def test_without_one_of_its_keys_and_channels_a_worker_does_not_start(
    admin: redis.Redis, valkey_url: str, number: int
) -> None:
    others = {str(one[1]) for one in NEEDED if one[0] != "EVAL"} - {str(NEEDED[number][1])}
    may(admin, "+@all", *(f"~{one}" for one in others), *(f"&{one}" for one in others))
    with pytest.raises(SettingsError, match=r"not let this user serve pipelines .*ermissions to access a"):
        rights.check(as_tester(valkey_url), [PIPELINE])


def worker(*arguments: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pipeq", "worker", "constant", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )
    return done.returncode, done.stderr


def test_a_worker_without_rights_ends_before_it_loads(admin: redis.Redis, valkey_url: str) -> None:
    may(admin, "~*", "&*", "+@all", "-psubscribe")
    code, said = worker("--redis-url", as_tester(valkey_url))
    assert code == 2
    assert re.fullmatch(r"pipeq: invalid_settings: redis_url: .*'psubscribe'.*\n", said), said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: one[0])
@pytest.mark.parametrize("password", ["wrong", "right"])
def test_every_command_says_in_one_line_that_redis_refuses(
    admin: redis.Redis, valkey_url: str, command: tuple[str, ...], password: str
) -> None:
    may(admin, "+ping")
    with within(5):  # nothing is tried again
        done = run(*command, "--redis-url", as_tester(valkey_url, password))
    assert (done.exit_code, done.stdout) == (5, "")
    says = "refuses the password" if password == "wrong" else "does not let this user do that"
    assert re.fullmatch(rf"pipeq: redis_unavailable: .*{says}.*\n", done.stderr)
    assert "wrong@" not in done.stderr


def test_a_password_that_is_missing_is_asked_for() -> None:
    with valkey() as url, redis.Redis.from_url(url) as admin:
        admin.config_set("requirepass", "secret")
        admin.auth("secret")
        done = run("queues", "--redis-url", url)
        assert done.exit_code == 5
        assert "asks for a password, and the URL has none" in done.stderr
        with pytest.raises(SettingsError, match=r"redis_url: .* asks for a password, and the URL has none"):
            startup.wait_for_redis(url)


REFUSED = {"AWS_ACCESS_KEY_ID": "InvalidAccessKeyId", "AWS_SECRET_ACCESS_KEY": "SignatureDoesNotMatch"}


def test_credentials_that_s3_refuses_are_said(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    # On a busy machine, to import boto3 takes longer than a worker would wait.
    monkeypatch.setattr(login, "PATIENCE_S", 60)
    settings = load_settings(inputs={"allow": ["s3://inputs/"]})
    Login(settings).check()
    Login(load_settings(inputs={"allow": ["file:///data/"]})).check()
    for wrong, code in REFUSED.items():
        with monkeypatch.context() as patch:
            patch.setenv(wrong, "nonsense")
            says = rf"s3: s3://inputs/: the store refused this worker's credentials \({code}\); correct them"
            with pytest.raises(SettingsError, match=says):
                Login(settings).check()
    # A store that is away is no reason to stop.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    Login(settings).check()


def test_a_worker_whose_credentials_s3_refuses_does_not_start(
    admin: redis.Redis, valkey_url: str, s3_server: S3Server
) -> None:
    env = {**s3_server.env(), "AWS_ACCESS_KEY_ID": "nonsense"}
    code, said = worker("--redis-url", valkey_url, "--allow", "s3://inputs/", **env)
    assert code == 2
    says = r"^pipeq: invalid_settings: s3: s3://inputs/: the store refused .*\(InvalidAccessKeyId\); correct .*$"
    assert re.search(says, said, re.MULTILINE)
    assert "Traceback" not in said
    assert admin.zcard(keys.workers_key("constant")) == 0, "it has not served"
