"""Every public name of pipeq, and each of its parameters, with nonsense: only PipeqErrors may be raised.

test_arguments.py tests which argument an error names, and that nothing is written.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pipeq
import pytest
import redis
from pipeq import (
    Client,
    DeadLetter,
    Event,
    Output,
    PipeqError,
    ReadError,
    RedisUnavailableError,
    RedisUrlError,
    Ref,
    State,
    TaskMessage,
    TaskStatus,
)
from pipeq.contract import keys as names
from pydantic import BaseModel

from tests import both_clients
from tests.integration.test_arguments import ODD

PIPELINE = "text-classification"


class Raises:
    """An error in the caller's own code."""

    def __iter__(self) -> Iterator[Any]:
        raise OSError("the disk is gone")


#: Texts that resemble a URI, an id, a path or a record; in addition to ODD.
TEXTS = """
    gs://bucket/key az://c/b hf://owner/name ftp://h/x http://h/x HTTPS://h/x data:text/plain,x s3:// s3:/// s3://b s3://b/
    s3:b s3://b/../k file:// file:/// file://host/x file:///nul%00 https:// https://[ https://h:99999999/ ://x // / .. ~
    redis:// redis://[ redis://h:x redis://h/x redis://h?x=y redis://a..b/0 rediss://h?ssl_cert_reqs=x unix:///nowhere
    unix:// redis://h,g/0 redis://:p@ss@h sentinel://h a.wav {} [] null 1e999 NaN
""".split()
NONSENSE: dict[str, Any] = ODD | {text: text for text in TEXTS}
NONSENSE |= {
    "{" * 9: "{" * 9,
    "brackets": b"[" * 50_000,
    "null byte": "a\0b",
    "host of one long label": f"redis://{'a' * 300}/0",
    "a reference": Ref("s3://b/k"),
    "a status": TaskStatus(id="x", state=State.UNKNOWN),
    "an error": ValueError("x"),
    "raises": Raises(),
}


def parameters(call: Any) -> set[str]:
    """The fields of a pydantic class, or the parameters of another callable."""
    if isinstance(call, type) and issubclass(call, BaseModel):
        return set(call.model_fields)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name for name, one in inspect.signature(call).parameters.items() if one.kind not in kinds} - {"self", "cls"}


#: Valid arguments, of which the test replaces one at a time by nonsense.
GOOD: dict[str, dict[str, Any]] = {
    "Client": {"redis_url": None, "allow": None, "max_message_bytes": 1000, "upload": None},
    "Client.submit": {"pipeline": PIPELINE, "inputs": "x"},
    "Client.submit_many": {"pipeline": PIPELINE, "inputs": ["x"]},
    "Client.submit_each": {"pipeline": PIPELINE, "inputs": ["x"]},
    "Client.map": {"pipeline": PIPELINE, "inputs": [], "expires_s": 0},  # nobody answers
    "Client.cancel": {"task_id": "other"},
    "Client.dead": {"pipeline": PIPELINE},
    "Client.purge": {"pipeline": PIPELINE},
    "Client.forget": {"pipeline": PIPELINE, "force": True},
    "Client.events": {"after": "0", "timeout_s": 0},
    "Client.keep_events": {"count": 10},
    "Client.queue": {"pipeline": PIPELINE},
    "Client.cancel_many": {"task_ids": ["other"]},
    "Client.cancel_pipeline": {"pipeline": PIPELINE},
    "Client.status": {"task_id": "ended"},
    "Client.status_many": {"task_ids": ["ended"]},
    "Client.wait": {"task_id": "ended", "timeout_s": 0},
    "Client.as_completed": {"task_ids": ["ended"], "timeout_s": 0},
    "Client.result": {"task": "ended", "timeout_s": 0},
    "Client.read": {"part": {"base64": "eA=="}},
    "DeadLetter": dict.fromkeys(parameters(DeadLetter)),
    "Event": dict.fromkeys(parameters(Event)),
    "Ref": {"uri": "s3://b/k"},
    "Ref.from_bytes": {"data": b"x"},
    "Ref.from_path": {"path": "x"},
    "Ref.of": {"source": "x"},
    "Ref.is_ref": {"value": {}},
    "Output": {"uri": "s3://b/k/"},
    "Output.object_uri": {"task_id": "x"},
    "TaskMessage": {"pipeline": PIPELINE, "inputs": "x"},
    "TaskMessage.destination": {"task_id": "x"},
    "TaskMessage.parse": {"fields": {"pipeline": PIPELINE, "inputs": "x"}},
    "TaskStatus": {"id": "x", "state": "succeeded"},
}
# The asynchronous client takes the same.
GOOD |= {f"Async{name}": given for name, given in GOOD.items() if name.partition(".")[0] == "Client"}


