"""No secret of a URI reaches an error, a record or a printed setting, by whatever way it came in."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pipeq.contract.errors import PipeqError
from pipeq.contract.message import Ref, TaskMessage
from pipeq_worker.models.task_type import Media, TaskType
from pipeq_worker.models.task_types import TASK_TYPES, find
from pipeq_worker.process.cli import worker
from pipeq_worker.settings import shown as shown_settings
from pipeq_worker.settings.read import Settings, load_settings
from pipeq_worker.settings.sections import InputSettings, ResultSettings, S3Settings
from pipeq_worker.stages.accept import read_inputs
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stores.allow import AllowList
from pipeq_worker.stores.writer import Writer

SECRETS = (
    "http://h/?sig=SECRET",
    "ftp://u:SECRET@h/",
    "https://u:SECRET@h/a",
    "https://h/a?X-Amz-Signature=SECRET",
    "https://h/a b?SECRET",
    "HTTPS://h/?SECRET",
    "s3://u:SECRET@b/k",
    "file://u:SECRET@h/k",
    "x\n://u:SECRET@h",
    "redis://:SECRET@h",
)


def check(call: Callable[[], object]) -> None:
    with pytest.raises((PipeqError, ValueError)) as caught:
        call()
    error = caught.value
    assert "SECRET" not in (error.message if isinstance(error, PipeqError) else str(error).split("[type=")[0])


def read(fetcher: Fetcher, task: TaskType, field: str, value: Any) -> None:
    inputs, _ = read_inputs(task, {**dict.fromkeys(task.fields, "x"), field: value})
    for slot in (slot for one in inputs for slot in one.slots):
        fetcher.fetch(slot.ref)


@pytest.mark.parametrize("uri", SECRETS)
def test_a_reference_of_any_scheme_in_any_place(uri: str) -> None:
    fetcher = Fetcher(InputSettings(), S3Settings())
    for name in TASK_TYPES:
        task = find(name)
        for field, media in task.fields.items():
            values = [uri, {"uri": uri}, [uri], [{"uri": uri}]] if media.is_bytes else [{"uri": uri}]
            for value in values if media is not Media.JSON else ():
                check(lambda task=task, field=field, value=value: read(fetcher, task, field, value))
    if not uri.startswith(("s3:", "file:")):
        check(lambda: TaskMessage.parse({"pipeline": "a", "inputs": "b", "output": {"uri": uri}}))
    if len(uri.split()) == 1:
        check(lambda: TaskMessage.parse({"pipeline": "a", "inputs": "b", uri: 1}))
    writer = Writer(ResultSettings(), S3Settings())
    check(lambda: writer.put(uri, b"", "text/plain"))
    check(lambda: writer.check_allowed(uri))


@pytest.mark.parametrize("uri", [uri for uri in SECRETS if not uri.startswith(("s3:", "file:"))])
def test_a_setting_that_is_refused(uri: str) -> None:
    check(lambda: AllowList([uri], "[inputs] allow").check(uri))
    for fields in (
        {"inputs": {"allow": [uri]}},
        {"results": {"store": uri}},
        {"results": {"allow": [uri]}},
        {"redis_url": uri.replace("redis:", "redos:")},
    ):
        check(lambda fields=fields: Fetcher(load_settings(None, **fields).inputs, S3Settings()))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_endpoint_of_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        for where in (f"127.0.0.1:{server.getsockname()[1]}", "127.0.0.1:port", "ho st"):
            endpoint = f"{scheme}://u:SECRET@{where}/?sig=SECRET"
            s3 = S3Settings(endpoint_url=endpoint, region="us-east-1")
            ref = Ref(uri="s3://b/k")
            check(lambda s3=s3, ref=ref: Fetcher(InputSettings(allow=("s3://b/",)), s3).fetch(ref))
            check(lambda s3=s3: Writer(ResultSettings(allow=("s3://b/",)), s3).put("s3://b/k", b"", "text/plain"))
            from pipeq_worker.models.model_archive import unpacked

            check(lambda s3=s3: unpacked("s3://b/k.zip", s3))


def test_check_prints_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEQ_S3__ENDPOINT_URL", "http://u:SECRET@minio:9000")
    config = tmp_path / "pipelines.toml"
    config.write_text('redis_url = "redis://:SECRET@h/0"\n[pipelines.constant]\n')
    done = CliRunner().invoke(worker, ["--config", str(config), "--check"])
    assert done.exit_code == 0, done.output
    assert "SECRET" not in done.output
    said = json.loads(done.output)
    assert said["redis_url"] == "redis://:***@h/0"
    assert said["s3"]["endpoint_url"] == "http://...@minio:9000"


def test_what_a_model_is_given_in_secret_is_not_printed() -> None:
    given = {"token": "SECRET", "api_key": "SECRET", "max_tokens": 5, "more": [{"password": "SECRET"}]}
    said = json.loads(
        shown_settings.as_json(Settings(pipelines={"a": {"model_kwargs": given, "params": {"top_k": 2}}}))
    )
    assert said["pipelines"]["a"]["params"] == {"top_k": 2}
    hidden = {"token": "***", "api_key": "***", "max_tokens": 5, "more": [{"password": "***"}]}
    assert said["pipelines"]["a"]["model_kwargs"] == hidden
