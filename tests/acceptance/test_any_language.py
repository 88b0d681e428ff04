"""docs/any-language.md holds: its shell lines and its Node program run against a real worker, its schemas are true."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import redis
from celery import Celery
from pipeq import Client, PipeqError, State
from pipeq.contract import keys
from pipeq.contract.message import TaskMessage
from pipeq.contract.pack import PackMessage, PackOf, PackRow
from pipeq.demo import embedded
from pipeq.envelope import Envelope

from tests.waiting import until
from tests.worker_process import WorkerProcess, worker

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/any-language.md").read_text()
PROGRAM = ROOT / "examples/node.mjs"
PIPELINE = "text-classification"
#: The name of the page's examples, served by a pipeline that needs no model.
CONFIG = f'max_attempts = 1\n[pipelines.{PIPELINE}]\ntask = "constant"\n'
PIPEQ = [sys.executable, "-P", "-m", "pipeq"]
NODE = shutil.which("node") or "node is not installed: the tests of docs/any-language.md need it"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def served(url: str, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("worker")
    (folder / "pipelines.toml").write_text(CONFIG)
    with worker(folder, url, "--config", folder / "pipelines.toml") as process:
        process.wait_ready(client, PIPELINE)
        yield process


@pytest.fixture(scope="module")
def producer_url(url: str, served: WorkerProcess) -> str:
    """The same Redis, with the rights of a producer."""
    (line,) = [one for one in (ROOT / "deploy/redis-users.acl").read_text().splitlines() if "pipeq-producer" in one]
    with redis.Redis.from_url(url) as db:
        db.execute_command("ACL", "SETUSER", *re.findall(r"\([^)]*\)|\S+", line)[1:])
    return url.replace("redis://", "redis://pipeq-producer:producer-password@")


@pytest.fixture
def db(url: str, served: WorkerProcess) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, decode_responses=True) as db:
        db.delete(keys.dead_letter_key(PIPELINE))
        yield db


@pytest.fixture
def node(producer_url: str, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the page's program, from a stranger's folder."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        env = {**os.environ, "PIPEQ_REDIS_URL": producer_url}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([NODE, str(PROGRAM), *arguments], env=env, cwd=tmp_path, **pipes)

    return start


def said(process: subprocess.Popen[str]) -> list[Any]:
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return [json.loads(line) if line.startswith("{") else line for line in out.splitlines()]


def test_the_shell_lines(client: Client, db: redis.Redis) -> None:
    (block,) = re.findall(r"<!-- test: shell -->\n```console\n(.*?)```", PAGE, re.DOTALL)
    push, get = [shlex.split(line.removeprefix("$ redis-cli ")) for line in block.splitlines()]
    assert db.execute_command(*push) == 1
    task_id = json.loads(push[2])["id"]
    assert client.wait(task_id, 30).state is State.SUCCEEDED
    assert json.loads(db.execute_command(*get))["status"] == "SUCCESS"


def test_the_list_of_a_lower_priority(client: Client, db: redis.Redis) -> None:
    (name,) = re.findall(r"`redis-cli LPUSH \$'(.*?)'", PAGE)
    assert name.encode().decode("unicode_escape") == keys.list_key(PIPELINE, 6)
    db.lpush(keys.list_key(PIPELINE, 6), json.dumps({"id": "bulk", "pipeline": PIPELINE, "inputs": "x"}))
    assert client.wait("bulk", 30).state is State.SUCCEEDED


def test_node_gets_its_result(client: Client, node: Callable[..., subprocess.Popen[str]]) -> None:
    text = 'ä "quoted" \U0001f600\n'
    task_id, found = said(node("submit", PIPELINE, text))
    status = client.status(task_id)
    assert found == {"state": "succeeded", "result": status.result}
    assert status.submitted_at is not None
    assert sum(status.timing_ms.values()) == pytest.approx(1000 * (status.finished_at - status.submitted_at), abs=2)  # type: ignore[operator]
    assert said(node("wait", task_id)) == said(node("cancel", task_id)) == [found]


def test_node_is_told_why_it_failed(
    client: Client, db: redis.Redis, node: Callable[..., subprocess.Popen[str]]
) -> None:
    task_id, found = said(node("submit", PIPELINE, "x", '{"nonsense": 1}'))
    status = client.status(task_id)
    assert status.error is not None
    assert found["state"] == "failed"
    assert (found["error"]["code"], found["error"]["message"]) == ("invalid_params", status.error.message)
    (letter,) = client.dead(PIPELINE)
    assert (letter.task_id, letter.obstacle) == (task_id, None)


@pytest.mark.parametrize("who", ["node", "client"])
def test_a_task_of_node_is_cancelled_while_it_runs(
    client: Client, node: Callable[..., subprocess.Popen[str]], who: str
) -> None:
    waiting = node("submit", PIPELINE, "x", '{"seconds": 60}')
    assert waiting.stdout is not None
    task_id = waiting.stdout.readline().strip()
    until(lambda: client.status(task_id).state is State.RUNNING)
    if who == "node":
        assert said(node("cancel", task_id)) == [{"state": "cancelled"}]
    else:
        assert client.cancel(task_id).state is State.CANCELLED
    assert said(waiting) == [{"state": "cancelled"}]
    assert client.status(task_id).state is State.CANCELLED
    until(lambda: client.queue(PIPELINE).in_flight == 0)


def test_node_hears_of_what_redis_refuses(db: redis.Redis, node: Callable[..., subprocess.Popen[str]]) -> None:
    refused = node("submit", "another-list", "x")
    out, err = refused.communicate(timeout=60)
    assert (out, refused.returncode) == ("", 1)
    assert "NOPERM" in err or "EXECABORT" in err


def test_a_stock_celery_app_reads_the_result_of_a_bare_task(url: str, client: Client, db: redis.Redis) -> None:
    bare = {"id": "for-celery", "pipeline": PIPELINE, "inputs": ["x", "y"]}
    db.lpush(PIPELINE, json.dumps(bare), json.dumps({**bare, "id": "celery-fails", "params": {"seconds": -1}}))
    with Celery(broker=url, backend=url, set_as_current=False) as app:
        assert app.AsyncResult("for-celery").get(timeout=30) == client.status("for-celery").result == ["constant"] * 2
        failed = app.AsyncResult("celery-fails")
        with pytest.raises(Exception, match="invalid_params"):
            failed.get(timeout=30)
        assert failed.state == "FAILURE"


def test_a_pack_is_not_pushed_by_others(client: Client, db: redis.Redis) -> None:
    pack = {"id": "p", "pipeline": PIPELINE, "rows": [{"inputs": "x"}], "job": {"id": "j", "pack": 0}}
    db.lpush(PIPELINE, json.dumps(pack))
    status = client.wait("p", 30)
    assert status.error is not None
    assert status.error.code == "invalid_message"
    assert "`pipeq job submit`" in status.error.message


def test_any_program_starts_a_job_of_openais_lines(producer_url: str, served: WorkerProcess, tmp_path: Path) -> None:
    about, body = {"method": "POST", "url": "/v1/embeddings"}, {"model": "any", "input": "hello"}
    lines = [json.dumps({"custom_id": f"request-{n}", **about, "body": body}) for n in range(3)]
    lines[1:1] = ["", "no JSON"]
    command = [*PIPEQ, "job", "submit", PIPELINE, "-", "--json", "--wait", "--results", "out.jsonl"]
    done = subprocess.run(
        command, input="\n".join(lines), capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env={**os.environ, "PIPEQ_REDIS_URL": producer_url},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["state"], last["submitted"], last["failed"]) == ("completed", 4, 1)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(one["line"], one["custom_id"]) for one in found if "result" in one] == [
        (1, "request-0"), (4, "request-1"), (5, "request-2"),
    ]  # fmt: skip
    [bad] = [one for one in found if "error" in one]
    assert (bad["line"], bad["error"]["code"]) == (3, "invalid_input")


def test_what_workers_and_clients_write_keeps_to_the_schemas(client: Client, db: redis.Redis) -> None:
    valid = {
        name: jsonschema.Draft202012Validator(json.loads((ROOT / f"docs/{name}.schema.json").read_text()))
        for name in ("record", "mark", "envelope", "message", "bare-message", "pack")
    }
    for one in valid.values():
        one.check_schema(one.schema)
    ids = [client.submit(PIPELINE, "x"), client.submit(PIPELINE, "x", params={"nonsense": 1})]
    running = client.submit(PIPELINE, "x", params={"seconds": 60})
    later = client.submit(PIPELINE, "x", delay_s=60)
    assert len(list(client.as_completed(ids, timeout_s=30))) == 2
    until(lambda: db.hexists(keys.RUNNING, running))
    valid["mark"].validate(json.loads(db.hget(keys.RUNNING, running) or ""))
    states = set()
    for round_ in range(2):
        for task_id in (*ids, running, later):
            record = json.loads(db.get(keys.record_key(task_id)) or "")
            valid["record"].validate(record)
            states.add(record["status"])
        if not round_:
            client.cancel_many([running, later])
    assert states == {"QUEUED", "STARTED", "SUCCESS", "FAILURE", "REVOKED"}
    envelope = Envelope(id="a", message=TaskMessage(pipeline=PIPELINE, inputs="x"), expires_at=time.time() + 9)
    frame = json.loads(envelope.encode(envelope.body()))
    valid["envelope"].validate(frame)
    rows = (PackRow("x"), PackRow({"text": "y"}, {"seconds": 0}, 2, "b"))
    for pack in (
        PackMessage(PIPELINE, rows, PackOf("j", 0)),
        PackMessage(PIPELINE, rows[:1], PackOf("j", 0, 1), {"a": 1}),
    ):
        valid["pack"].validate(pack.to_kwargs())
        valid["envelope"].validate(json.loads(Envelope(id="j-0", message=pack).encode("[]")))
        for wrong in ({"inputs": "x"}, {"rows": []}, {"job": {"id": "j"}}):
            assert not valid["pack"].is_valid({**pack.to_kwargs(), **wrong})
            with pytest.raises(PipeqError):
                PackMessage.parse({**pack.to_kwargs(), **wrong})
    assert not valid["envelope"].is_valid({**frame, "headers": {**frame["headers"], "task": "other"}})


def test_the_page_shows_what_the_program_does() -> None:
    for name, block in re.findall(r"<!-- in: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL):
        assert block in (ROOT / name).read_text()
    table = re.findall(r"^\| `(\w+)` \| (?:needed)? ?\|", PAGE.partition("## Poll")[0], re.MULTILINE)
    assert set(table) == set(json.loads((ROOT / "docs/bare-message.schema.json").read_text())["properties"])
    assert "(node.mjs)" in (ROOT / "examples/README.md").read_text()
