"""Texts of tracebacks: where something was raised, and no more than that in a record."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pipeq.contract.errors import PipeqError
from pipeq_worker.observe import traces
from pipeq_worker.observe.traces import RECORD_CHARS, for_record, internal, trace_of
from pipeq_worker.stores.base import Fault, StoreError

SECRET = "https://user:s3cret@h/a?X-Amz-Signature=abcdef012345"


def caught(raise_it: Any) -> BaseException:
    try:
        raise_it()
    except BaseException as error:
        return error
    raise AssertionError


def fails(text: str = "the input was 'fox'") -> None:
    raise ValueError(text)


def wraps(text: str = "the input was 'fox'") -> None:
    try:
        fails(text)
    except ValueError as error:
        raise PipeqError("inference_failed", "it failed") from error


def test_a_trace_says_where_and_why() -> None:
    where, code, what = trace_of(caught(fails)).split("\n")[-3:]
    assert where.startswith('  File "observe/test_traces.py", line ')
    assert where.endswith(", in fails")
    assert (code, what) == ("    raise ValueError(text)", "ValueError: the input was 'fox'")


def test_the_cause_of_our_own_error_counts() -> None:
    assert "PipeqError" not in trace_of(caught(wraps))
    assert trace_of(caught(wraps)).endswith("ValueError: the input was 'fox'")

    def located() -> None:
        try:
            wraps()
        except PipeqError as error:
            raise PipeqError(error.code, f"inputs[1]: {error.message}") from error

    assert trace_of(caught(located)).endswith("ValueError: the input was 'fox'")


def test_what_pipeq_found_itself_has_no_trace() -> None:
    def refuses() -> None:
        raise PipeqError("invalid_input", "it is no text")

    def hides() -> None:
        try:
            fails()
        except ValueError:
            raise PipeqError("invalid_input", "it is no text") from None

    def is_not_allowed() -> None:
        raise StoreError(Fault.REFUSED, "this worker's settings do not allow it")

    def of_a_store() -> None:
        try:
            is_not_allowed()
        except StoreError as error:
            raise error.of_input() from error

    assert trace_of(caught(of_a_store)) == trace_of(caught(is_not_allowed)) == ""
    assert trace_of(caught(refuses)) == trace_of(caught(hides)) == trace_of(PipeqError("internal", "x")) == ""


def test_causes_come_first() -> None:
    def leads() -> None:
        try:
            fails("first")
        except ValueError as error:
            raise KeyError("second") from error

    lines = trace_of(caught(leads)).split("\n")
    assert lines.index("ValueError: first") < lines.index("This led to:") < lines.index("KeyError: 'second'")


def test_a_record_gets_no_message() -> None:
    text = for_record(trace_of(caught(lambda: wraps(f"'fox' {SECRET}\nsecond: line\n  third"))))
    assert text.endswith("\nValueError")
    assert "fox" not in text.replace("the input was 'fox'", "")
    assert "second" not in text
    assert "in fails" in text


def test_no_secret_is_in_it() -> None:
    text = trace_of(caught(lambda: fails(SECRET)))
    assert "s3cret" not in text
    assert "abcdef012345" not in text


def test_a_library_is_named_without_the_way_to_it() -> None:
    text = trace_of(caught(lambda: json.loads("{")))
    assert '  File "json/decoder.py", line ' in text
    assert "/usr" not in text
    assert "/root" not in text
    assert "json.decoder.JSONDecodeError: " in text


@pytest.mark.parametrize("depth", [1, 14, 15, 16, 17, 200])
def test_many_frames_are_cut_in_the_middle(depth: int) -> None:
    def deeper(left: int) -> None:
        if left:
            deeper(left - 1)
        else:
            fails("x" * 10**6)

    text = trace_of(caught(lambda: deeper(depth)))
    assert text.count("  File ") <= traces.FIRST + traces.LAST
    assert "in fails" in text
    assert len(text) < 10_000
    assert len(for_record(text)) <= RECORD_CHARS + 4


def test_an_exception_that_cannot_be_shown_is_no_trouble() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    class LoopError(Exception):
        pass

    assert "Odd" in trace_of(OddError())
    loop = LoopError()
    loop.__cause__ = loop
    assert trace_of(loop).endswith("LoopError")
    assert "\x1b" not in trace_of(ValueError("\x1b[2J\n\u2028x"))


def test_a_bug_of_ours_has_its_trace() -> None:
    error = internal(caught(fails))
    assert (error.code, error.message) == ("internal", "ValueError: the input was 'fox'")
    assert error.traceback.endswith("ValueError: the input was 'fox'")
    assert error.bare("inputs[1]: ").traceback == error.traceback
