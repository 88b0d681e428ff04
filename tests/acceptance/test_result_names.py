"""Results go where their names say: each field in files and on S3, from a client, a bare message and Celery."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import redis
from celery import Celery
from pipeq import Client, PipeqError, State
from pipeq.contract import keys, naming
from pipeq.demo import embedded

from tests.commands import run
from tests.worker_process import WorkerProcess, worker

PIPELINE = "constant"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def process(
    url: str, folder: Path, s3_server: embedded.S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    own = tmp_path_factory.mktemp("worker")
    (own / "pipelines.toml").write_text(
        f'[results]\nallow = ["{folder.as_uri()}/", "s3://results/names/"]\n[pipelines.{PIPELINE}]\n'
    )
    env = s3_server.env()
    with worker(own, url, "--config", own / "pipelines.toml", **env) as process, Client(url) as client:
        process.wait_ready(client, PIPELINE)
        yield process


@pytest.fixture
def client(url: str, process: WorkerProcess, s3_server: embedded.S3Server, monkeypatch: Any) -> Iterator[Client]:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    with Client(url, allow=()) as client:
        yield client


@pytest.fixture
def db(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, decode_responses=True) as db:
        db.delete(keys.dead_letter_key(PIPELINE))
        yield db


class Places:
    """Where results go, and what is there."""

    def __init__(self, folder: Path, s3_server: embedded.S3Server) -> None:
        self._s3 = s3_server.client()
        self.prefixes = {"file": f"{folder.as_uri()}/", "s3": "s3://results/names/"}

    def read(self, uri: str) -> Any:
        if uri.startswith("file://"):
            return json.loads(Path(unquote(uri.removeprefix("file://"))).read_bytes())
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return json.loads(self._s3.get_object(Bucket=bucket, Key=key)["Body"].read())


@pytest.fixture(scope="module")
def places(folder: Path, s3_server: embedded.S3Server) -> Places:
    return Places(folder, s3_server)


#: Field -> what it is for the input below; None for what differs.
FOUND = {
    "id": None,
    "custom_id": "row~2F7",
    "pipeline": PIPELINE,
    "date": None,
    "stem": "a~20talk",
    "extension": "flac",
    "name": "a~20talk.flac",
}
INPUT = {"uri": "s3://talks/2026/a talk.flac"}


@pytest.mark.parametrize("scheme", ["file", "s3"])
@pytest.mark.parametrize("is_list", [False, True], ids=["single", "list"])
@pytest.mark.parametrize("sender", ["client", "bare", "celery"])
def test_each_field(
    client: Client, db: redis.Redis, url: str, places: Places, scheme: str, is_list: bool, sender: str
) -> None:
    assert set(FOUND) == set(naming.FIELDS)
    days, ids, expected = {time.strftime("%Y-%m-%d", time.gmtime())}, {}, {}
    for field, value in FOUND.items():
        task_id = str(uuid.uuid4())
        output = f"{places.prefixes[scheme]}{sender}/x-{{{field}}}/{{id}}.json"
        message = {"pipeline": PIPELINE, "inputs": [INPUT] if is_list else INPUT, "output": {"uri": output}}
        if field == "custom_id":
            message["custom_id"] = "row/7"
        if sender == "client":
            custom_id = message.get("custom_id")
            client.submit(PIPELINE, message["inputs"], output=output, task_id=task_id, custom_id=custom_id)
        elif sender == "bare":
            db.lpush(PIPELINE, json.dumps({"id": task_id, **message}))
        else:
            with Celery(broker=url, backend=url, set_as_current=False) as app:
                app.send_task(keys.TASK_NAME, kwargs=message, queue=PIPELINE, task_id=task_id)
        ids[field], expected[field] = task_id, value or task_id
    statuses = {one.id: one for one in client.as_completed(ids.values(), timeout_s=60)}
    days.add(time.strftime("%Y-%m-%d", time.gmtime()))
    for field, task_id in ids.items():
        status = statuses[task_id]
        assert status.state is State.SUCCEEDED, status.error
        assert status.result_uri is not None
        below = f"{places.prefixes[scheme]}{sender}/x-"
        wanted = "|".join(days) if field == "date" else re.escape(expected[field])
        assert re.fullmatch(f"{re.escape(below)}({wanted})/{task_id}.json", status.result_uri)
        assert places.read(status.result_uri) == (["constant"] if is_list else "constant")
        if sender == "client":
            # Its own outputs it may read.
            assert client.result(task_id, 10) == places.read(status.result_uri)


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_many_of_one_name_are_kept_apart(client: Client, places: Places, scheme: str) -> None:
    output = places.prefixes[scheme] + "same/{stem}-{id}.json"
    ids = client.submit_many(PIPELINE, [{"uri": f"s3://talks/{day}/a.flac"} for day in range(5)], output=output)
    found = {one.result_uri for one in client.as_completed(ids, timeout_s=60)}
    assert found == {f"{places.prefixes[scheme]}same/a-{task_id}.json" for task_id in ids}
    assert client.result(ids[0], 10) == "constant"


@pytest.mark.parametrize("scheme", ["file", "s3"])
@pytest.mark.parametrize("sender", ["client", "bare"])
def test_what_was_asked_stands_beside_what_was_answered(
    client: Client, db: redis.Redis, places: Places, scheme: str, sender: str
) -> None:
    inputs = [{"uri": "https://host/a.flac?signature=secret"}, {"base64": "eA=="}, "ä"]
    output = {"uri": f"{places.prefixes[scheme]}asked/{{id}}.json", "include_inputs": True}
    if sender == "client":
        task_id = client.submit(PIPELINE, inputs, params={"seconds": 0.01}, output=output)
    else:
        task_id = str(uuid.uuid4())
        fields = {"params": {"seconds": 0.01}, "output": output, "custom_id": "mine"}
        db.lpush(PIPELINE, json.dumps({"id": task_id, "pipeline": PIPELINE, "inputs": inputs, **fields}))
    status = client.wait(task_id, 30)
    assert status.state is State.SUCCEEDED, status.error
    found = places.read(status.result_uri or "")
    assert found["result"] == ["constant"] * 3
    asked = found["pipeq"]
    assert (asked["id"], asked["pipeline"], asked["params"]) == (task_id, PIPELINE, {"seconds": 0.01})
    assert asked.get("custom_id") == (None if sender == "client" else "mine")
    assert "secret" not in json.dumps(asked)
    assert [*asked["inputs"][0], asked["inputs"][1]["bytes"], asked["inputs"][2]] == ["uri", 1, "ä"]
    if sender == "client":
        assert client.result(task_id, 10) == ["constant"] * 3


#: Output of a bare message -> what its error says, and its code.
WRONG = {
    "{prefix}{stam}-{id}": ("unknown field {stam}", "invalid_message"),
    "{prefix}{stem}.json": ("has no {id}", "invalid_message"),
    "{prefix}{stem}-{id}": ("the task's inputs have 2 references", "invalid_message"),
    "{prefix}{custom_id}-{id}": ("the task has no custom_id", "invalid_message"),
    "{prefix}../{id}": ("has '.' or '..' as a part of its path", "invalid_message"),
    "{elsewhere}{pipeline}/{id}": ("do not allow", "input_forbidden"),
}


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_mistakes_are_errors_at_the_submit_and_in_the_worker(
    client: Client, db: redis.Redis, places: Places, scheme: str
) -> None:
    inputs = [{"uri": "s3://a/b"}, {"uri": "s3://a/c"}]
    elsewhere = {"file": "file:///tmp/elsewhere/", "s3": "s3://results/other/"}[scheme]
    for template, (sentence, code) in WRONG.items():
        uri = template.replace("{prefix}", places.prefixes[scheme]).replace("{elsewhere}", elsewhere)
        if code == "invalid_message":
            with pytest.raises(PipeqError) as caught:
                client.submit(PIPELINE, inputs, output=uri)
            assert caught.value.code == code
            assert sentence in caught.value.message
        task_id = str(uuid.uuid4())
        fields = {"pipeline": PIPELINE, "inputs": inputs, "output": {"uri": uri}}
        db.lpush(PIPELINE, json.dumps({"id": task_id, **fields}))
        error = client.wait(task_id, 30).error
        assert error is not None
        assert error.code == code, (uri, error)
        assert sentence in error.message


def test_the_next_task_of_a_chain_gets_no_inputs_of_the_one_before(client: Client, url: str, places: Places) -> None:
    output = {"uri": places.prefixes["s3"] + "chain/{id}.json", "include_inputs": True}
    with Celery(broker=url, backend=url, set_as_current=False) as app:
        kwargs = {"pipeline": PIPELINE, "inputs": "x", "output": output}
        first = app.signature(keys.TASK_NAME, kwargs=kwargs, queue=PIPELINE)
        last = app.signature(keys.TASK_NAME, kwargs={"pipeline": PIPELINE}, queue=PIPELINE)
        task_id = (first | last).apply_async().parent.id
    error = client.wait(task_id, 30).error
    assert error is not None
    assert (error.code, "include_inputs" in error.message) == ("invalid_message", True)


def test_a_name_is_the_same_when_it_is_submitted_again(client: Client, places: Places) -> None:
    """The id and the day differ, and the task is the same."""
    output = places.prefixes["file"] + "once/{date}/{id}.json"
    ids = {client.submit(PIPELINE, "x", output=output, idempotency_key="one") for _ in range(2)}
    assert len(ids) == 1
    with pytest.raises(PipeqError, match=r"the idempotency key .* with other inputs, params or output"):
        client.submit(PIPELINE, "x", output=output.replace("once", "twice"), idempotency_key="one")


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_the_command_line(client: Client, url: str, places: Places, scheme: str) -> None:
    below = f"{places.prefixes[scheme]}shell/"
    arguments = ["submit", PIPELINE, "a", "b", "--output", below + "{pipeline}-{id}", "--include-inputs", "--json"]
    done = run(*arguments, "--wait", "--redis-url", url)
    assert done.exit_code == 0, done.output
    statuses = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["result_uri"] for one in statuses] == [f"{below}{PIPELINE}-{one['id']}" for one in statuses]
    assert [places.read(one["result_uri"])["pipeq"]["inputs"] for one in statuses] == ["a", "b"]
    alone = run("submit", PIPELINE, "a", "--include-inputs", "--redis-url", url)
    assert alone.exit_code == 2
    assert "give --output, too" in alone.output
