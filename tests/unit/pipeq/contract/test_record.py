"""A task's state in Redis: its record (ours or Celery's own), its mark, and the status that both give."""

import ast
import json
import re
import time
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from pipeq.contract import record as records
from pipeq.contract.errors import PipeqError
from pipeq.contract.message import TaskMessage
from pipeq.contract.record import Before, Mark, Part, Record
from pipeq.contract.status import BatchInfo, ErrorInfo, ModelInfo, Progress, State, TaskFailedError, TaskStatus
from pipeq.envelope import Envelope

from tests.plain_reader import read_as_the_page_says
from tools import record_tables

OURS = {"pipeline": "asr", "submitted_at": 100.0}
MARK = {"worker": "w1", "attempt": 2, "since": 105.0}


def record(status: str, **fields: Any) -> dict[str, Any]:
    return {"status": status, "result": None, "traceback": None, "task_id": "t", **fields}


def status_of(
    fields: dict[str, Any] | None, mark: dict[str, Any] | None = None, now: float | None = None
) -> TaskStatus:
    """The status of the task "t" from the given content of Redis."""
    text, marked = (None if one is None else json.dumps(one) for one in (fields, mark))
    return records.read("t", text, marked, now=now)


def revoked(reason: str) -> dict[str, Any]:
    result = {"exc_type": "TaskRevokedError", "exc_message": [reason], "exc_module": "celery.exceptions"}
    return record("REVOKED", result=result, pipeq=OURS)


def test_no_record_is_unknown() -> None:
    status = status_of(None)
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
    status = status_of(record(celery, pipeq=OURS))
    assert (status.state, status.pipeline, status.submitted_at) == (state, "asr", 100.0)


@pytest.mark.parametrize(
    ("reason", "state"),
    [("cancelled", State.CANCELLED), ("expired", State.EXPIRED), ("revoked", State.CANCELLED)],
)
def test_the_reason_of_a_revocation_tells_expired_from_cancelled(reason: str, state: State) -> None:
    assert status_of(revoked(reason)).state is state


@pytest.mark.parametrize("result", [None, "gone", {"exc_message": "expired"}, {"exc_message": []}])
def test_other_forms_of_a_revocation_are_read_too(result: Any) -> None:
    state = status_of(record("REVOKED", result=result)).state
    assert state is (State.EXPIRED if result == {"exc_message": "expired"} else State.CANCELLED)


def test_a_running_mark_lies_over_a_queued_record() -> None:
    status = status_of(record("QUEUED", pipeq=OURS), MARK)
    assert (status.state, status.worker, status.attempts, status.started_at) == (State.RUNNING, "w1", 2, 105.0)


def test_a_mark_without_a_record_is_a_stock_producers_task() -> None:
    assert status_of(None, MARK).state is State.RUNNING


@pytest.mark.parametrize("celery", ["SUCCESS", "FAILURE", "REVOKED"])
def test_a_mark_that_was_left_behind_does_not_revive_a_task(celery: str) -> None:
    assert status_of(record(celery), MARK).is_final


def test_a_queued_task_past_its_expiry_reads_expired() -> None:
    queued = record("QUEUED", pipeq={**OURS, "expires_at": 200.0})
    assert status_of(queued, now=199.0).state is State.QUEUED
    assert status_of(queued, now=201.0).state is State.EXPIRED
    # It began in time; an expiry only forbids to begin.
    assert status_of(queued, MARK, now=201.0).state is State.RUNNING


def test_a_result_is_inline_or_elsewhere() -> None:
    inline = status_of(record("SUCCESS", result=[1, 2], pipeq=OURS))
    assert (inline.result, inline.result_uri) == ([1, 2], None)
    uri = "s3://results/t.json"
    stored = status_of(record("SUCCESS", result={"uri": uri}, pipeq={**OURS, "result_uri": uri}))
    assert (stored.result, stored.result_uri) == (None, uri)


