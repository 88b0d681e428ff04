"""What a worker reports before it loads anything: misspelt names, missing folders, an unsuitable Redis."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from pipeq import Client, NoLiveWorkerWarning, PipeqError
from pipeq.contract import keys
from pipeq.contract.errors import SettingsError
from pipeq.demo import embedded
from pipeq.demo.embedded import S3Server
from pipeq_worker.process import startup
from pipeq_worker.process.cli import worker as command

from tests.host import Host
from tests.waiting import until
from tests.worker_process import worker

PIPELINE = "text-classification"


def check(*arguments: str) -> str:
    """The errors of ``pipeq worker --check``; empty if there are none."""
    done = CliRunner().invoke(command, [*arguments, "--check"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in (0, 2)
    return done.stderr if done.exit_code else ""


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("text-clasification", "'text-clasification' is no task type; did you mean 'text-classification'?"),
        ("sentiment-analisis", "did you mean 'sentiment-analysis'?"),
        ("qqqq", "'qqqq' is no task type; there are: any-to-any"),
        ("/no/such/folder", "there is no such folder"),
        (
            "text-classification=/no/such/folder",
            "model '/no/such/folder' is no model that can be read: there is no such",
        ),
        ("text-classification=./no/such", "there is no such folder"),
        ("text-classification=~/model", "~ is not read here"),
        (f"text-classification={__file__}", "it is a file"),
    ],
)
def test_a_typo_is_answered_before_torch_is_imported(argument: str, says: str) -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom pipeq_worker.process.cli import worker\n"
        f"done = CliRunner().invoke(worker, [{argument!r}])\n"
        "print(done.output, done.exit_code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert says in done.stdout
    assert done.stdout.split()[-3:] == ["2", "False", "False"]


@pytest.mark.parametrize("key", ["model", "tokenizer", "image_processor", "feature_extractor", "processor", "adapter"])
def test_every_folder_of_a_pipeline_is_looked_for(tmp_path: Path, key: str) -> None:
    config = tmp_path / "pipelines.toml"
    config.write_text(f'[pipelines.{PIPELINE}]\n{key} = "{tmp_path}/none"')
    assert f"{key} '{tmp_path}/none' is no model that can be read: there is no such folder" in check(
        "--config", str(config)
    )
    config.write_text(f'[pipelines.{PIPELINE}]\n{key} = "{tmp_path}"')
    assert check("--config", str(config)) == ""


def test_a_wrong_task_is_said(tmp_path: Path) -> None:
    config = tmp_path / "pipelines.toml"
    config.write_text('[pipelines.reviews]\ntask = "text-classificaton"\nmodel = "my/model"')
    assert "pipeline 'reviews': 'text-classificaton' is no task type; did you mean" in check("--config", str(config))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["constant", "--include", "no.such.module"], "include: there is no module 'no.such.module'"),
        (["constant", "--include", "tests.no_such"], "include: there is no module 'tests.no_such'"),
        (["constant", "--include", ""], "include.0: '' is no module's name"),
        (["constant", "--include", "my tasks"], "include.0: 'my tasks' is no module's name"),
        (["constant", "--queue", ""], "celery_queues.0: '' is no name of a queue"),
        (["constant", "--queue", "pipeq:pipelines"], "celery_queues.0: 'pipeq:pipelines' is no name of a queue"),
        (["constant", "--allow", "x"], "inputs.allow.0: 'x' does not begin with"),
        (["constant", "--allow", "https://h/?q"], "'https://h/?...' has a query or a fragment"),
        (["constant", "--devices", "zz", "--redis-url", "redis://h"], "--devices 'zz': 'zz' is no device"),
        (["constant", "--redis-url", "http://h"], "http://h is no Redis URL"),
        (["constant", "--config", "/no/file"], "cannot read /no/file"),
        (["constant", "--log-format", "x"], "'--log-format'"),
        ([""], "pipelines.: '' is no name of a queue"),
        (["=x/y"], "pipelines.: '' is no name of a queue"),
        (["pipeq:x=constant"], "pipelines.pipeq:x: 'pipeq:x' is no name of a queue"),
    ],
)
def test_an_option_with_a_wrong_value_is_named_before_anything_loads(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2, done.output
    assert says in done.stderr


# -- Redis ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def db(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as db:
        db.flushdb()
        db.acl_setuser("limited", enabled=True, passwords=["+right"], commands=["+get"], reset=True)
        yield db
        db.acl_deluser("limited")


@pytest.mark.parametrize(
    ("user", "path", "says"),
    [
        ("limited:wr0ng@", "0", "refuses user or password"),
        ("nobody:wr0ng@", "0", "refuses user or password"),
        ("limited:right@", "0", "no permissions"),
        ("", "9999", "out of range"),
    ],
)
def test_what_a_redis_refuses_ends_the_start(db: redis.Redis, valkey_url: str, user: str, path: str, says: str) -> None:
    host = valkey_url.removeprefix("redis://").rpartition("/")[0]
    with pytest.raises(SettingsError, match=f"redis_url: .*{says}") as caught:
        startup.wait_for_redis(f"redis://{user}{host}/{path}")
    assert "wr0ng" not in str(caught.value)


def test_a_worker_with_a_wrong_password_ends_with_the_reason(db: redis.Redis, valkey_url: str) -> None:
    url = valkey_url.replace("redis://", "redis://limited:wr0ng@")
    done = subprocess.run(
        [sys.executable, "-m", "pipeq", "worker", "constant", "--redis-url", url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "refuses user or password" in done.stderr
    assert "wr0ng" not in done.stderr + done.stdout


def test_a_redis_that_cannot_be_reached_is_waited_for_and_said_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(startup, "SAY_AGAIN_S", 0.1)
    monkeypatch.setattr(startup, "_ASK_AGAIN_S", 0.05)
    assert caplog.handler is not None
    caplog.set_level(logging.INFO, "pipeq_worker.process.startup")
    [port] = embedded.free_ports(1)
    url = f"redis://:s3cret@127.0.0.1:{port}/0"
    waiting = threading.Thread(target=startup.wait_for_redis, args=(url,), daemon=True)
    waiting.start()

    def said() -> list[str]:
        return [one.getMessage() for one in list(caplog.records) if one.name == startup.__name__]

    until(lambda: len(said()) >= 3)
    first, *more = said()
    assert f"Redis at redis://:***@127.0.0.1:{port}/0 does not answer" in first
    assert any("waiting for" in line for line in more)
    assert "s3cret" not in caplog.text
    assert waiting.is_alive()
    program = embedded._valkey_program()
    server = subprocess.Popen(
        [program, "--port", str(port), "--save", "", "--requirepass", "s3cret"], stdout=subprocess.DEVNULL
    )
    try:
        waiting.join(60)
        assert not waiting.is_alive()
        assert "answers" in said()[-1]
    finally:
        server.kill()
        server.wait()


def test_a_submit_while_the_only_worker_loads_says_so(db: redis.Redis, valkey_url: str) -> None:
    with Client(valkey_url) as client:
        with startup.Loading(valkey_url, "w1", [PIPELINE]):
            until(lambda: db.exists(keys.loading_key(PIPELINE)))
            with pytest.warns(NoLiveWorkerWarning, match="a worker is loading 'text-classification' now"):
                client.submit(PIPELINE, "x")
        # Until the heartbeat has replaced it.
        with pytest.warns(NoLiveWorkerWarning, match="is loading"):
            client.submit(PIPELINE, "x")
        with pytest.raises(PipeqError, match="unknown_pipeline"):
            client.submit("another", "x")
        assert db.hlen(keys.PIPELINES) == 0, "what never loaded is not known for ever"
        assert db.ttl(keys.loading_key(PIPELINE)) > 0


def test_a_worker_that_could_not_load_is_not_loading(db: redis.Redis, valkey_url: str) -> None:
    def load_badly() -> None:
        with startup.Loading(valkey_url, "w1", [PIPELINE]):
            time.sleep(0.2)
            raise ValueError("bad model")

    with pytest.raises(ValueError, match="bad model"):
        load_badly()
    with Client(valkey_url) as client, pytest.raises(PipeqError, match="no worker has ever served"):
        client.submit(PIPELINE, "x")


#: In the child only: it has loaded when the test says so.
LATE = """
import os, sys, time

