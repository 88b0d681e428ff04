"""Every argument of every public method, and every option of the command line, with values that it does not take.

The result is a PipeqError or a usage error that names the argument, and nothing is written to Redis.
"""

from __future__ import annotations

import inspect
import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from pipeq import AsyncClient, Client, PipeqError, Ref, State
from pipeq.cli import main
from pipeq.contract import keys as names
from pipeq.demo import embedded

from tests import both_clients
from tests.commands import run
from tests.integration.conftest import PIPELINE
from tests.odd import ODD
from tests.waiting import until

#: The kinds of values that each argument takes; other kinds are refused, and the argument is named.
TAKES: dict[str, set[str]] = {
    "pipeline": {"text"},
    "inputs": {
        "none",
        "true",
        "int",
        "negative",
        "float",
        "empty",
        "text",
        "escape",
        "list",
        "nested",
        "mapping",
        "bytes",
    },
    "params": {"none", "mapping"},
    "output": {"none"},
    "task_id": {"none", "text", "escape"},
    "idempotency_key": {"none", "text", "escape"},
    "custom_id": {"none", "text", "escape"},
    "priority": {"int"},
    "expires_s": {"none", "int", "float"},
    "delay_s": {"none", "int", "float"},
    "deadline_s": {"none", "int", "float"},
    "timeout_s": {"none", "int", "float"},
    "fair_key": {"none", "text", "escape"},
    "max_backlog": {"none", "int"},
    "full_wait_s": {"none", "int", "float"},
    "headers": {"none", "mapping"},
}


def refused(call: Any) -> str:
    with pytest.raises(PipeqError) as caught:
        call()
    assert caught.value.code in ("invalid_message", "invalid_input", "invalid_params", "input_too_large")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1500
    return caught.value.message


def test_the_arguments_of_submit_are_those_walked_here() -> None:
    assert set(inspect.signature(Client.submit).parameters) - {"self", "check"} == set(TAKES)


@pytest.mark.parametrize("argument", TAKES)
@pytest.mark.parametrize("kind", ODD)
def test_submit_takes_what_it_says_and_names_what_not(
    client: Client, db: redis.Redis, argument: str, kind: str
) -> None:
    given: dict[str, Any] = {"pipeline": PIPELINE, "inputs": "x", argument: ODD[kind]}
    if kind in TAKES[argument]:
        check = argument != "pipeline"
        assert isinstance(client.submit(**given, check=check), str)
        return
    said = refused(lambda: client.submit(**given))
    # For inputs, the error names the value inside.
    assert argument == "inputs" or argument.partition("_s")[0].replace("_", " ") in said.replace("_", " "), said
    assert db.dbsize() == 2, "nothing was written"


def test_headers_that_a_worker_would_not_take_are_refused(client: Client) -> None:
    assert "headers take" in refused(lambda: client.submit(PIPELINE, "x", headers={"a": "x" * 40_000}))
    assert "`compression`" in refused(lambda: client.submit(PIPELINE, "x", headers={"compression": "bzip2"}))


@pytest.mark.parametrize("kind", sorted(ODD.keys() - {"list", "nested", "set", "generator", "loop", "deep"}))
def test_submit_many_takes_no_bare_value(client: Client, db: redis.Redis, kind: str) -> None:
    said = refused(lambda: client.submit_many(PIPELINE, ODD[kind]))
    assert "inputs" in said
    assert db.dbsize() == 2, "nothing was written"


def test_a_text_is_not_a_list_of_its_letters(client: Client) -> None:
    assert "inputs is 'hello', a str, but takes a list of inputs" in refused(lambda: client.submit_many("clf", "hello"))
    assert "takes a list of ids" in refused(lambda: client.status_many("hello"))
    assert "takes a list of ids" in refused(lambda: client.as_completed("hello"))


@pytest.mark.parametrize("kind", ODD)
def test_ids_are_text(client: Client, kind: str) -> None:
    value = ODD[kind]
    if isinstance(value, str) and value not in ("", "\udc80"):
        assert client.status(value).state is State.UNKNOWN
        assert client.cancel(value).state is State.UNKNOWN
        assert client.cancel(value, force=True).state is State.CANCELLED
        return
    for call in (client.status, client.cancel, client.wait, client.result):
        assert "task id" in refused(lambda call=call: call(value))  # type: ignore[misc]
    assert "task id" in refused(lambda: client.status_many([value]))
    assert "task id" in refused(lambda: client.as_completed([value]))


