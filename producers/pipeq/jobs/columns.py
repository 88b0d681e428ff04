"""COLUMNS: one record of the input -> a row. Before: readers. After: packing.

A record is what a line of JSON, a row of CSV or Parquet, or an element of an iterable holds. With no column named:

    {"custom_id": ..., "method": "POST", "url": ..., "body": {"model": ..., "input": ...}}    OpenAI's batch file
    {"inputs": ..., "params": {...}, "custom_id": ...}                                       a task of ours
    anything else                                                                           the input itself
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import Any

from msgspec.structs import replace

from pipeq import checks
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import CUSTOM_ID_MAX, plain
from pipeq.contract.pack import PackRow, is_custom_id
from pipeq.contract.reading import UnreadableError, json_value
from pipeq.contract.writing import to_json
from pipeq.jobs.packing import Line

#: Where the input may stand in the body of a request of OpenAI's; the first that is there counts.
_BODY_INPUTS = ("messages", "input", "prompt", "inputs")
#: Its parameters, by ours. Those that say which model, and how it is charged, are left out; the job's pipeline has one.
_BODY_PARAMS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_output_tokens": "max_new_tokens",
}
_BODY_IGNORED = frozenset({"model", "user", "metadata", "store", "service_tier", "encoding_format", "stream"})
_OWN = frozenset({"inputs", "params", "custom_id", "id"})


@dataclass(frozen=True)
class Columns:
    """Which parts of a record are its row.

    Attributes:
        fields: field of the pipeline's input -> name of the column; with the only key ``""``, one column is the input.
            Empty: the record says itself.
        id: the column with the row's name; None for none, or for ``custom_id`` where the record says itself.
        params: parameter -> column with its value.
        wrap: makes an input of a value that JSON does not have (an image, a recording); returns others as they are.
        place: says of a row to which object its result goes; None if it goes to the job.
        is_text: whether all values are text, as in CSV: parameters are what they read as; empty ones are left out.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    id: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    wrap: Callable[[Any], Any] = lambda value: value
    place: Callable[[PackRow], str] | None = None
    is_text: bool = False

    def check(self, names: Sequence[str] | None) -> None:
        """Checks that a table has the columns, if it is known which it has: else each of its rows would fail.

        Raises:
            PipeqError: ``invalid_message``: it has not.
        """
        if names is None:
            return
        for argument, wanted in (
            ("field", [*self.fields.values()]),
            ("id", [] if self.id is None else [self.id]),
            ("params_columns", [*self.params.values()]),
        ):
            for name in wanted:
                if name not in names:
                    folded = {one.strip().casefold(): one for one in names}
                    close = get_close_matches(name[:200].strip().casefold(), folded, 1)
                    meant = f"; did you mean {shown.line(folded[close[0]], 40)!r}?" if close else ""
                    checks.refuse(f"{argument}: {_no_column(name, names)}{meant}")

    def line(self, number: int, record: Any, most_bytes: int) -> Line:
        """Makes a row of a record. Whatever is wrong with it becomes that line's error.

        Args:
            number: the line's, from 1.
            record: the record.
            most_bytes: most bytes of a row.
        """
        custom_id: str | None = None
        try:
            custom_id = self._custom_id(record)
            inputs, params = self._parts(record)
            inputs = plain(inputs if type(inputs) is str else self.wrap(inputs))
            row = PackRow(inputs, None if params is None else checks.params(params) or None, number, custom_id)
            if self.place is not None:
                row = replace(row, output=self.place(row))
            raw = to_json(row.to_json(), is_finite=True)  # `plain` has refused what is not finite
            if (size := len(raw)) > most_bytes:
                sentence = (
                    f"the row takes {size} bytes, at most {most_bytes} are allowed: send its input by "
                    "reference, or, if it is in memory here, give the client a store (upload=)"
                )
                raise PipeqError(ErrorCode.INPUT_TOO_LARGE, sentence)  # noqa: TRY301
        except PipeqError as error:
            return Line(number, None, error=error, custom_id=custom_id)
        except Exception as error:  # a record may be an object of any library
            sentence = f"it cannot be used: {shown.value(error, 300)}"
            return Line(number, None, error=PipeqError(ErrorCode.INVALID_INPUT, sentence), custom_id=custom_id)
        return Line(number, row, raw.decode(), size, custom_id=custom_id)

    def _custom_id(self, record: Any) -> str | None:
        if self.id is None and (self.fields or not _is_object(record)):
            return None
        names = (self.id,) if self.id is not None else ("custom_id", "id")
        if not _is_object(record) or not (self.id is not None or self._says_itself(record)):
            return None
        for name in names:
            if name in record:
                value = record[name]
                if isinstance(value, int) and not isinstance(value, bool):
                    value = str(value)
                if value is None or is_custom_id(value):
                    return None if value is None else str(value)
                what = f"{name} is {shown.value(value)}, not text of at most {CUSTOM_ID_MAX} characters"
                raise PipeqError(ErrorCode.INVALID_INPUT, what)
        if self.id is not None:
            raise PipeqError(ErrorCode.INVALID_INPUT, _no_column(self.id, record))
        return None

    @staticmethod
    def _says_itself(record: Mapping[Any, Any]) -> bool:
        return _is_request(record) or ("inputs" in record and record.keys() <= _OWN)

    def _parts(self, record: Any) -> tuple[Any, Mapping[str, Any] | None]:
        if self.fields or self.params:
            if not _is_object(record):
                sentence = f"it is {shown.value(record)}, which has no column {next(iter(self.fields.values()), '')!r}"
                raise PipeqError(ErrorCode.INVALID_INPUT, sentence)
            values = {name: _column(record, column) for name, column in self.fields.items()}
            params = {name: _column(record, column) for name, column in self.params.items()} if self.params else None
            if params is not None and self.is_text:
                params = {name: _value(text) for name, text in params.items() if text != ""}
            return (values[""] if list(values) == [""] else values if values else record), params
        if _is_object(record):
            if _is_request(record):
                return _request(record["body"])
            if self._says_itself(record):
                return record["inputs"], record.get("params")
        return record, None