if "pipeq_worker.children.main" in sys.orig_argv:
    while not os.path.exists(os.environ["MAY_LOAD"]):
        time.sleep(0.01)
"""


def test_a_real_worker_says_that_it_loads(db: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LATE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    config = tmp_path / "pipelines.toml"
    config.write_text(f'[pipelines.{PIPELINE}]\ntask = "constant"\n')
    with (
        worker(tmp_path, valkey_url, "--config", config, PYTHONPATH=path, MAY_LOAD=tmp_path / "go") as process,
        Client(valkey_url) as client,
    ):
        until(lambda: db.exists(keys.loading_key(PIPELINE)))
        with pytest.warns(NoLiveWorkerWarning, match="is loading"):
            task = client.submit(PIPELINE, "hello")
        (tmp_path / "go").touch()
        assert client.result(task, timeout_s=90)
        assert process.process.poll() is None


def test_who_waits_for_the_line_that_says_ready_may_submit(
    db: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(valkey_url, PIPELINE)
    health, heartbeat = host.runtime.seen.health, host.runtime._heartbeat
    health.loaded(PIPELINE)
    beat = heartbeat._beat

    def late() -> None:
        time.sleep(0.5)
        beat()

    monkeypatch.setattr(heartbeat, "_beat", late)
    #: At the moment of the line: the workers that a producer sees, and what `/readyz` has against this one.
    seen: list[tuple[int, list[str]]] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("ready: serving"):
                seen.append((db.zcard(keys.workers_key(PIPELINE)), health.not_ready()))

    reader, log = Reader(), logging.getLogger("pipeq_worker")
    monkeypatch.setattr(log, "level", logging.INFO)
    log.addHandler(reader)
    try:
        with startup.Loading(valkey_url, host.name, [PIPELINE]):
            until(lambda: db.exists(keys.loading_key(PIPELINE)))
        db.delete(keys.PIPELINES, keys.workers_key(PIPELINE), keys.worker_key(host.name))
        host.runtime.announce()
        until(lambda: seen)
        assert seen == [(1, [])]
        with Client(valkey_url) as client:
            client.submit(PIPELINE, "x")  # a warning would be an error
    finally:
        log.removeHandler(reader)
        host.stop()
        host.runtime._jobs.close()
        heartbeat.close()


# -- --check ----------------------------------------------------------------------------------------------------------


def test_check_looks_at_parameters_inputs_and_stores(tmp_path: Path) -> None:
    config = tmp_path / "pipelines.toml"
    (tmp_path / "store").mkdir()
    (tmp_path / "file").touch()
    config.write_text(
        f'[inputs]\nallow = ["file://{tmp_path}/none/", "file://{tmp_path}/store/"]\n'
        f'[results]\nstore = "file://{tmp_path}/file/x/"\nallow = ["file://{tmp_path}/store/"]\n'
        "[pipelines.text-classification]\nparams = { top_kk = 2 }\n"
        '[pipelines.fill-mask]\nparams = { top_k = "many" }\n'
        "[pipelines.text-generation]\nparams = { max_new_tokens = 5, num_beams = 1000000 }\n"
        "[pipelines.constant]\nparams = { minutes = 5 }\n"
    )
    said = check("--config", str(config))
    for sentence in (
        "text-classification.params.top_kk: text-classification takes no such parameter; did you mean 'top_k'?",
        "pipelines.fill-mask.params.top_k is 'many', not",
        "pipelines.text-generation.params.num_beams is 1000000, not",
        "pipelines.constant: 'constant' takes no parameter 'minutes'",
        f"inputs.allow: file://{tmp_path}/none/: there is no such file or folder",
        f"results.store: file://{tmp_path}/file/x/.pipeq-check-",
    ):
        assert sentence in said
    assert "max_new_tokens" not in said
    assert f"{tmp_path}/store/" not in said
    assert list((tmp_path / "store").iterdir()) == [], "nothing is left of the look"


def test_check_asks_s3(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    config = tmp_path / "pipelines.toml"
    config.write_text(
        '[inputs]\nallow = ["s3://inputs/a/", "s3://no-such-bucket/"]\n'
        '[results]\nstore = "s3://results/x/"\n[pipelines.constant]\n'
    )
    said = check("--config", str(config))
    assert "inputs.allow: s3://no-such-bucket/: the store" in said
    assert "s3://inputs/" not in said
    assert "s3://results/" not in said
    kept = s3_server.client().list_objects_v2(Bucket="results", Prefix="x/").get("Contents", [])
    assert [one["Key"] for one in kept] == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "results.store: s3://results/x/.pipeq-check-" in check("--config", str(config))