@pytest.mark.parametrize("kind", sorted(ODD.keys() - {"none", "int", "float"}))
def test_timeouts_are_seconds(client: Client, kind: str) -> None:
    for call in (client.wait, client.result, lambda one, timeout: client.as_completed([one], timeout)):
        assert "timeout_s" in refused(lambda call=call: call("x", ODD[kind]))  # type: ignore[misc]


@pytest.mark.parametrize("kind", ODD)
def test_a_part_of_a_result_has_bytes_or_a_place(client: Client, kind: str) -> None:
    for part in (ODD[kind], {"uri": ODD[kind]}, {"base64": ODD[kind]}):
        if isinstance(part, dict) and "base64" in part and kind in ("empty", "text", "long"):
            continue  # that is base64
        with pytest.raises(PipeqError):
            client.read(part)


@pytest.mark.parametrize("made", [Client, AsyncClient])
@pytest.mark.parametrize("kind", ODD)
def test_a_client_is_made_of_what_it_takes(valkey_url: str, kind: str, made: Any) -> None:
    value = ODD[kind]
    if kind not in ("none", "empty"):
        with pytest.raises(PipeqError):
            made(value)
        if kind not in ("generator", "set"):
            with pytest.raises(PipeqError, match="allow"):
                made(valkey_url, allow=value)
    if kind != "none":
        with pytest.raises(PipeqError, match="upload"):
            made(valkey_url, upload=value)
    if kind != "int":
        with pytest.raises(PipeqError, match="max_message_bytes"):
            made(valkey_url, max_message_bytes=value)


@pytest.mark.parametrize("kind", sorted(ODD.keys() - {"none"}))
def test_a_reference_names_what_is_wrong(kind: str) -> None:
    for make in (
        lambda one: Ref(one),
        lambda one: Ref(uri=one),
        lambda one: Ref(base64=one),
        lambda one: Ref(sha256=one),
    ):
        if kind in ("empty", "text", "long"):
            continue  # as base64 that is some
        assert "the reference is not valid" in refused(lambda make=make: make(ODD[kind]))  # type: ignore[misc]
    for part in ("media_type", "sha256", "shape", "dtype", "nonsense"):
        if kind in ("text", "empty", "escape", "surrogate", "long", "bytes") and part in ("media_type", "dtype"):
            continue
        if kind in ("list", "set", "generator") and part == "shape":
            continue
        assert part in refused(lambda part=part: Ref("s3://b/k", **{part: ODD[kind]}))  # type: ignore[misc]
    if kind != "bytes":
        assert "Ref.from_bytes" in refused(lambda: Ref.from_bytes(ODD[kind]))


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("a.wav", "Ref.from_path"),
        ("/data/a.wav", "Ref.from_path"),
        ("http://h/a.wav", "write https://"),
        ("HTTPS://h/a.wav", "small letters"),
        ("ftp://u:pw@h/a.wav", "put the input on S3"),
        ("abfs://b/k", "put the input on S3"),
    ],
)
def test_a_reference_says_what_to_write(uri: str, hint: str) -> None:
    said = refused(lambda: Ref(uri))
    assert hint in said
    assert "pw" not in said
    if "://" in uri:
        assert refused(lambda: Ref.of(uri)) == said
    with pytest.raises(PipeqError):
        Ref.from_path("a\0b")


# -- an id of one's own -----------------------------------------------------------------------------------------------


def test_an_id_that_another_task_has_is_refused(client: Client, db: redis.Redis) -> None:
    given: dict[str, Any] = {"params": {"top_k": 1, "a": 2}, "output": "s3://results/x.json"}
    client.submit(PIPELINE, {"text": "x", "text_pair": "y"}, task_id="own", **given)
    # The same inputs in another order are the same task; the time at which it runs is not compared.
    given["params"] = {"a": 2, "top_k": 1}
    client.submit(PIPELINE, {"text_pair": "y", "text": "x"}, task_id="own", priority=9, expires_s=60, **given)
    for other in ({"params": {"top_k": 2}}, {"output": "s3://results/y.json"}, {"params": None}):
        assert "'own' belongs to a task with other inputs" in refused(
            lambda other=other: client.submit(  # type: ignore[misc]
                PIPELINE, {"text": "x", "text_pair": "y"}, task_id="own", **{**given, **other}
            )
        )
    assert "'own'" in refused(lambda: client.submit(PIPELINE, "other", task_id="own", **given))
    assert db.llen(PIPELINE) == 1
    client.cancel("own")
    assert "'own'" in refused(lambda: client.submit(PIPELINE, "other", task_id="own", **given))


