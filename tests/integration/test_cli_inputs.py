"""`pipeq submit` of files, prefixes and streams, and commands that take many ids; against a real Valkey and S3."""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from pipeq import Client, State
from pipeq.contract import keys
from pipeq.contract.status import ModelInfo
from pipeq.demo.embedded import S3Server
from pipeq_worker.children.served import Served
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.models.task_types import TASK_TYPES

from tests.commands import run
from tests.integration.conftest import PIPELINE
from tests.integration.test_cli import Worker, finish
from tests.waiting import within

PIPEQ = [sys.executable, "-m", "pipeq"]


@pytest.fixture
def pipelines() -> tuple[str, ...]:
    return (PIPELINE, "image-classification")


@pytest.fixture
def kinds(db: redis.Redis) -> None:
    """The pipelines are registered as a worker registers them."""
    for name, takes in ((PIPELINE, "text"), ("image-classification", "image")):
        db.hset(keys.PIPELINES, name, json.dumps({"task": name, "takes": takes}))


def inputs_of(db: redis.Redis, pipeline: str) -> list[Any]:
    """What waits on the pipeline's queue, of each priority in the order of submission."""
    waiting = [raw for key in keys.list_keys(pipeline) for raw in reversed(db.lrange(key, 0, -1))]
    return [Worker._read(raw)["kwargs"]["inputs"] for raw in waiting]


