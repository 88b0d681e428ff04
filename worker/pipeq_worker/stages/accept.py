"""ACCEPT: message -> checked inputs. Before: pool. After: fetch.

Everything that can be refused without reading a byte is refused here, with a sentence that names it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pipeq.contract import pack, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import Ref, TaskMessage
from pipeq.contract.pack import PackMessage
from pipeq.contract.reading import UnreadableError, json_value, number

from pipeq_worker.media.tables import check_cells, check_size
from pipeq_worker.models.task_type import Media, TaskType
from pipeq_worker.settings.sections import InputSettings
from pipeq_worker.stages.chats import TURN, is_chat, misspelt, wrong_turn
from pipeq_worker.stages.task import Input, Slot

#: Keys of a chat's part that may hold its reference, in addition to the key named after its type.
_PART_KEYS = ("url", "path", "uri", "base64")
_DEFAULTS = InputSettings()
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_message(body: bytes) -> TaskMessage | PackMessage:
    """Reads a message as :class:`pipeq_worker.children.protocol.Prepare` carries it.

    Raises:
        PipeqError: ``invalid_message``: it is none of ours.
    """
    try:
        value = json_value(body)
    except UnreadableError as error:
        raise PipeqError(ErrorCode.INVALID_MESSAGE, f"its body cannot be decoded: {error}") from error
    return pack.parse(value[1] if isinstance(value, list) else value)


def read_inputs(task_type: TaskType, inputs: Any, limits: InputSettings = _DEFAULTS) -> tuple[list[Input], bool]:
    """Checks the ``inputs`` of a message against the task type's fields, and tables against ``limits``.

    Returns:
        The inputs, and whether the producer sent a list.

    Raises:
        PipeqError: ``invalid_input``, naming the input and the field; ``input_too_large``, for a table.
    """
    _check_values(inputs)
    if _takes_chats(task_type) and (sentence := wrong_turn(inputs)) is not None:
        raise PipeqError(ErrorCode.INVALID_INPUT, f"inputs: {sentence}")
    if isinstance(inputs, list) and not (_takes_chats(task_type) and is_chat(inputs)):
        return [_located(f"inputs[{at}]", task_type, value, limits) for at, value in enumerate(inputs)], True
    return [_located("inputs", task_type, inputs, limits)], False


def _check_values(inputs: Any) -> None:
    """Refuses values that JSON can write but no result can repeat: NaN, numbers beyond a float, lone surrogates."""
    left = [inputs]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.keys()
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str):
            if not value.isascii() and _SURROGATE.search(value):
                raise PipeqError(
                    ErrorCode.INVALID_INPUT,
                    f"{_place_of(inputs, value)} holds half a surrogate pair (U+D800 to U+DFFF), which is no character",
                )
        elif isinstance(value, int | float) and not isinstance(value, bool) and number(value) is None:
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                f"{_place_of(inputs, value)} is a number that is NaN, infinite, or too large for a float",
            )


def _place_of(inputs: Any, wanted: Any) -> str:
    """Path of a value in the inputs: ``inputs[0].question``. It is searched only for values that are refused."""
    left: list[tuple[str, Any]] = [("inputs", inputs)]
    while left:
        where, value = left.pop()
        if value is wanted:
            return shown.line(where, 200)
        if isinstance(value, dict):
            if any(key is wanted for key in value):
                return f"a name in {shown.line(where, 200)}"
            left += [(f"{where[:300]}.{key}", one) for key, one in value.items()]
        elif isinstance(value, list):
            left += [(f"{where[:300]}[{at}]", one) for at, one in enumerate(value)]
    return "a value in the inputs"


def _takes_chats(task_type: TaskType) -> bool:
    return task_type.main is not None and task_type.fields[task_type.main] is Media.CHAT


def _located(where: str, task_type: TaskType, value: Any, limits: InputSettings) -> Input:
    try:
        return _Reader(task_type, limits).read(value)
    except PipeqError as error:
        raise PipeqError(error.code, f"{where}: {error.message}", error.retryable) from error.__cause__


class _Reader:
    """Reads one input, and collects the places of its references."""

    def __init__(self, task_type: TaskType, limits: InputSettings) -> None:
        self._type = task_type
        self._limits = limits
        self._slots: list[Slot] = []
        self._turns: list[tuple[Any, Any]] = []

    def read(self, value: Any) -> Input:
        task_type = self._type
        if isinstance(value, dict) and not Ref.is_ref(value):
            unknown = value.keys() - task_type.fields.keys()
            if unknown:
                raise self._wrong(f"unknown field {sorted(unknown)[0]!r}")
            missing = task_type.fields.keys() - task_type.optional - value.keys()
            if missing:
                raise self._wrong(f"field {sorted(missing)[0]!r} is missing")
            fields: dict[str, Any] = {}
            for name in task_type.fields:
                if value.get(name) is not None:
                    self._read_value(fields, name, task_type.fields[name], value[name], name)
                elif name not in task_type.optional:
                    raise self._wrong(f"{name} is null")
            return Input(fields, len(task_type.fields) == 1, self._slots, self._turns)
        if task_type.main is None:
            raise self._wrong(f"got {_kind(value)}")
        fields = {}
        self._read_value(fields, task_type.main, task_type.fields[task_type.main], value, task_type.main)
        return Input(fields, True, self._slots, self._turns)

    def _read_value(self, container: Any, key: Any, media: Media, value: Any, name: str) -> None:
        """Checks a value, and puts it into its container, or a slot for it if it is a reference."""
        container[key] = value
        if media is Media.JSON:
            return
        if media is Media.IMAGES:
            if value == []:
                raise self._wrong(f"{name} is an empty list")
            container[key] = images = value if isinstance(value, list) else [value]
            container[key] = [None] * len(images)
            for at, image in enumerate(images):
                self._read_value(container[key], at, Media.IMAGE, image, f"{name}[{at}]")
        elif Ref.is_ref(value):
            self._add(container, key, media, Ref(**value))
        elif media.is_bytes:
            if not isinstance(value, str):
                raise self._wrong(f"{name} is {_kind(value)}, not a reference")
            if "://" not in value:
                raise self._wrong(f"{name} is the text {_short(shown.uri(value))}, not a reference to {media} bytes")
            self._add(container, key, media, Ref(value))
        elif media is Media.TABLE:
            container[key] = _read_table(value, self._limits)
        elif isinstance(value, str):
            return
        elif media is Media.CHAT and (sentence := wrong_turn(value)) is not None:
            raise PipeqError(ErrorCode.INVALID_INPUT, sentence)
        elif media is Media.CHAT and is_chat(value):
            container[key] = turns = [self._read_turn(at, turn) for at, turn in enumerate(value)]
            self._turns += zip(turns, value, strict=True)
        elif media is not Media.TEXTS or not _is_texts(value):
            raise self._wrong(f"{name} is {_kind(value)}, not text")

    def _read_turn(self, at: int, turn: dict[str, Any]) -> dict[str, Any]:
        if (sentence := misspelt(turn, TURN)) is not None:
            raise PipeqError(ErrorCode.INVALID_INPUT, f"turn {at} of the chat: {sentence}")
        role, content = turn["role"], turn["content"]
        if not isinstance(role, str):
            raise PipeqError(ErrorCode.INVALID_INPUT, f"turn {at} of the chat: `role` must be text")
        if isinstance(content, str):
            return dict(turn)
        allowed = ("text", *self._type.chat_media)
        if len(allowed) == 1 or not isinstance(content, list):
            parts = ", or a list of parts" if len(allowed) > 1 else ""
            raise PipeqError(ErrorCode.INVALID_INPUT, f"turn {at} of the chat: `content` must be text{parts}")
        return {**turn, "content": [self._read_part(f"turn {at} of the chat", part, allowed) for part in content]}

    def _read_part(self, where: str, part: Any, allowed: tuple[str, ...]) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict) and (sentence := misspelt(part, ("type", *allowed))) is not None:
            raise PipeqError(ErrorCode.INVALID_INPUT, f"{where}: of a part, {sentence}")
        if not isinstance(part, dict) or kind not in allowed:
            raise PipeqError(
                ErrorCode.INVALID_INPUT, f"{where}: a part must have a `type` of {', '.join(map(str, allowed))}"
            )
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise PipeqError(ErrorCode.INVALID_INPUT, f"{where}: a part of type text needs the field `text`")
            return dict(part)
        value = part if Ref.is_ref(part) else next((part[key] for key in (kind, *_PART_KEYS) if key in part), None)
        if value is part:
            value = {key: part[key] for key in Ref.model_fields if key in part}
        if value is None:
            raise PipeqError(ErrorCode.INVALID_INPUT, f"{where}: a part of type {kind} needs the field `{kind}`")
        read = {key: one for key, one in part.items() if key not in (*_PART_KEYS, "media_type", "sha256")}
        self._read_value(read, kind, Media(kind), value, f"{where}: {kind}")
        self._slots[-1].in_chat = True
        return read

    def _add(self, container: Any, key: Any, media: Media, ref: Ref) -> None:
        container[key] = ref
        self._slots.append(Slot(container, key, media, ref))

    def _wrong(self, what: str) -> PipeqError:
        return PipeqError(ErrorCode.INVALID_INPUT, f"{what}; {self._type.name} takes {shape(self._type)}")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _read_table(value: Any, limits: InputSettings) -> Any:
    """Turns a table (columns or rows) into columns with every cell as text, as the models need it."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        names = list(dict.fromkeys(name for row in value for name in row))
        # If no two rows shared a name, the columns would hold the square of the number of rows.
        check_size(len(names), len(value), "the table", limits)
        value = {name: [row.get(name, "") for row in value] for name in names}
    columns = value if isinstance(value, dict) else {}
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    if len(lengths) != 1 or not lengths - {-1, 0}:
        raise PipeqError(
            ErrorCode.INVALID_INPUT,
            'the table must be {"column": ["cell", ...], ...} with columns of one length, a list of rows, or a '
            "reference to CSV",
        )
    check_size(len(columns), lengths.pop(), "the table", limits)
    table = {name: ["" if cell is None else str(cell) for cell in column] for name, column in columns.items()}
    check_cells(table, "the table", limits)
    return table


#: The value of a field, in words.
WORDS = {
    Media.TEXT: "text",
    Media.TEXTS: "text or a list of texts",
    Media.CHAT: "text or a list of chat turns",
    Media.IMAGE: "a reference to an image",
    Media.IMAGES: "a list of references to images",
    Media.AUDIO: "a reference to audio",
    Media.VIDEO: "a reference to a video",
    Media.TABLE: "a table",
    Media.JSON: "JSON",
}


def shape(task_type: TaskType) -> str:
    """Describes the input of a task type: ``text, or {"text": text, "text_pair": text (optional)}``."""
    fields = ", ".join(
        f'"{name}": {WORDS[media]}{" (optional)" if name in task_type.optional else ""}'
        for name, media in task_type.fields.items()
    )
    if task_type.main is None:
        return f"{{{fields}}}"
    plain = WORDS[task_type.fields[task_type.main]]
    example = ' like {"uri": "s3://bucket/key"}' if task_type.fields[task_type.main].is_bytes else ""
    return f"{plain}{example}" + (f", or {{{fields}}}" if len(task_type.fields) > 1 else "")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")


def _short(text: str, length: int = 40) -> str:
    return json.dumps(text if len(text) <= length else text[:length] + "…", ensure_ascii=False)
