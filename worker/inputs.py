"""ACCEPT: message -> checked inputs. Before: pool. After: fetch.

Everything that can be refused without reading a byte is refused here, with a sentence that names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from producers.errors import ErrorCode, PipeqError
from producers.message import Ref, describe
from worker.task_types import Media, TaskType


@dataclass
class Input:
    """One input of a task; references in it are replaced, stage by stage, by what they refer to."""

    fields: dict[str, Any]
    #: Whether the pipeline's call takes the value of the one field rather than an object.
    is_plain: bool

    def references(self) -> Iterator[tuple[str, Ref]]:
        """The fields that are still to be fetched."""
        return ((name, value) for name, value in self.fields.items() if isinstance(value, Ref))

    @property
    def call_value(self) -> Any:
        """What the pipeline's call takes."""
        return next(iter(self.fields.values())) if self.is_plain else self.fields


def read_inputs(task_type: TaskType, inputs: Any) -> tuple[list[Input], bool]:
    """Checks the ``inputs`` of a message against what the task type takes.

    Returns:
        The inputs, and whether the producer sent a list.

    Raises:
        PipeqError: ``invalid_input``, naming the input and the field.
    """
    if isinstance(inputs, list) and not (_takes_chats(task_type) and is_chat(inputs)):
        return [_located(f"inputs[{at}]", task_type, value) for at, value in enumerate(inputs)], True
    return [_located("inputs", task_type, inputs)], False


def is_chat(value: Any) -> bool:
    """Whether a value is a list of ``{"role", "content"}`` turns."""
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(x, dict) and {"role", "content"} <= x.keys() for x in value)
    )


def _takes_chats(task_type: TaskType) -> bool:
    return task_type.main is not None and task_type.fields[task_type.main] is Media.CHAT


def _located(where: str, task_type: TaskType, value: Any) -> Input:
    try:
        return _read_one(task_type, value)
    except PipeqError as error:
        raise PipeqError(error.code, f"{where}: {error.message}", error.retryable) from error.__cause__


def _read_one(task_type: TaskType, value: Any) -> Input:
    if isinstance(value, dict) and not Ref.is_ref(value):
        unknown = value.keys() - task_type.fields.keys()
        if unknown:
            raise _wrong(task_type, f"unknown field {sorted(unknown)[0]!r}")
        missing = task_type.fields.keys() - task_type.optional - value.keys()
        if missing:
            raise _wrong(task_type, f"field {sorted(missing)[0]!r} is missing")
        fields = {
            name: _read_value(task_type, name, value[name]) for name in task_type.fields if value.get(name) is not None
        }
        return Input(fields, is_plain=len(task_type.fields) == 1)
    if task_type.main is None:
        raise _wrong(task_type, f"got {_kind(value)}")
    return Input({task_type.main: _read_value(task_type, task_type.main, value)}, is_plain=True)


def _read_value(task_type: TaskType, name: str, value: Any) -> Any:
    media = task_type.fields[name]
    if media is Media.JSON:
        return value
    if Ref.is_ref(value):
        return _read_ref(value)
    if media.is_bytes:
        if not isinstance(value, str):
            raise _wrong(task_type, f"{name} is {_kind(value)}, not a reference")
        if "://" not in value:
            raise _wrong(task_type, f"{name} is the text {_short(value)}, not a reference to {media} bytes")
        return _read_ref({"uri": value})
    if isinstance(value, str):
        return value
    if media is Media.CHAT and is_chat(value):
        return _read_chat(value)
    raise _wrong(task_type, f"{name} is {_kind(value)}, not text")


def _read_chat(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for at, turn in enumerate(turns):
        if not isinstance(turn["role"], str) or not isinstance(turn["content"], str):
            raise PipeqError(ErrorCode.INVALID_INPUT, f"turn {at} of the chat: `role` and `content` must be text")
    return turns


def _read_ref(fields: dict[str, Any]) -> Ref:
    try:
        return Ref(**fields)
    except (ValidationError, TypeError) as error:
        raise PipeqError(ErrorCode.INVALID_INPUT, f"the reference is not valid: {describe(error)}") from error


def _wrong(task_type: TaskType, what: str) -> PipeqError:
    return PipeqError(ErrorCode.INVALID_INPUT, f"{what}; {task_type.name} takes {_shape(task_type)}")


def _shape(task_type: TaskType) -> str:
    """What a task type takes, in words: ``text, or {"text": text, "text_pair": text (optional)}``."""
    words = {
        Media.TEXT: "text",
        Media.CHAT: "text or a list of chat turns",
        Media.IMAGE: "a reference to an image",
        Media.AUDIO: "a reference to audio",
        Media.JSON: "JSON",
    }
    fields = ", ".join(
        f'"{name}": {words[media]}{" (optional)" if name in task_type.optional else ""}'
        for name, media in task_type.fields.items()
    )
    if task_type.main is None:
        return f"{{{fields}}}"
    plain = words[task_type.fields[task_type.main]]
    example = ' like {"uri": "s3://bucket/key"}' if task_type.fields[task_type.main].is_bytes else ""
    return f"{plain}{example}" + (f", or {{{fields}}}" if len(task_type.fields) > 1 else "")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")


def _short(text: str, length: int = 40) -> str:
    return json.dumps(text if len(text) <= length else text[:length] + "…", ensure_ascii=False)