def test_our_error_is_kept_and_can_be_raised() -> None:
    error = {"code": "out_of_memory", "message": "too long", "retryable": False}
    status = status_of(record("FAILURE", pipeq={**OURS, "error": error}))
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
    status = status_of(record("FAILURE", result=result))
    assert status.error == ErrorInfo(code="internal", message=says, retryable=False)


def test_what_ours_adds_cannot_replace_the_id_or_the_state() -> None:
    status = status_of(record("SUCCESS", pipeq={"id": "other", "state": "failed", "later": 1}))
    assert (status.id, status.state) == ("t", State.SUCCEEDED)


def test_the_clients_own_record_reads_queued() -> None:
    message = TaskMessage.parse({"pipeline": "asr", "inputs": "x"})
    now = time.time()
    envelope = Envelope(id="t", message=message, submitted_at=now, expires_at=now + 60)
    status = records.read("t", envelope.record())
    assert (status.state, status.pipeline, status.submitted_at) == (State.QUEUED, "asr", now)
    assert status.expires_at == now + 60


# -- what is built ----------------------------------------------------------------------------------------------------

#: Every field, with values that a worker may put into it.
WHOLE: dict[str, Any] = {
    "pipeline": "asr",
    "submitted_at": 100.5,
    "due_at": 101.0,
    "expires_at": 4e9,
    "message_sha256": "5e" * 32,
    "started_at": 101.25,
    "finished_at": 102.0,
    "attempts": 3,
    "worker": "w1@host",
    "timing_ms": {"queued": 1.5, "fetch": 2.0, "infer": 3.25},
    "batch": BatchInfo(size=4, padding=0.125),
    "model": ModelInfo(id="m", dtype="float32"),
    "result_uri": "s3://results/t.json",
    "error": PipeqError("out_of_memory", "too long", False),
    "history": [{"worker": "w0", "started_at": 99.0, "ended_at": 99.5, "code": "input_unavailable", "stage": "fetch"}],
}
#: Values of any field of a record that another client has written.
NONSENSE: list[Any] = [
    *(None, True, -1, 1e308, float("nan"), float("inf"), 10**299),
    *("", "x", "\ud800", "x" * 5000, [], [None], {}, {"a": {"b": []}}, json.loads("[" * 150 + "]" * 150)),
]
PARTS = sorted(WHOLE)
FIELDS = [one.name for one in fields(Record)]


def test_the_parts_fields_are_those_of_the_status() -> None:
    names = {one.name for one in fields(Part)}
    assert names == set(WHOLE)
    # How far a task is, its mark says.
    assert names == set(TaskStatus.model_fields) - {"id", "state", "result", "progress"} | {"message_sha256"}


@pytest.mark.parametrize("name", PARTS)
def test_each_field_is_read_as_it_was_written(name: str) -> None:
    fields = {"status": "RETRY", "pipeq": Part(**{name: WHOLE[name]}).fields()}
    assert list(fields["pipeq"]) == [name]
    status = status_of(fields)
    if name == "error":
        assert status.error == ErrorInfo(code="out_of_memory", message="too long", retryable=False)
    elif name == "message_sha256":
        assert Before.read(json.dumps(fields)).message_sha256 == WHOLE[name]
    elif name == "history":
        assert [one.model_dump(exclude_none=True) for one in status.history] == WHOLE[name]
        assert Before.read(json.dumps(fields)).history == WHOLE[name]
    else:
        assert getattr(status, name) == WHOLE[name]
    # The other fields are as in an empty record.
    nothing = status_of({"status": "RETRY"})
    assert status.model_copy(update={name: getattr(nothing, name, None)}) == nothing


def test_the_first_record_is_laid_out_as_any_other() -> None:
    part = Part(pipeline="asr", submitted_at=1.0, expires_at=2.0, message_sha256="ab")
    for task_id in ("t", 'a"b\\', "\N{SNOWMAN}"):
        whole = Record(status="QUEUED", task_id=task_id, pipeq=part.fields())
        # But for a blank, which a script replaces together with the word.
        assert records.queued(task_id, part).replace('"QUEUED" ,', '"QUEUED",', 1) == whole.encode()
    assert list(json.loads(whole.encode())) == FIELDS