# -- Redis goes away --------------------------------------------------------------------------------------------------


def answers(db: redis.Redis) -> bool:
    """Whether Redis has been started."""
    with suppress(redis.RedisError):
        return bool(db.ping())
    return False


@contextmanager
def a_wait_begins(url: str, task: str) -> Iterator[None]:
    """The block begins a wait for a task, which has got its first answer at the end: before, it would give up soon."""
    with redis.Redis.from_url(url) as db:
        db.config_resetstat()
        yield
        until(lambda: db.pubsub_numsub(names.record_key(task))[0][1])
        until(lambda: "cmdstat_mget" in db.info("commandstats"))


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[str, Any, Any]]:
    """A Valkey on its own port that can be stopped, and started again with its data."""
    [port] = embedded.free_ports(1)
    program = str(embedded._valkey_program())
    command = [program, "--port", str(port), "--dir", str(tmp_path), "--appendonly", "yes", "--save", ""]
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        with redis.Redis(port=port) as db:
            until(lambda: answers(db))

    def stop() -> None:
        running[-1].send_signal(signal.SIGTERM)
        running[-1].wait(30)

    start()
    yield f"redis://127.0.0.1:{port}/0", start, stop
    stop()
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.filterwarnings("ignore::pipeq.client.NoLiveWorkerWarning")
@pytest.mark.parametrize("kind", both_clients.KINDS)
def test_a_wait_goes_on_while_redis_restarts(
    own_server: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    url, start, stop = own_server
    with both_clients.make(kind, url) as client:
        task = client.submit(PIPELINE, "x", check=False)
        got: list[Any] = []
        waiting = threading.Thread(target=lambda: got.append(client.result(task, timeout_s=60)))
        with a_wait_begins(url, task):
            waiting.start()
        stop()
        time.sleep(1.5)
        assert waiting.is_alive()
        start()
        with redis.Redis.from_url(url) as db:
            record = json.dumps({"status": "SUCCESS", "result": "after all", "pipeq": {}})
            db.set(names.record_key(task), record)
            db.publish(names.record_key(task), record)
        waiting.join(30)
        assert got == ["after all"]
        # Written once, although the pool's connections are broken.
        stop()
        start()
        client.submit(PIPELINE, "y", check=False)
        with redis.Redis.from_url(url) as db:
            assert db.llen(PIPELINE) == 2
        # Waits as long as it was told, and no longer.
        stop()
        began = time.monotonic()
        with pytest.raises(PipeqError, match="redis_unavailable"):
            client.result(task, timeout_s=60)
        assert time.monotonic() - began < 30, "a Redis that is away from the start is said at once"
        # Without a time limit, waits as long as a restart may take.
        start()
        monkeypatch.setattr("pipeq.waiting.OUTAGE_S", 0.5)
        task = client.submit(PIPELINE, "z", check=False)
        waiting = threading.Thread(target=lambda: got.append(refused_by_redis(client, task)))
        with a_wait_begins(url, task):
            waiting.start()
        stop()
        waiting.join(30)
        assert got[-1] == "redis_unavailable"
        start()


def refused_by_redis(client: Client, task: str) -> str:
    with pytest.raises(PipeqError) as caught:
        client.result(task)
    return caught.value.code


# -- the command line -------------------------------------------------------------------------------------------------


def test_a_cancel_of_nothing_says_so(client: Client) -> None:
    done = run("cancel", "nonsense")
    assert (done.exit_code, done.stdout) == (1, "nonsense  unknown\n")
    assert "task nonsense was never seen" in done.stderr
    task = client.submit(PIPELINE, "x")
    assert run("cancel", task).exit_code == 0
    assert client.status("nonsense").state is State.UNKNOWN
    # A stock Celery producer's task has no record yet; the worker that takes it drops it.
    assert run("cancel", "nonsense", "--force").stdout == "nonsense  cancelled\n"
    assert client.status("nonsense").state is State.CANCELLED


@pytest.mark.usefixtures("db")
def test_a_wait_for_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeq.cli.results.UNKNOWN_S", 0.2)
    done = run("result", "nonsense", "--wait")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "task nonsense was never seen" in done.stderr
    assert run("result", "nonsense", "--timeout", "0.1").exit_code == 4


@pytest.mark.parametrize(
    ("params", "write"),
    [
        ("top_k=2", """write --params '{"top_k": 2}'"""),
        ("top_k = 2", """write --params '{"top_k": 2}'"""),
        ("--top_k=2", """write --params '{"top_k": 2}'"""),
        ("return_timestamps=word", """write --params '{"return_timestamps": "word"}'"""),
        ("a=True", """write --params '{"a": true}'"""),
        ("top_k:2", """write --params '{"top_k": 2}'"""),
        ("{top_k: 2}", """write one object, as in --params '{"top_k": 2}'"""),
        ("[1]", "write one object"),
        ("[" * 50_000, "nested too deep"),
        ("", "write one object"),
    ],
)
@pytest.mark.usefixtures("db")
def test_params_say_what_to_write(params: str, write: str) -> None:
    done = run("submit", PIPELINE, "x", "--params", params)
    assert done.exit_code == 2
    assert "'--params'" in done.stderr
    assert write in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "argument",
    [
        "photo.png",
        "no/photo.JPG",
        "./notes",
        "../a",
        "/no/such",
        "~/a",
        "a.wav",
        "b.flac",
        "talk.mp4",
        "notes.txt",
        "a.csv",
    ],
)
def test_a_file_that_is_not_there_is_no_text(db: redis.Redis, argument: str) -> None:
    done = run("submit", PIPELINE, argument)
    assert done.exit_code == 2
    assert f"there is no file '{argument}' here; pass --text if it is text" in " ".join(done.stderr.split())
    assert db.llen(PIPELINE) == 0
    assert run("submit", PIPELINE, argument, "--text").exit_code == 0
    assert run("submit", PIPELINE, "-", stdin=f"fine text\n{argument}\n").exit_code == 2


