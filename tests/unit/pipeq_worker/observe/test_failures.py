"""One WARNING for each failed task, within bounds; what was left out is said."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.observe import failures as module
from pipeq_worker.observe.failures import Failures
from pipeq_worker.observe.log import JsonFormatter, TextFormatter

from tests.waiting import until


def fail(
    failures: Failures, task_id: str | None = "id-1", code: str = "timeout", message: str = "it took long"
) -> None:
    failures.failed(task_id, "asr", PipeqError(code, message), worker="w1", attempt=2)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("code", ErrorCode)
def test_each_code_is_one_line_with_all_there_is_to_know(caplog: pytest.LogCaptureFixture, code: str) -> None:
    fail(Failures(), code=code)
    (line,) = lines(caplog)
    assert line == f"task id-1 of asr failed on w1 in attempt 2: {code}: it took long"
    found = json.loads(JsonFormatter().format(caplog.records[0]))
    assert {name: found[name] for name in ("action", "task_id", "pipeline", "code", "worker", "attempts")} == {
        "action": "failed", "task_id": "id-1", "pipeline": "asr", "code": code, "worker": "w1", "attempts": 2,
    }  # fmt: skip


def test_a_message_without_an_id_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    fail(Failures(), task_id=None)
    assert lines(caplog)[0].startswith("a message of asr failed")


def test_the_traceback_is_below_the_line(caplog: pytest.LogCaptureFixture) -> None:
    error = PipeqError("internal", "x")
    error.traceback = '  File "a.py", line 1\nValueError: \x1b https://u:s3cret@h/'
    Failures().failed("id-1", "asr", error, worker="w1", attempt=1)
    first, *below = TextFormatter().format(caplog.records[0]).split("\n")
    assert first.isprintable()
    assert below == ['      File "a.py", line 1', "    ValueError: \\x1b https://...@h/"]
    assert "s3cret" not in JsonFormatter().format(caplog.records[0])
    assert json.loads(JsonFormatter().format(caplog.records[0]))["traceback"].startswith("  File")


def test_of_many_some_are_logged_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    failures = Failures(span_s=1, most=5)
    for number in range(20):
        fail(failures, f"id-{number}")
        fail(failures, f"id-{number}", "internal")
    assert len(lines(caplog)) == 10

    def summaries() -> list[str]:
        return sorted(line for line in lines(caplog) if "more tasks" in line)

    now[0] += 1  # its timer is a real one
    until(lambda: len(summaries()) == 2)
    assert summaries() == [
        "15 more tasks failed with internal within 1 s, the last one was id-19: `pipeq dead list --code internal`",
        "15 more tasks failed with timeout within 1 s, the last one was id-19: `pipeq dead list --code timeout`",
    ]
    # A new span begins.
    fail(failures, "later")
    assert "task later" in lines(caplog)[-1]
    failures.close()
    assert len(lines(caplog)) == 13


def test_a_span_that_ends_with_the_next_failure_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    failures = Failures(span_s=60, most=1)
    for _ in range(3):
        fail(failures)
    failures._timer.cancel()  # type: ignore[union-attr]
    now[0] += 61
    fail(failures)
    assert [("2 more" in line) for line in lines(caplog)] == [False, True, False]


def test_at_the_end_what_was_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures(most=1)
    for number in range(5):
        fail(failures, f"id-{number}")
    failures.close()
    assert lines(caplog)[-1].startswith("4 more tasks failed with timeout")
    failures.close()
    assert len(lines(caplog)) == 2


def test_no_failure_is_lost_among_threads(caplog: pytest.LogCaptureFixture) -> None:
    failures, start = Failures(span_s=0.02, most=3), threading.Barrier(8)

    def many() -> None:
        start.wait()
        for _ in range(500):
            fail(failures)
            time.sleep(0.0001)

    with ThreadPoolExecutor(8) as pool:
        for end in [pool.submit(many) for _ in range(8)]:
            end.result()
    failures.close()

    def told() -> int:
        left_out = [getattr(record, "left_out", None) for record in list(caplog.records)]
        return sum(count if count is not None else 1 for count in left_out)

    # Its timer may be saying something just now.
    until(lambda: told() >= 4000)
    assert told() == 4000


def test_a_line_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    fail(Failures(), "id\n12:00 INFO fine", message="a\nb\x1b[2J" + "x" * 10_000)
    assert TextFormatter().format(caplog.records[0]).isprintable()
    assert len(lines(caplog)[0]) < 1500