def test_a_cancelled_task_keeps_what_its_record_said() -> None:
    before = record("RETRY", children=[["child"]], pipeq=Part(**WHOLE).fields())
    after = json.loads(records.cancelled("t", json.dumps(before)))
    assert list(after) == FIELDS
    assert (after["status"], after["children"], after["task_id"]) == ("REVOKED", [["child"]], "t")
    kept = {name: value for name, value in before["pipeq"].items() if name not in ("error", "finished_at", "timing_ms")}
    ended_at, told = after["pipeq"]["finished_at"], after["pipeq"]["timing_ms"]
    assert {**kept, "finished_at": ended_at, "timing_ms": told} == after["pipeq"]
    assert time.time() - 10 < ended_at <= time.time()
    # Those of the last try were told with it; now they are those of the whole life, in which it waited.
    assert told == {"delayed": 500.0, "queued": pytest.approx((ended_at - 101) * 1000, abs=1)}
    assert status_of(after).state is State.CANCELLED
    assert status_of(json.loads(records.cancelled("t", None))).state is State.CANCELLED


def test_what_celery_ends_by_itself_keeps_what_its_record_said() -> None:
    meta = revoked("expired")
    del meta["pipeq"], meta["task_id"]
    records.complete(meta, "t", None, json.dumps(record("QUEUED", pipeq={**OURS, "error": "of before"})).encode())
    assert meta["task_id"] == "t"
    ended_at = meta["pipeq"]["finished_at"]
    queued = {"queued": pytest.approx((ended_at - OURS["submitted_at"]) * 1000, abs=1)}
    assert meta["pipeq"] == {**OURS, "finished_at": ended_at, "timing_ms": queued}
    assert status_of(meta).state is State.EXPIRED
    # Nothing is invented for a task that pipeq never wrote about.
    for before in (None, b"", b"{}", b'{"pipeq": 5}', b'{"pipeq": {}}'):
        meta = {"status": "REVOKED"}
        records.complete(meta, "t", None, before)
        assert meta == {"status": "REVOKED", "task_id": "t"}


def test_what_the_worker_says_stands_in_the_place_of_what_stood_there() -> None:
    meta: dict[str, Any] = {"status": "SUCCESS", "result": 1}
    records.complete(meta, "t", Part(pipeline="asr"))
    assert meta == {"status": "SUCCESS", "result": 1, "task_id": "t", "pipeq": {"pipeline": "asr"}}


@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: repr(value)[:20])
def test_no_field_of_a_record_that_is_there_breaks_what_is_built_on_it(value: Any) -> None:
    good = {"status": "QUEUED", "result": None, "children": [], "task_id": "t", "pipeq": {**OURS}}
    found = [{**good, name: value} for name in FIELDS]
    found += [{**good, "pipeq": {**OURS, name: value}} for name in PARTS]
    for text in (json.dumps(one) for one in found):
        before = Before.read(text)
        assert not before.has_ended
        for moment in (before.submitted_at, before.expires_at):
            assert moment is None or 0 <= moment < 253_370_764_800
        assert before.message_sha256 is None or isinstance(before.message_sha256, str)
        assert records.read("t", records.cancelled("t", text)).state is State.CANCELLED
        meta: dict[str, Any] = {"status": "REVOKED", "result": {"exc_message": ["expired"]}}
        records.complete(meta, "t", None, text.encode())
        assert records.read("t", json.dumps(meta)).state is State.EXPIRED


@pytest.mark.parametrize("status", ["QUEUED", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "PENDING", "x"])
def test_what_has_ended(status: str) -> None:
    text = json.dumps(record(status))
    assert Before.read(text).has_ended is records.read("t", text).is_final is (status in records.ENDED)


@pytest.mark.parametrize("reply", [None, b"", b"x", b"[1]", b"\xff", "{}", 5, OSError("WRONGTYPE"), b"[" * 5000])
def test_what_is_no_record_says_nothing_of_before(reply: Any) -> None:
    assert Before.read(reply) == Before()