@pytest.mark.usefixtures("kinds")
def test_one_input_goes_first_and_bulk_is_polite(db: redis.Redis, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    path = str(tmp_path / "a.txt")
    for arguments, priority in (
        (["x"], 0),
        (["x", "y"], 6),
        (["-"], 6),
        (["-", "--document"], 0),
        ([path, "--lines"], 6),
        ([path, "--document"], 0),
        (["x", "y", "--priority", "0"], 0),
        (["x", "--priority", "9"], 9),
    ):
        db.flushdb()
        assert run("submit", PIPELINE, *arguments, "--no-check", stdin="line\n").exit_code == 0
        filled = [key for key in keys.list_keys(PIPELINE) if db.exists(key)]
        assert filled == [keys.list_key(PIPELINE, priority)], arguments


# -- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kinds")
def test_a_worker_says_what_a_pipeline_takes(db: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    done = run("submit", PIPELINE, "a.png")
    assert done.exit_code == 0
    assert "'a.png' is taken as text" in done.stderr
    assert inputs_of(db, PIPELINE) == ["a.png"]
    done = run("submit", "image-classification", "a.png")
    assert (done.exit_code, done.stderr) == (0, "")
    assert inputs_of(db, "image-classification") == [{"uri": Path("a.png").resolve().as_uri()}]
    done = run("submit", "image-classification", "a.pgn")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "'a.pgn' was taken for the file or URI of an image, and there is none here; did you mean 'a.png'?" in (
        done.stderr
    )


@pytest.mark.parametrize("name", sorted(TASK_TYPES))
def test_every_task_type_is_registered_with_what_it_takes(name: str) -> None:
    row = TASK_TYPES[name]
    served = Served("mine", name, ModelInfo(id="m"), BatchLimits(1, 1), parameters=("top_k",))
    found = served.registration()
    assert found["takes"] == ("object" if row.main is None else row.fields[row.main])
    assert (found["task"], found["model"]["id"], found["params"]) == (name, "m", ["top_k"])


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in s3_server.env().items():
        if value:
            monkeypatch.setenv(name, value)
    return s3_server


@pytest.mark.usefixtures("kinds")
def test_prefixes_and_wildcards_of_s3(db: redis.Redis, s3: S3Server) -> None:
    folder = f"run {os.getpid()}"
    names = [f"{folder}/{name}" for name in ("a 1.png", "b?.png", "c.txt", "sub/d.png", "ü.png")]
    for name in names:
        s3.client().put_object(Bucket="inputs", Key=name, Body=b"x")
    wanted = {
        f"{folder}/": names,
        f"{folder}/*.png": [names[0], names[1], names[4]],
        f"{folder}/**.png": [names[0], names[1], names[3], names[4]],
        f"{folder}/[ac]*": [names[0], names[2]],
        f"{folder}/?.png": [names[4]],
        f"{folder}/**/d.png": [names[3]],
    }
    for name, keys_ in wanted.items():
        db.delete(*keys.list_keys(PIPELINE))
        done = run("submit", PIPELINE, f"s3://inputs/{name}")
        assert (done.exit_code, done.stderr) == (0, ""), name
        assert len(done.stdout.split()) == len(keys_)
        assert inputs_of(db, PIPELINE) == [{"uri": f"s3://inputs/{key}"} for key in keys_], name


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize(
    ("uri", "env", "says"),
    [
        ("s3://inputs/nothing/", {}, "input_not_found: no object is below s3://inputs/nothing/"),
        ("s3://inputs/no*", {}, "input_not_found: no object matches s3://inputs/no*"),
        ("s3://nobody/x/", {}, "input_not_found: s3://nobody/x/ cannot be listed: there is no bucket 'nobody'"),
        (
            "s3://inputs/",
            {"AWS_ACCESS_KEY_ID": "nobody"},
            "input_forbidden: s3://inputs/ cannot be listed: S3 refuses these AWS credentials (InvalidAccessKeyId)",
        ),
        (
            "s3://inputs/",
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            "input_forbidden: s3://inputs/ cannot be listed: S3 refuses these AWS credentials (SignatureDoesNotMatch)",
        ),
        ("s3://inputs/", {"AWS_ENDPOINT_URL_S3": "nonsense"}, "input_unavailable: s3://inputs/ cannot be listed: "),
    ],
)
def test_what_cannot_be_listed_is_one_sentence(
    s3: S3Server, uri: str, env: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    done = run("submit", PIPELINE, uri)
    assert (done.exit_code, done.stdout) == (6, "")
    assert done.stderr.startswith(f"pipeq: {says}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("uri", "env", "says"),
    [
        ("s3://inputs/no.jsonl", {}, "input_not_found: s3://inputs/no.jsonl cannot be read: there is no such object"),
        ("s3://nobody/x.csv", {}, "input_not_found: s3://nobody/x.csv cannot be read: there is no bucket 'nobody'"),
        (
            "s3://inputs/x.csv",
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            "input_forbidden: s3://inputs/x.csv cannot be read: S3 refuses these AWS credentials "
            "(SignatureDoesNotMatch)",
        ),
        (
            "s3://inputs/x.csv",
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"},
            "input_forbidden: s3://inputs/x.csv cannot be read: there are no AWS credentials here",
        ),
    ],
)
def test_an_input_of_a_job_that_cannot_be_read_is_one_sentence(
    db: redis.Redis, s3: S3Server, uri: str, env: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    done = run("job", "submit", PIPELINE, uri, "--field", "x", "--no-check")
    assert (done.exit_code, done.stdout) == (6, "")
    assert done.stderr.startswith(f"pipeq: {says}")
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("kinds")
def test_an_error_names_the_line_and_not_its_place_in_a_chunk(db: redis.Redis, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('"x"\n' * 700 + json.dumps({"a": "x" * 262_100}) + "\n")
    done = run("submit", PIPELINE, str(rows), "--jsonl")
    assert done.exit_code == 6
    assert len(done.stdout.split()) == 500, "the first chunk is queued"
    assert f"line 701 of {rows}: the message is" in done.stderr
    done = run("submit", PIPELINE, str(rows), "--jsonl", "--params", "[1]")
    assert done.exit_code == 2


@pytest.mark.usefixtures("kinds")
def test_ids_come_as_lines_come(db: redis.Redis) -> None:
    """A stream that never ends, such as `tail -f`: a line is a task at once."""
    command = [*PIPEQ, "submit", PIPELINE, "-", "--lines"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("one", "two"):
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 30)[0]
            assert os.read(process.stdout.fileno(), 100).strip()
            assert inputs_of(db, PIPELINE)[-1] == text
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.mark.usefixtures("kinds")
def test_a_long_stream_takes_little_memory(db: redis.Redis) -> None:
    """40 MB of lines, within the memory of the command itself and a few chunks."""
    db.config_set("maxmemory", 0)
    command = [*PIPEQ, "submit", PIPELINE, "-", "--lines"]
    limit = 100 * 2**20
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(20):
            process.stdin.write(f"{number} {'x' * 200_000}\n" * 10)
            db.delete(*keys.list_keys(PIPELINE))
        process.stdin.close()
        ids = process.stdout.read().split()
        assert process.wait(60) == 0
    assert len(ids) == 200
    db.flushdb()


# -- ids --------------------------------------------------------------------------------------------------------------


def test_many_ids_of_each_command_also_from_stdin(client: Client, db: redis.Redis) -> None:
    finish(db, "good", result={"n": 1})
    finish(db, "bad", "FAILURE", error={"code": "inference_failed", "message": "no", "retryable": False})
    for arguments, stdin in ((["good", "bad"], ""), (["-"], "good\n\n  bad  \n"), (["good", "-"], '{"id": "bad"}\n')):
        done = run("wait", *arguments, stdin=stdin)
        assert (done.exit_code, done.stdout) == (1, "good  succeeded\nbad  failed\n")
        assert done.stderr == "pipeq: inference_failed: task bad: no\n"
        for more in ([], ["--wait"]):
            done = run("result", *arguments, *more, stdin=stdin)
            assert (done.exit_code, done.stdout) == (1, '{"n": 1}\nnull\n')
        for command in ("wait", "result", "status", "cancel"):
            done = run(command, *arguments, "--json", stdin=stdin)
            states = [(one["id"], one["state"]) for one in map(json.loads, done.stdout.splitlines())]
            assert (done.exit_code, states) == (1, [("good", "succeeded"), ("bad", "failed")]), command
    queued = client.submit_many(PIPELINE, map(str, range(1200)))
    done = run("cancel", "-", stdin="\n".join(queued))
    assert done.exit_code == 0
    assert done.stdout == "".join(f"{one}  cancelled\n" for one in queued)


def test_a_wait_says_what_it_waited_for_in_vain(
    client: Client, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = client.submit(PIPELINE, "x")
    finish(db, "good", result=1)
    done = run("wait", "good", queued, "--timeout", "0.2")
    assert (done.exit_code, done.stdout) == (3, f"good  succeeded\n{queued}  queued\n")
    assert "1 of 2 tasks had not ended after 0.2 s" in done.stderr
    monkeypatch.setattr("pipeq.cli.results.UNKNOWN_S", 0.2)
    done = run("wait", "good", "nobody")
    assert (done.exit_code, done.stdout) == (4, "good  succeeded\nnobody  unknown\n")
    # The one that is known is waited for without a limit, whatever becomes of the unknown one.
    with Worker(db):
        done = run("result", queued, "nobody", "good", "--wait")
    assert (done.exit_code, done.stdout) == (4, '{"got": "x"}\nnull\n1\n')


def test_a_timeout_is_for_all_ids_together(client: Client) -> None:
    queued = client.submit_many(PIPELINE, map(str, range(1100)))
    with within(5):
        done = run("wait", "-", "--timeout", "0.5", stdin="\n".join(queued))
    assert done.exit_code == 3
    assert len(done.stdout.splitlines()) == 1100


def test_what_is_no_id_is_said_with_its_line(db: redis.Redis) -> None:
    for command in ("wait", "result", "status", "cancel"):
        for line in ("x" * 5000, '{"name": 5}', "[" * 900_000):
            done = run(command, "-", stdin=f"good\n{line}\n")
            assert (done.exit_code, done.stdout) == (2, ""), command
            assert "line 2 of stdin is no task id" in done.stderr


def test_commands_join_by_pipes(db: redis.Redis) -> None:
    one = " ".join(PIPEQ)
    line = f"printf 'a\\nfail\\nb\\n' | {one} submit {PIPELINE} - --lines | {one} result - --wait"
    with Worker(db):
        done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, '{"got": "a"}\nnull\n{"got": "b"}\n')


def all_of(terminal: int) -> Iterator[bytes]:
    """What a program has written to a terminal, after its end."""
    with suppress(OSError):  # the end, on Linux
        while data := os.read(terminal, 2**16):
            yield data


def test_progress_on_a_terminal_and_results_in_a_pipe(client: Client, db: redis.Redis) -> None:
    """A real terminal as stderr: the bar is there, and stdout has the results alone."""
    ids = client.submit_many(PIPELINE, ["a", "never"])
    shown, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    command = [*PIPEQ, "wait", *ids, "--timeout", "4"]
    with Worker(db), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=env) as process:
        os.close(terminal)
        assert process.stdout is not None
        out = process.stdout.read().decode()
        assert process.wait(30) == 3
    drawn = b"".join(all_of(shown)).decode()
    os.close(shown)
    assert out == f"{ids[0]}  succeeded\n{ids[1]}  queued\n"
    assert "waiting" in drawn
    assert "1/2" in drawn
    assert "\x1b[3" not in drawn, "NO_COLOR: no colours"
    assert client.status(ids[1]).state is State.QUEUED


@pytest.mark.parametrize("by", ["option", "variable"])
def test_local_files_are_uploaded_where_the_workers_read_them(
    db: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "photos" / name).write_bytes(name.encode())
    there = f"{tmp_path.as_uri()}/store/"
    options = ["--upload", there] if by == "option" else []
    if by == "variable":
        monkeypatch.setenv("PIPEQ_CLIENT_UPLOAD", there)
    pattern = f"{tmp_path}/photos/*.png"
    assert run("submit", PIPELINE, pattern, "--file", *options, "--priority", "0").exit_code == 0
    uris = [one["uri"] for one in inputs_of(db, PIPELINE)]
    assert all(uri.startswith(there) for uri in uris)
    assert [Path(uri.removeprefix("file://")).read_bytes() for uri in uris] == [b"a.png", b"b.png"]
    # What is a URI stays where it is.
    assert run("submit", PIPELINE, "s3://b/k.png", *options).exit_code == 0
    assert inputs_of(db, PIPELINE)[-1] == {"uri": "s3://b/k.png"}
    monkeypatch.setenv("PIPEQ_CLIENT_UPLOAD", "nowhere")
    done = run("submit", PIPELINE, "x")
    assert done.exit_code == 2
    assert "PIPEQ_CLIENT_UPLOAD" in done.stderr
