"""The tree of errors: each class with its code, its HTTP status, and its pickled and stored form."""

from __future__ import annotations

import ast
import copy
import json
import pickle
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pipeq
import pytest
from celery import Celery
from pipeq.contract import errors
from pipeq.contract.errors import HTTP_STATUS, RETRYABLE, ErrorCode, PipeqError
from pipeq.contract.status import ErrorInfo, State, TaskStatus

from tools import error_docs

ROOT = Path(__file__).parents[4]
FAILED = TaskStatus(
    id="t",
    state=State.FAILED,
    submitted_at=1.5,
    attempts=1,
    error=ErrorInfo(code="out_of_memory", message="too long", retryable=False),
)
#: One instance of each class: its arguments, and its code.
EXAMPLES: dict[str, tuple[tuple[Any, ...], str]] = {
    "EventsTrimmedError": (("5 events are gone",), "events_trimmed"),
    "MissingPackageError": (("pip install it",), "missing_package"),
    "PipeqError": (("invalid_input", "no"), "invalid_input"),
    "QueueFullError": (("it is full", ["a"]), "queue_full"),
    "ReadError": (("input_forbidden", "no"), "input_forbidden"),
    "RedisUnavailableError": (("it is away", False), "redis_unavailable"),
    "RedisUrlError": (("it is none",), "invalid_settings"),
    "SettingsError": (("max_bytes is 0",), "invalid_settings"),
    "SubmitError": (("input_too_large", "no", None, ["a", "b"]), "input_too_large"),
    "SubmitUnavailableError": (("it is away", True, ["a"]), "redis_unavailable"),
    "TaskFailedError": ((FAILED,), "out_of_memory"),
    "WaitTimeoutError": (("1 of 2 tasks",), "timeout"),
}


def made(name: str) -> PipeqError:
    error = getattr(pipeq, name)(*EXAMPLES[name][0])
    assert isinstance(error, PipeqError)
    return error


def same(one: PipeqError, other: BaseException) -> bool:
    return (type(one), vars(one), one.args, str(one)) == (type(other), vars(other), other.args, str(other))


def test_every_class_is_walked_here() -> None:
    public = {name for name in pipeq.__all__ if name.endswith("Error")}
    assert public == EXAMPLES.keys()
    ours = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, PipeqError)}
    assert ours <= public, "what a client raises is given out by the package"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_class_says_its_code(name: str) -> None:
    error = made(name)
    assert error.code == EXAMPLES[name][1] == ErrorCode(error.code)
    assert error.http_status == HTTP_STATUS[ErrorCode(error.code)]
    assert str(error) == f"{error.code}: {error.message}"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_error_can_be_pickled_copied_and_made_anew(name: str) -> None:
    error = made(name)
    assert same(error, pickle.loads(pickle.dumps(error)))
    assert same(error, copy.copy(error))
    assert same(error, type(error)(*json.loads(json.dumps(error.args))))


@pytest.mark.parametrize("name", EXAMPLES)
def test_celery_stores_an_error_and_makes_it_anew(name: str) -> None:
    """A Celery task of the caller that asks for a result, and fails with its error."""
    backend = Celery(backend="cache+memory://").backend
    error = made(name)
    stored = json.loads(json.dumps(backend.prepare_exception(error, serializer="json")))
    assert same(error, backend.exception_to_python(stored))


def test_what_an_error_holds() -> None:
    submit = made("SubmitUnavailableError")
    assert isinstance(submit, pipeq.SubmitError)
    assert isinstance(submit, pipeq.RedisUnavailableError)
    assert (submit.submitted, submit.retryable) == (("a",), True)
    failed = pipeq.TaskFailedError(FAILED)
    assert failed.status is FAILED
    assert isinstance(made("WaitTimeoutError"), TimeoutError)
    for state in (State.CANCELLED, State.EXPIRED):
        assert pipeq.TaskFailedError(TaskStatus(id="t", state=state)).code == state


def test_every_code_has_a_status_in_http() -> None:
    assert HTTP_STATUS.keys() == set(ErrorCode)
    for code, status in HTTP_STATUS.items():
        assert HTTPStatus(status) >= 400, code
    assert {HTTP_STATUS[code] for code in RETRYABLE} == {503}
    assert PipeqError("a code of a later version", "x").http_status == 500


def modules() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("producers/pipeq", "worker/pipeq_worker", "examples", "benchmarks", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def test_nothing_is_patched_onto_an_exception() -> None:
    for where, tree in modules():
        for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name):
            for node in ast.walk(handler):
                targets = node.targets if isinstance(node, ast.Assign) else []
                patched = [one for one in targets if isinstance(one, ast.Attribute) and _is(one.value, handler.name)]
                if isinstance(node, ast.Call) and _is(node.func, "setattr") and _is(node.args[0], handler.name):
                    patched.append(node.args[0])
                assert not patched, f"{where}:{node.lineno}"  # type: ignore[attr-defined]


def _is(node: ast.AST, name: str | None) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def test_the_docs_say_every_code_and_class() -> None:
    page = error_docs.page()
    assert (ROOT / "docs/errors.md").read_text(encoding="utf-8") == page, "run `make docs`"
    for name in (*ErrorCode, *EXAMPLES):
        assert f"\n| `{name}` |" in page
