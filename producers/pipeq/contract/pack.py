"""CONTRACT: a pack, the message that carries many rows of a job. Before: jobs/packing. After: the worker's stages.

    {"pipeline": ..., "params": {...}, "output": {"uri": ...}, "include_inputs": true,
     "job": {"id": ..., "pack": 17},
     "rows": [{"inputs": ..., "params": {...}, "line": 4352, "custom_id": "a", "output": "s3://..."}, ...]}

A pack is one task for the queue, and each of its rows has an outcome of its own: a result or an error. A row has one
input, what a task's ``inputs`` would be without a list. Outcomes go to the job (:mod:`pipeq.contract.job`).

A row that must go alone (a process died with its pack, a store was away) travels in a pack of its own. It stays a row
of the pack that it came from, which ``"row"`` in ``job`` says: its place there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from pipeq.contract import keys, naming, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import CUSTOM_ID_MAX, Output, TaskMessage
from pipeq.contract.writing import to_json

#: Most rows of one pack, and the largest number that says where a row stands.
ROWS_MAX = 1000
NUMBER_MAX = 2**53
#: Most bytes of parameters of all rows of a pack, times its rows: each row may go on alone with them, and with
#: ``include_inputs`` each outcome has them, so that a message of 150 KB would become one of 40 MB.
PARAMS_BYTES = 2 * 2**20
_FIELDS = frozenset({"pipeline", "rows", "job", "params", "output", "include_inputs"})


@dataclass(frozen=True, slots=True)
class PackOf:
    """Where a pack belongs."""

    #: The job's id, and the number of the pack in it, from 0.
    job: str
    pack: int
    #: If the pack is one row that goes alone: its place in that pack.
    row: int | None = None

    @property
    def field(self) -> str:
        """The name of its outcomes among those of the job."""
        return str(self.pack) if self.row is None else f"{self.pack}.{self.row}"

    def to_json(self) -> dict[str, Any]:
        """The message's ``job``."""
        return {"id": self.job, "pack": self.pack} | ({} if self.row is None else {"row": self.row})


class PackRow(msgspec.Struct, frozen=True):
    """One row of a pack. A struct, because a frozen dataclass takes four times as long to make, and there are many."""

    inputs: Any
    #: Parameters of this row, which override those of the pack.
    params: Mapping[str, Any] | None = None
    #: Where it stands in the job's input, from 1.
    line: int | None = None
    #: What its producer calls it.
    custom_id: str | None = None
    #: The object that its result goes to; None if it goes to the job.
    output: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as it stands in the message."""
        found = {"inputs": self.inputs}
        if self.params:
            found["params"] = dict(self.params)
        if self.line is not None:
            found["line"] = self.line
        if self.custom_id is not None:
            found["custom_id"] = self.custom_id
        if self.output is not None:
            found["output"] = self.output
        return found


@dataclass(frozen=True)
class PackMessage:
    """Many rows for one pipeline."""

    pipeline: str
    rows: tuple[PackRow, ...]
    of: PackOf
    #: Parameters of all rows.
    params: Mapping[str, Any] = field(default_factory=dict)
    #: Where outcomes go that are too large for Redis.
    output: Output | None = None
    #: Whether what was asked stands beside what was answered: in the outcomes, and in the rows' own objects.
    include_inputs: bool = False

    @classmethod
    def parse(cls, fields: Any) -> Self:
        """Parses the keyword arguments of a Celery message.

        Raises:
            PipeqError: ``invalid_message``: they are no pack.
        """
        if unknown := [name for name in fields if name not in _FIELDS]:
            raise _wrong(f"{shown.line(str(unknown[0]))}: a pack has no such field")
        pipeline, rows, params = fields.get("pipeline"), fields["rows"], fields.get("params")
        if not isinstance(pipeline, str) or not 1 <= len(pipeline) <= 200:
            raise _wrong("pipeline: not text of 1 to 200 characters")
        if not isinstance(rows, list) or not 1 <= len(rows) <= ROWS_MAX:
            raise _wrong(f"rows: not a list of 1 to {ROWS_MAX} rows")
        if params is not None and not isinstance(params, dict):
            raise _wrong("params: not an object")
        if params and len(rows) > (most := most_rows_with(params)):
            given, rest = shown.count(most, "row"), "send smaller packs"
            raise _wrong(f"params: of this length, {given} may have them, and {len(rows)} have: {rest}")
        output = fields.get("output")
        if output is not None:
            if not isinstance(output, dict):
                raise _wrong("output: not an object")
            output = Output(**output)
            if naming.has_fields(output.uri) or output.include_inputs:
                raise _wrong("output: that of a pack has no fields to fill in, and no `include_inputs`")
        include_inputs = fields.get("include_inputs", False)
        if not isinstance(include_inputs, bool):
            raise _wrong("include_inputs: neither true nor false")
        found = tuple(_row(at, one) for at, one in enumerate(rows))
        return cls(pipeline, found, _of(fields.get("job")), params or {}, output, include_inputs)

    def to_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of the Celery task ``pipeq.infer``."""
        return {**self._common(), "rows": [one.to_json() for one in self.rows]}

    def to_text(self, rows: Iterable[str]) -> str:
        """The same as JSON.

        Args:
            rows: each row as JSON, so that it need not be written twice.
        """
        return f'{to_json(self._common()).decode()[:-1]},"rows":[{",".join(rows)}]}}'

    def _common(self) -> dict[str, Any]:
        """All but the rows."""
        fields: dict[str, Any] = {"pipeline": self.pipeline, "job": self.of.to_json()}
        if self.params:
            fields["params"] = dict(self.params)
        if self.output is not None:
            fields["output"] = {"uri": self.output.uri}
        if self.include_inputs:
            fields["include_inputs"] = True
        return fields