@pytest.mark.parametrize("argument", ["http://h/a.png", "ftp://h/a", "abfs://b/k", "hdfs://x"])
@pytest.mark.usefixtures("db")
def test_a_uri_that_nobody_reads_is_no_text(argument: str) -> None:
    done = run("submit", PIPELINE, argument)
    assert done.exit_code == 2
    assert "is not read, only s3://, file://, https://, gs://, az://, hf://" in " ".join(done.stderr.split())
    assert run("submit", PIPELINE, argument, "--text").exit_code == 0


@pytest.mark.parametrize(
    "argument", ["Great.", "and/or", "3.5", "A photo.png of mine", "see http://h/", "e.g.", "Mr.X", "1/2"]
)
@pytest.mark.usefixtures("db")
def test_text_is_text(argument: str) -> None:
    assert run("submit", PIPELINE, argument).exit_code == 0


OPTIONS = {
    "--params": ["x", "5", '"x"', "null"],
    "--task-id": ["", "x" * 1001],
    "--idempotency-key": ["", "x" * 1001],
    "--custom-id": ["", "x" * 501],
    "--output": ["", "x", "s3://", "http://h/", "file:relative", "\x1b[2J"],
    "--priority": ["x", "-1", "10", "1.5"],
    "--expires": ["x", "-1", "0", "nan", "inf", "1e300"],
    "--deadline": ["x", "-1", "nan", "inf"],
    "--task-timeout": ["x", "-1", "0", "nan", "inf", "1e300"],
    "--fair-key": ["", "x" * 1000],
    "--timeout": ["x", "-1", "nan", "inf", "1e300"],
    "--upload": ["", "x", "s3://", "https://h/", "file://x", "s3://b"],
    "--allow": ["", "x", "s3://", "https://h/", "file://x"],
    "--redis-url": ["x", "http://h/", "redis://h:x/"],
}


def test_the_options_of_submit_are_those_walked_here() -> None:
    command = main.get_command(main.make_context("pipeq", [], resilient_parsing=True), "submit")
    assert command is not None
    found = {one.opts[0] for one in command.params if one.param_type_name == "option" and not one.is_flag}  # type: ignore[attr-defined]
    assert found == set(OPTIONS)


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, values in OPTIONS.items() for value in values]
)
def test_an_option_with_a_wrong_value_is_named(db: redis.Redis, option: str, value: str) -> None:
    done = run("submit", PIPELINE, "x", option, value)
    assert done.exit_code in (2, 6), done.output
    assert option.strip("-").replace("-", "_") in done.stderr.replace("-", "_"), done.stderr
    assert all(line.isprintable() for line in done.stderr.splitlines())
    assert db.llen(PIPELINE) == 0
