"""CONTRACT: what travels on the queue for one task.

A :class:`TaskMessage` is the keyword arguments of the Celery task ``pipeq.infer``. Any Celery app can send one as a
plain dictionary; the worker reads it back through :meth:`TaskMessage.parse`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from pathlib import Path, PurePath
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from pipeq.contract import schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.keys import TASK_ID_WORDS, is_readable_id, object_name
from pipeq.contract.reading import MAX_DEPTH, MAX_DIGITS


class Ref(BaseModel):
    """A reference to an input: where its bytes are, as the worker sees it.

    Exactly one of ``uri`` and ``base64`` is given. ``Ref("s3://talks/a.flac")`` is short for ``Ref(uri=...)``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: ``s3://bucket/key``, ``file:///absolute/path`` on the worker's disk, or ``https://host/path``.
    uri: str | None = None
    #: The bytes themselves, for small inputs.
    base64: str | None = Field(default=None, repr=False)
    #: MIME type, where the producer knows it. A hint: workers look at the bytes.
    media_type: str | None = None
    #: Hexadecimal SHA-256 of the bytes; a worker that reads something else fails the task.
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    #: What a worker says of an object that it wrote, so that a result can be the next task's input as it is.
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    #: A worker's word that it wrote this object, in a chain: the next one reads it whatever `[inputs] allow` says.
    signature: str | None = Field(default=None, repr=False, pattern=r"^[0-9a-f]{64}$")

    def __init__(self, /, uri: str | None = None, **fields: Any) -> None:
        """Reads a reference.

        Raises:
            PipeqError: ``invalid_input``, naming the field.
        """
        if uri is not None:
            fields["uri"] = uri
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise PipeqError(ErrorCode.INVALID_INPUT, f"the reference is not valid: {describe(error)}") from error

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.uri is None) == (self.base64 is None):
            raise ValueError("a reference has exactly one of `uri` and `base64`")
        return self

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str | None) -> str | None:
        if uri is not None and not schemes.is_known(schemes.of(uri)):
            known = schemes.listed(schemes.known())
            raise ValueError(f"{shown.uri(uri)!r} is not an {known} URI{_hint(uri)}")
        return uri

    @field_validator("base64")
    @classmethod
    def _decodable(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ValueError(f"`base64` is not base64: {error}") from error
        return value

    @classmethod
    def from_bytes(cls, data: bytes, media_type: str | None = None) -> Self:
        """A reference that carries its bytes inline, for inputs that fit into a message (256 KiB)."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise PipeqError(ErrorCode.INVALID_INPUT, f"Ref.from_bytes takes bytes, not a {type(data).__name__}")
        return cls(base64=base64.b64encode(data).decode("ascii"), media_type=media_type)

    @classmethod
    def from_path(cls, path: str | PurePath) -> Self:
        """A ``file://`` reference to a file that the *worker* can open under the same path."""
        try:
            return cls(uri=Path(path).resolve().as_uri())
        except (TypeError, ValueError, OSError) as error:
            raise PipeqError(ErrorCode.INVALID_INPUT, f"{shown.value(path)} is no path of a file: {error}") from error

    @classmethod
    def of(cls, source: str | PurePath) -> Self:
        """A reference to what somebody typed: a URI is one, anything else is a path that the worker can open, too."""
        # Of an unknown scheme, too: nobody's file is called http://....
        return cls(uri=source) if isinstance(source, str) and "://" in source else cls.from_path(source)

    @classmethod
    def is_ref(cls, value: Any) -> bool:
        """Whether a value of ``inputs`` is a reference: an object with ``uri`` or ``base64``."""
        return isinstance(value, dict) and ("uri" in value or "base64" in value)


def _hint(uri: str) -> str:
    """What somebody meant who wrote this in the place of a URI."""
    scheme, is_uri, _ = uri.partition("://")
    if not is_uri:
        return ": for a file that the workers can open under the same path write Ref.from_path(...)"
    if schemes.is_known(scheme.lower()):
        return f": write the scheme in small letters, {scheme.lower()}://"
    if scheme.lower() == "http":
        return ": what travels unencrypted is not read; write https://, or Ref.from_bytes(...) for small inputs"
    return ": put the input on S3, or write Ref.from_bytes(...) for small ones"


class Output(BaseModel):
    """Where a task's result goes instead of the result backend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: ``s3://`` or ``file://``; one that ends in ``/`` is a prefix, the object is ``<task id>.json`` below it.
    uri: str

    def __init__(self, /, **fields: Any) -> None:
        """Reads an output.

        Raises:
            PipeqError: ``invalid_message``, naming the field.
        """
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise PipeqError(ErrorCode.INVALID_MESSAGE, describe(error, "output")) from error

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str) -> str:
        if not schemes.is_writable(schemes.of(uri)):
            raise ValueError(f"{shown.uri(uri)!r} is not an {schemes.listed(schemes.writable())} URI")
        return uri

    def object_uri(self, task_id: str) -> str:
        """The URI of the object that a task's result becomes; see :func:`pipeq.contract.keys.object_name`.

        Raises:
            PipeqError: ``invalid_message``: that is no id of a task.
        """
        if not is_readable_id(task_id):
            raise PipeqError(ErrorCode.INVALID_MESSAGE, f"the task id {shown.value(task_id)} is not {TASK_ID_WORDS}")
        return f"{self.uri}{object_name(task_id)}.json" if self.uri.endswith("/") else self.uri


class TaskMessage(BaseModel):
    """One task: a pipeline, its inputs, and how to run them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Name of the pipeline, which is also the name of its queue.
    pipeline: str = Field(min_length=1, max_length=200)
    #: A value, an object of named values, or a list of either: several inputs, several results in the same order.
    inputs: JsonValue
    #: What the pipeline's call accepts; overrides the pipeline's own settings for this task alone.
    params: dict[str, JsonValue] = Field(default_factory=dict)
    #: Absent: the result backend.
    output: Output | None = None

    def __init__(self, /, **fields: Any) -> None:
        """Reads a message.

        Raises:
            PipeqError: ``invalid_message``, naming the field.
        """
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise PipeqError(ErrorCode.INVALID_MESSAGE, describe(error)) from error
        except TypeError as error:  # names of fields of the output that are no text
            raise PipeqError(ErrorCode.INVALID_MESSAGE, f"output: {error}") from error

    @classmethod
    def parse(cls, fields: Any) -> Self:
        """Reads the keyword arguments of a Celery message.

        Raises:
            PipeqError: ``invalid_message``: it is not one of ours.
        """
        if not isinstance(fields, dict):
            raise PipeqError(
                ErrorCode.INVALID_MESSAGE, f"the task's keyword arguments are a {type(fields).__name__}, not an object"
            )
        try:
            return cls(**fields)
        except TypeError as error:  # names of fields that are no text
            raise PipeqError(ErrorCode.INVALID_MESSAGE, str(error)) from error

    def to_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of the Celery task ``pipeq.infer``; fields left at their default are left out."""
        fields: dict[str, Any] = {"pipeline": self.pipeline, "inputs": self.inputs}
        if self.params:
            fields["params"] = self.params
        if self.output is not None:
            fields["output"] = {"uri": self.output.uri}
        return fields


def describe(error: ValidationError, inside: str = "") -> str:
    """One line for what pydantic found: ``inputs: Field required; pipline: Extra inputs are not permitted``.

    Args:
        error: what pydantic raised.
        inside: the field that holds the whole, if one does.
    """
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in (inside, *item["loc"]) if part != "") or "message"
        # Names of fields are foreign, too.
        lines.append(f"{shown.line(where)}: {item['msg']}")
    return "; ".join(lines)


def plain(value: Any) -> Any:
    """Replaces every :class:`Ref` inside ``value`` by its JSON form; paths become ``file://`` references.

    Raises:
        PipeqError: ``invalid_input`` for bytes (say where they go) or anything else that is no JSON: NaN and infinity,
            text with a lone surrogate, an integer of over 300 digits, what is nested deeper than 190 levels.
    """
    return _plain(value, MAX_DEPTH - 10)


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else _encodable(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, Ref):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, PurePath):
        return Ref.from_path(value).model_dump(exclude_none=True)
    if depth == 0:
        # A list that holds itself ends here, too.
        raise _no_json(f"nested deeper than {MAX_DEPTH - 10} levels")
    if isinstance(value, dict):
        return {_key(key): _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    hint = "; wrap small ones in Ref.from_bytes(), put large ones on S3" if isinstance(value, bytes) else ""
    raise PipeqError(ErrorCode.INVALID_INPUT, f"{type(value).__name__} is not JSON and no Ref{hint}")


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _no_json(f"{shown.line(text, 50)!r} holds a lone surrogate at character {error.start}") from error
    return text


def _number(value: int | float) -> int | float:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _no_json(f"{value} is no number of JSON: write null, or leave it out")
    elif abs(value) >= 10**MAX_DIGITS:
        raise _no_json(f"an integer of more than {MAX_DIGITS} digits")
    return value


def _key(key: Any) -> str:
    if isinstance(key, str):
        return _encodable(key)
    if key is None or isinstance(key, bool | int | float):
        return str(key)
    raise _no_json(f"a {type(key).__name__} is no name of a field")


def _no_json(what: str) -> PipeqError:
    return PipeqError(ErrorCode.INVALID_INPUT, f"it is not JSON: {what}")


def json_schema() -> str:
    """The JSON Schema of a message, as exported to ``docs/message.schema.json``."""
    schema = TaskMessage.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$defs"]["Ref"] = Ref.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        if "description" in part:
            # The rest of a docstring speaks to Python programmers.
            part["description"] = part["description"].partition("\n")[0]
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