# -- marks ------------------------------------------------------------------------------------------------------------


def test_a_mark_says_what_it_says() -> None:
    mark = Mark(worker="w1", since=105.0, deaths=1, attempt=2)
    assert json.loads(mark.encode()) == {"worker": "w1", "since": 105.0, "deaths": 1, "attempt": 2}
    far = Progress(done=3, total=9, unit="inputs")
    mark.progress = far
    assert json.loads(mark.encode())["progress"] == {"done": 3, "total": 9, "unit": "inputs"}
    assert status_of(record("QUEUED"), json.loads(mark.encode())).progress == far
    assert status_of(record("SUCCESS", result=1), json.loads(mark.encode())).progress is None


@pytest.mark.parametrize("worker", ["", None, 5, True, [], {}])
def test_a_mark_that_names_no_worker_is_of_no_task_that_runs(worker: Any) -> None:
    mark = {**MARK, "worker": worker}
    assert status_of(record("QUEUED", pipeq=OURS), mark) == status_of(record("QUEUED", pipeq=OURS))
    assert status_of(None, mark).state is State.UNKNOWN
    assert records.read("t", "no record", json.dumps(mark)).state is State.UNKNOWN


def test_a_suspect_that_is_back_on_its_queue_does_not_run() -> None:
    mark = Mark.back_on_its_queue(since=105.0, deaths=2, attempt=3)
    # The next worker counts one more death, as for every mark of a worker that is not alive.
    assert (mark.worker, mark.deaths) == ("", 1)
    assert status_of(record("RETRY"), json.loads(mark.encode())).state is State.RETRYING


# -- scripts ----------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[4]
SCRIPTS = ROOT / "worker/pipeq_worker/leases"
#: Names that also occur elsewhere: in a heartbeat, a message, a dead letter, settings, Celery's states.
COMMON = {"status", "result", "pipeline", "worker", "batch", "model", "error", "since", "attempts", "pipeq", "task_id"}
COMMON |= {"progress", "traceback", "expires_at"}  # of a benchmark or a download, of a dead letter, of a bare message


def test_scripts_have_the_names_of_fields_from_here() -> None:
    names = dict(re.findall(r"^local (\w+) = (.*)$", records.LUA, re.M))
    assert {names[f"MARK_{one.name.upper()}"] for one in fields(Mark)} == {f"'{one.name}'" for one in fields(Mark)}
    used = set()
    theirs_too = ROOT / "producers/pipeq"
    paths = [
        *(SCRIPTS / f"{name}.lua" for name in ("back", "begin", "blame", "finish", "look", "past")),
        *theirs_too.glob("*.lua"),
    ]
    functions = re.sub(r"^local \w+ = .*$", "", records.LUA, flags=re.M)
    for text in [functions, *(path.read_text() for path in paths)]:
        code = re.sub(r"--.*", "", text)
        theirs = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", re.sub(r"'[^']*'", "", code))) - {"KEYS", "ARGV"}
        used |= theirs - set(re.findall(r"local ([A-Z]+) =", code))
        # These modules spell none of the names themselves.
        assert not re.findall(rf"'(?:{'|'.join(FIELDS)})'|\.(?:{'|'.join(FIELDS)})\b", code)
        assert not re.findall(
            r"\.(?:worker|since|deaths|attempt|progress)\b|'(?:worker|since|deaths|attempt|progress)'", code
        )
    assert used == set(names)


def test_nobody_else_spells_the_fields() -> None:
    own = {one.name for shape in (Record, Part, Mark) for one in fields(shape)} - COMMON
    own |= {"exc_type", "exc_message", "exc_module", "QUEUED", "REVOKED", "SUCCESS", "FAILURE", "RETRY", "STARTED"}
    assert {"submitted_at", "finished_at", "message_sha256", "timing_ms", "date_done", "deaths", "attempt"} <= own
    for path in [*(ROOT / "producers/pipeq").rglob("*.py"), *(ROOT / "worker/pipeq_worker").rglob("*.py")]:
        # Celery's names stand beside the states, and a status has fields of the same names.
        if path.parent.name == "record" or path.name == "status.py":
            continue
        tree = ast.parse(path.read_text())
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not texts & own, path
        assert not re.search(r"""(\[|\.get\()['"]pipeq['"]""", path.read_text().replace('ALIASES["pipeq"]', "")), path


