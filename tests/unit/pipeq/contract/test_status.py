"""A task's status, read from Celery's record of it: ours, Celery's own, and what lies over it."""

import json
import time
from typing import Any

import pytest
from pipeq.contract.message import TaskMessage
from pipeq.contract.status import CELERY_STATES, ErrorInfo, State, TaskFailedError, TaskStatus
from pipeq.envelope import Envelope

OURS = {"pipeline": "asr", "submitted_at": 100.0}
MARK = {"worker": "w1", "attempt": 2, "since": 105.0}


def record(status: str, **fields: Any) -> dict[str, Any]:
    return {"status": status, "result": None, "traceback": None, "task_id": "t", **fields}


def revoked(reason: str) -> dict[str, Any]:
    result = {"exc_type": "TaskRevokedError", "exc_message": [reason], "exc_module": "celery.exceptions"}
    return record("REVOKED", result=result, pipeq=OURS)


def test_no_record_is_unknown() -> None:
    status = TaskStatus.from_record("t", None)
    assert (status.id, status.state, status.is_final) == ("t", State.UNKNOWN, False)


@pytest.mark.parametrize(
    ("celery", "state"),
    [
        ("QUEUED", State.QUEUED),
        ("PENDING", State.QUEUED),
        ("RECEIVED", State.QUEUED),
        ("STARTED", State.RUNNING),
        ("RETRY", State.RETRYING),
        ("SUCCESS", State.SUCCEEDED),
        ("FAILURE", State.FAILED),
        ("REVOKED", State.CANCELLED),
    ],
)
def test_celerys_words_are_understood(celery: str, state: State) -> None:
    status = TaskStatus.from_record("t", record(celery, pipeq=OURS))
    assert (status.state, status.pipeline, status.submitted_at) == (state, "asr", 100.0)


def test_every_known_state_has_celerys_word() -> None:
    assert set(CELERY_STATES) == set(State) - {State.UNKNOWN}


@pytest.mark.parametrize(
    ("reason", "state"),
    [("cancelled", State.CANCELLED), ("expired", State.EXPIRED), ("revoked", State.CANCELLED)],
)
def test_the_reason_of_a_revocation_tells_expired_from_cancelled(reason: str, state: State) -> None:
    assert TaskStatus.from_record("t", revoked(reason)).state is state


@pytest.mark.parametrize("result", [None, "gone", {"exc_message": "expired"}, {"exc_message": []}])
def test_other_forms_of_a_revocation_are_read_too(result: Any) -> None:
    state = TaskStatus.from_record("t", record("REVOKED", result=result)).state
    assert state is (State.EXPIRED if result == {"exc_message": "expired"} else State.CANCELLED)


def test_a_running_mark_lies_over_a_queued_record() -> None:
    status = TaskStatus.from_record("t", record("QUEUED", pipeq=OURS), MARK)
    assert (status.state, status.worker, status.attempts, status.started_at) == (State.RUNNING, "w1", 2, 105.0)


def test_a_mark_without_a_record_is_a_stock_producers_task() -> None:
    assert TaskStatus.from_record("t", None, MARK).state is State.RUNNING


@pytest.mark.parametrize("celery", ["SUCCESS", "FAILURE", "REVOKED"])
def test_a_mark_that_was_left_behind_does_not_revive_a_task(celery: str) -> None:
    assert TaskStatus.from_record("t", record(celery), MARK).is_final


def test_a_queued_task_past_its_expiry_reads_expired() -> None:
    queued = record("QUEUED", pipeq={**OURS, "expires_at": 200.0})
    assert TaskStatus.from_record("t", queued, now=199.0).state is State.QUEUED
    assert TaskStatus.from_record("t", queued, now=201.0).state is State.EXPIRED
    # It began in time: an expiry only forbids to begin.
    assert TaskStatus.from_record("t", queued, MARK, now=201.0).state is State.RUNNING


def test_a_result_is_inline_or_elsewhere() -> None:
    inline = TaskStatus.from_record("t", record("SUCCESS", result=[1, 2], pipeq=OURS))
    assert (inline.result, inline.result_uri) == ([1, 2], None)
    uri = "s3://results/t.json"
    stored = TaskStatus.from_record("t", record("SUCCESS", result={"uri": uri}, pipeq={**OURS, "result_uri": uri}))
    assert (stored.result, stored.result_uri) == (None, uri)


def test_our_error_is_kept_and_can_be_raised() -> None:
    error = {"code": "out_of_memory", "message": "too long", "retryable": False}
    status = TaskStatus.from_record("t", record("FAILURE", pipeq={**OURS, "error": error}))
    assert status.error == ErrorInfo(**error)
    raised = TaskFailedError(status)
    assert (raised.code, raised.message, raised.retryable) == ("out_of_memory", "too long", False)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (
            {"exc_type": "NotRegistered", "exc_message": ["pipeq.infer"], "exc_module": "x"},
            "NotRegistered: pipeq.infer",
        ),
        ({"exc_type": "WorkerLostError", "exc_message": "exitcode 9"}, "WorkerLostError: exitcode 9"),
        ("boom", "boom"),
        (None, "None"),
    ],
)
def test_a_failure_that_celery_stored_is_internal(result: Any, says: str) -> None:
    status = TaskStatus.from_record("t", record("FAILURE", result=result))
    assert status.error == ErrorInfo(code="internal", message=says, retryable=False)


def test_what_ours_adds_cannot_replace_the_id_or_the_state() -> None:
    status = TaskStatus.from_record("t", record("SUCCESS", pipeq={"id": "other", "state": "failed", "later": 1}))
    assert (status.id, status.state) == ("t", State.SUCCEEDED)


def test_the_clients_own_record_reads_queued() -> None:
    message = TaskMessage.parse({"pipeline": "asr", "inputs": "x"})
    now = time.time()
    envelope = Envelope(id="t", message=message, submitted_at=now, expires_at=now + 60)
    status = TaskStatus.from_record("t", json.loads(envelope.record()))
    assert (status.state, status.pipeline, status.submitted_at) == (State.QUEUED, "asr", now)
    assert status.expires_at == now + 60


def test_the_json_form_has_every_field_always() -> None:
    fields = json.loads(TaskStatus.from_record("t", None).model_dump_json())
    assert set(fields) == set(TaskStatus.model_fields)
    assert fields["state"] == "unknown"