def _is_object(record: Any) -> bool:
    # Asking the abstract class takes as long as all else that is done for a short row.
    return type(record) is dict or (type(record) is not str and isinstance(record, Mapping))


def _is_request(record: Mapping[Any, Any]) -> bool:
    return isinstance(record.get("body"), Mapping) and ("custom_id" in record or "url" in record)


def _request(body: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    name = next((name for name in _BODY_INPUTS if name in body), None)
    if name is None:
        raise PipeqError(ErrorCode.INVALID_INPUT, f"its body has none of {', '.join(_BODY_INPUTS)}")
    own = body.get("params")
    params = dict(own) if isinstance(own, Mapping) else {}
    for key, value in body.items():
        if key != name and key != "params" and key not in _BODY_IGNORED:
            params[_BODY_PARAMS.get(key, key)] = value
    return body[name], params


def _column(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise PipeqError(ErrorCode.INVALID_INPUT, _no_column(name, record))
    return record[name]


def _value(text: str) -> Any:
    """A number, true, false or null, if it reads as one; otherwise the text."""
    try:
        value = json_value(text)
    except UnreadableError:
        return text
    return text if isinstance(value, list | dict | str) else value


def _no_column(name: str, names: Iterable[Any]) -> str:
    known = ", ".join(shown.line(str(one), 40) for one in islice(names, 12))
    return f"there is no column {shown.line(name, 80)!r}; it has {known or 'none'}"


def columns(fields: Any, row_id: Any, params: Any) -> Columns:
    """Checks which columns a job is made of.

    Args:
        fields: a column, or a mapping of the pipeline's fields to columns; None if records say themselves.
        row_id: the column with the rows' names; None for none.
        params: a mapping of parameters to columns; None for none.
    """
    if isinstance(fields, str):
        fields = {"": fields}
    for name, value in (("field", fields), ("params_columns", params)):
        if value is not None and not (
            isinstance(value, Mapping) and all(isinstance(one, str) for pair in value.items() for one in pair)
        ):
            checks.refuse(f"{name} is {shown.value(value)}: name a column, or write a dictionary of names to columns")
    if row_id is not None and not isinstance(row_id, str):
        checks.refuse(f"id is {shown.value(row_id)}, not the name of a column")
    return Columns(dict(fields or {}), row_id, dict(params or {}))