# -- docs/record.md ---------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_code_says() -> None:
    assert record_tables.PAGE.read_text(encoding="utf-8") == record_tables.page(), "run `make docs`"
    for shape in (Record, Part, Mark):
        for one in fields(shape):
            assert f"| `{one.name}` |" in record_tables.page()


@pytest.mark.parametrize("mark", [None, MARK, {**MARK, "worker": ""}])
@pytest.mark.parametrize("part", [None, {}, OURS, {**OURS, "expires_at": 200.0}, {**OURS, "expires_at": 4e9}])
@pytest.mark.parametrize("word", [None, "QUEUED", "PENDING", "RECEIVED", "STARTED", "RETRY", "SUCCESS", "FAILURE"])
def test_the_reader_on_the_page_agrees_with_ours(word: str | None, part: Any, mark: Any) -> None:
    found = None if word is None else record(word, **({} if part is None else {"pipeq": part}))
    assert read_as_the_page_says(found, mark, 1000.0) == status_of(found, mark, now=1000.0).state


@pytest.mark.parametrize("mark", [None, MARK])
@pytest.mark.parametrize("reason", ["cancelled", "expired", "revoked", "terminated", ""])
def test_the_reader_on_the_page_knows_why_a_task_was_revoked(reason: str, mark: Any) -> None:
    assert read_as_the_page_says(revoked(reason), mark, 1000.0) == status_of(revoked(reason), mark).state


def full_part() -> Part:
    """A part of which every field is set."""
    part = Part(
        pipeline="asr",
        submitted_at=100.0,
        due_at=103.5,
        expires_at=900.5,
        message_sha256="ab" * 32,
        started_at=105.25,
        finished_at=1_700_000_000.123456,
        attempts=2,
        worker="pipeq-1@host",
        timing_ms={"queued": 1.5, "infer": 0.001},
        batch=BatchInfo(size=3, padding=0.25),
        model=ModelInfo(id="m", revision=None, dtype="float16"),
        result_uri="s3://results/t.json",
        error=PipeqError("internal", "no", False),
        history=[{"worker": "w1", "ended_at": 104.5, "code": "input_unavailable", "message": "away"}],
    )
    assert all(getattr(part, one.name) is not None for one in fields(part))
    return part


@pytest.mark.parametrize("part", [full_part(), Part(finished_at=5.0)], ids=["full", "empty"])
@pytest.mark.parametrize("result", [b"null", b'"constant"', b'{"a": [1.5, "\xc3\xbc", 1e400]}', b"1" * 300])
@pytest.mark.parametrize("more", [{}, {"group_id": "g"}, {"group_id": "g", "parent_id": "p"}], ids=len)
def test_the_record_of_a_success_is_what_celerys_backend_would_make(
    part: Part, result: bytes, more: dict[str, str]
) -> None:
    built = json.loads(records.succeeded("t", result, part, **more))
    backend = RedisBackend(app=Celery(set_as_current=False))
    request = Context(group=more.get("group_id"), parent_id=more.get("parent_id"), children=[])
    expected = backend._get_result_meta(json.loads(result), "SUCCESS", None, request)
    records.complete(expected, "t", part)
    assert part.finished_at is not None
    assert datetime.fromisoformat(built.pop("date_done")).timestamp() == part.finished_at
    assert datetime.fromisoformat(expected.pop("date_done")).tzinfo == UTC
    assert built == json.loads(json.dumps(expected))


def test_a_success_with_half_a_character_can_be_read() -> None:
    text = records.succeeded("t", b"1", Part(finished_at=5.0, result_uri="s3://b/\ud800"))
    assert json.loads(text)["pipeq"]["result_uri"] == "s3://b/\ud800"