def public() -> dict[str, set[str]]:
    """Every public name, and each method of our public classes -> its parameters."""
    found = {}
    for name in pipeq.__all__:
        value = getattr(pipeq, name)
        # Python itself refuses unknown members of an enumeration; exceptions and warnings are made only by us.
        if issubclass(value, Enum | Exception):
            continue
        found[name] = parameters(value)
        for method, raw in vars(value).items():
            is_ours = isinstance(raw, classmethod) or (inspect.isfunction(raw) and raw.__module__.startswith("pipeq"))
            if is_ours and not method.startswith("_"):
                found[f"{name}.{method}"] = parameters(getattr(value, method))
    return {name: params for name, params in found.items() if params}


CASES = [(name, parameter) for name, params in sorted(public().items()) for parameter in sorted(params)]


@pytest.fixture
def client(valkey_url: str) -> Iterator[Client]:
    with redis.Redis.from_url(valkey_url) as db:
        db.flushdb()
        db.hset(names.PIPELINES, PIPELINE, "{}")
        db.zadd(names.workers_key(PIPELINE), {"w1": time.time() + 3600})
        db.set(names.record_key("ended"), json.dumps({"status": "SUCCESS", "result": 1, "pipeq": {}}))
    with Client(valkey_url) as client:
        yield client


@pytest.fixture(scope="module")
def awaited(valkey_url: str) -> Iterator[Client]:
    with both_clients.make("AsyncClient", valkey_url) as client:
        yield client


@pytest.mark.parametrize(("name", "parameter"), CASES, ids=["-".join(case) for case in CASES])
def test_nothing_but_our_own_errors_comes_out(client: Client, awaited: Client, name: str, parameter: str) -> None:
    owner, _, method = name.partition(".")
    call: Callable[..., Any] = getattr(pipeq, owner)
    if method:
        named = TaskMessage(pipeline=PIPELINE, inputs="x", output=Output(uri="s3://b/{date}/{id}"))
        on = {"Client": client, "AsyncClient": awaited, "Output": Output(uri="s3://b/k/"), "TaskMessage": named}
        on = on.get(owner, call)
        call = getattr(on, method)
    wrong = []
    for kind, value in NONSENSE.items():
        try:
            found = call(**{**GOOD[name], parameter: value})
            if inspect.isgenerator(found):
                list(found)
        except PipeqError as error:
            if not error.message.isprintable():
                wrong.append(f"{kind}: {error.message!r}")
        except Exception as error:
            wrong.append(f"{kind}: {type(error).__name__}: {str(error)[:200]}")
    assert not wrong, "\n".join(wrong)


def test_every_public_name_is_walked() -> None:
    assert public().keys() == GOOD.keys()


@pytest.mark.parametrize("kind", [kind for kind, value in NONSENSE.items() if isinstance(value, str)])
def test_a_client_of_any_url_says_what_is_wrong(kind: str) -> None:
    """Even a well-formed URL may lead to no server."""
    try:
        client = Client(NONSENSE[kind])
    except RedisUrlError:
        return
    for call in (client.ping, client.pipelines, client.queues, lambda: client.status("x"), client.close):
        with contextlib.suppress(RedisUnavailableError):
            call()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_ENDPOINT_URL", "nonsense"),
        ("AWS_ENDPOINT_URL", "http://[::1:80"),
        ("AWS_ENDPOINT_URL", "http://a..b:1"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_DEFAULT_REGION", "x y"),
        ("AWS_PROFILE", "nobody"),
        ("AWS_MAX_ATTEMPTS", "x"),
        ("AWS_RETRY_MODE", "x"),
    ],
)
def test_an_environment_that_s3_cannot_use_is_an_error_of_reading(
    client: Client, valkey_url: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    given = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, text in {**given, variable: value}.items():
        monkeypatch.setenv(name, text)
    stored = TaskStatus(id="x", state=State.SUCCEEDED, result_uri="s3://b/k")
    with Client(valkey_url, allow="s3://b/") as reading:
        for read in (lambda: reading.read({"uri": "s3://b/k"}), lambda: reading.result(stored)):
            with pytest.raises(ReadError, match="output_failed"):
                read()