def parse(fields: Any) -> TaskMessage | PackMessage:
    """Parses the keyword arguments of a Celery message: those of one task, or of a pack.

    Raises:
        PipeqError: ``invalid_message``: they are no message of ours.
    """
    return PackMessage.parse(fields) if isinstance(fields, dict) and "rows" in fields else TaskMessage.parse(fields)


def most_rows_with(params: Mapping[str, Any]) -> int:
    """Most rows of a pack whose rows all have these parameters; 1 at least."""
    return max(1, min(ROWS_MAX, PARAMS_BYTES // len(to_json(params))))


def row_id(job_id: str, line: int | None) -> str:
    """What a row is called in the name of its result, and in front of it. No task of a job has such an id."""
    return f"{job_id}-line{line or 0}"


def read_of(value: Any) -> PackOf | None:
    """Reads the ``job`` of a message; None for anything else. Never raises."""
    try:
        return _of(value)
    except PipeqError:
        return None


def pack_schema() -> str:
    """The JSON Schema of a pack, as exported to ``docs/pack.schema.json``."""
    number = {"type": "integer", "minimum": 0, "maximum": NUMBER_MAX}
    row = {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "inputs": {"description": "One input: what a task's `inputs` would be without a list."},
            "params": {"type": ["object", "null"], "description": "They override those of the pack."},
            "line": {"anyOf": [number, {"type": "null"}], "description": "Where it stands in the job's input, from 1."},
            "custom_id": {
                "type": ["string", "null"],
                "maxLength": CUSTOM_ID_MAX,
                "description": "What it is called.",
            },
            "output": {"type": ["string", "null"], "description": "The object that its result goes to, a URI."},
        },
    }
    of = {
        "type": "object",
        "required": ["id", "pack"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": "string", "minLength": 1, "description": "The job's id."},
            "pack": {**number, "description": "The number of the pack in it."},
            "row": {"anyOf": [number, {"type": "null"}], "description": "Of a row that goes alone: its place there."},
        },
    }
    output = {"type": "object", "required": ["uri"], "properties": {"uri": {"type": "string"}}}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"pipeq:{keys.CONTRACT_VERSION}:pack",
        "title": "PackMessage",
        "description": "Many rows of a job in one message, in the place of a task. Only jobs queue them.",
        "type": "object",
        "required": ["pipeline", "rows", "job"],
        "additionalProperties": False,
        "properties": {
            "pipeline": {"type": "string", "minLength": 1, "maxLength": 200},
            "rows": {"type": "array", "minItems": 1, "maxItems": ROWS_MAX, "items": row},
            "job": of,
            "params": {
                "type": ["object", "null"],
                "description": f"Parameters of all rows; their bytes, times the rows, are {PARAMS_BYTES} at most.",
            },
            "output": {"anyOf": [output, {"type": "null"}], "description": "Where outcomes go that are too large."},
            "include_inputs": {"type": "boolean", "description": "Whether outcomes have inputs and params, too."},
        },
    }
    return json.dumps(schema, indent=2) + "\n"


def _of(value: Any) -> PackOf:
    if not isinstance(value, dict) or value.keys() - {"id", "pack", "row"}:
        raise _wrong('job: not an object like {"id": "nightly", "pack": 17}')
    job, pack, row = value.get("id"), value.get("pack"), value.get("row")
    if not keys.is_task_id(job):
        raise _wrong(f"job.id: not {keys.TASK_ID_WORDS}")
    if pack is None or not _is_number(pack) or (row is not None and not _is_number(row)):
        raise _wrong("job.pack, job.row: not numbers from 0")
    return PackOf(job, pack, row)


def _row(at: int, value: Any) -> PackRow:
    if not isinstance(value, dict) or "inputs" not in value:
        raise _wrong(f"rows[{at}]: not an object with `inputs`")
    try:
        found = PackRow(**value)
    except TypeError:
        sentence = f"rows[{at}]: a row has `inputs`, `params`, `line`, `custom_id` and `output`, nothing else"
        raise _wrong(sentence) from None
    if found.params is not None and not isinstance(found.params, dict):
        raise _wrong(f"rows[{at}].params: not an object")
    if found.line is not None and not (type(found.line) is int and 0 <= found.line <= NUMBER_MAX):
        raise _wrong(f"rows[{at}].line: not a number from 0")
    if found.custom_id is not None and not is_custom_id(found.custom_id):
        raise _wrong(f"rows[{at}].custom_id: not text of at most {CUSTOM_ID_MAX} characters")
    if found.output is not None and not isinstance(found.output, str):
        raise _wrong(f"rows[{at}].output: not text")
    return found


def is_custom_id(value: object) -> bool:
    """Whether a row can have this name."""
    if not isinstance(value, str) or len(value) > CUSTOM_ID_MAX:
        return False
    return value.isascii() or keys.is_readable_id(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= NUMBER_MAX


def _wrong(sentence: str) -> PipeqError:
    return PipeqError(ErrorCode.INVALID_MESSAGE, sentence)
