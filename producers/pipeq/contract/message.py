"""CONTRACT: the message that travels on the queue for one task.

A :class:`TaskMessage` is the keyword arguments of the Celery task ``pipeq.infer``. Any Celery app can send them as a
plain dictionary; the worker reads them with :meth:`TaskMessage.parse`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from pathlib import Path, PurePath
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from pipeq.contract import naming, schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.keys import TASK_ID_WORDS, is_readable_id, object_name
from pipeq.contract.reading import MAX_DEPTH, MAX_DIGITS

#: Most characters of a task's ``custom_id``.
CUSTOM_ID_MAX = 500


class Ref(BaseModel):
    """A reference to an input: where its bytes are, from the worker's point of view.

    Exactly one of ``uri`` and ``base64`` is given. ``Ref("s3://talks/a.flac")`` is short for ``Ref(uri=...)``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: ``s3://bucket/key``, ``file:///absolute/path`` on the worker's disk, ``https://host/path``; ``gs://``, ``az://``
    #: and ``hf://`` where the worker has their package; or a scheme that an installed package registers.
    uri: str | None = None
    #: The bytes themselves, for small inputs.
    base64: str | None = Field(default=None, repr=False)
    #: MIME type, if the producer knows it. Only a hint: workers examine the bytes.
    media_type: str | None = None
    #: Hexadecimal SHA-256 of the bytes; a worker that reads other bytes fails the task.
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    #: Shape and dtype of an object that a worker wrote, so that a result can be the next task's input unchanged.
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    #: A worker's signature of an object that it wrote, in a chain: the next worker reads it despite `[inputs] allow`.
    signature: str | None = Field(default=None, repr=False, pattern=r"^[0-9a-f]{64}$")

    def __init__(self, /, uri: str | None = None, **fields: Any) -> None:
        """Checks the fields.

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
        """Makes a reference that carries its bytes inline, for inputs that fit into a message (256 KiB)."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise PipeqError(ErrorCode.INVALID_INPUT, f"Ref.from_bytes takes bytes, not a {type(data).__name__}")
        return cls(base64=base64.b64encode(data).decode("ascii"), media_type=media_type)

    @classmethod
    def from_path(cls, path: str | PurePath) -> Self:
        """Makes a ``file://`` reference to a file that the *worker* can open under the same path."""
        try:
            return cls(uri=Path(path).resolve().as_uri())
        except (TypeError, ValueError, OSError) as error:
            raise PipeqError(ErrorCode.INVALID_INPUT, f"{shown.value(path)} is no path of a file: {error}") from error

    @classmethod
    def of(cls, source: str | PurePath) -> Self:
        """Makes a reference from a URI, or from a path that the worker can open, too."""
        # Also for a URI of an unknown scheme, because a file's name does not begin with http://.
        return cls(uri=source) if isinstance(source, str) and "://" in source else cls.from_path(source)

    @classmethod
    def is_ref(cls, value: Any) -> bool:
        """Whether a value of ``inputs`` is a reference: an object with ``uri`` or ``base64``."""
        return isinstance(value, dict) and ("uri" in value or "base64" in value)


def _hint(uri: str) -> str:
    """Advice for a text that was written instead of a URI."""
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

    #: ``s3://``, ``file://``, ``gs://`` or ``az://``; one that ends in ``/`` is a prefix, the object is
    #: ``<task id>.json`` below it. It may have the fields of :mod:`pipeq.contract.naming`, such as ``{stem}-{id}``.
    uri: str
    #: Whether the inputs and the parameters are written beside the result: :mod:`pipeq.contract.asked`.
    include_inputs: bool = False

    def __init__(self, /, **fields: Any) -> None:
        """Checks the fields.

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
        naming.check(uri)
        return uri

    def object_uri(self, task_id: str) -> str:
        """The URI of the object that holds a task's result; see :func:`pipeq.contract.keys.object_name`.

        Raises:
            PipeqError: ``invalid_message``: this is no id of a task.
        """
        if not is_readable_id(task_id):
            raise PipeqError(ErrorCode.INVALID_MESSAGE, f"the task id {shown.value(task_id)} is not {TASK_ID_WORDS}")
        return f"{self.uri}{object_name(task_id)}.json" if self.uri.endswith("/") else self.uri


class TaskMessage(BaseModel):
    """One task: a pipeline, its inputs, and how to run them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Name of the pipeline, which is also the name of its queue.
    pipeline: str = Field(min_length=1, max_length=200)
    #: A value, an object of named values, or a list of either; a list gives a list of results in the same order.
    inputs: JsonValue
    #: Parameters of the pipeline's call; they override the pipeline's own settings for this task only.
    params: dict[str, JsonValue] = Field(default_factory=dict)
    #: If absent, the result goes to the result backend.
    output: Output | None = None
    #: The producer's own name for the task, which need not be unique: for names of results.
    custom_id: str | None = Field(default=None, min_length=1, max_length=CUSTOM_ID_MAX)

    def __init__(self, /, **fields: Any) -> None:
        """Checks the fields.

        Raises:
            PipeqError: ``invalid_message``, naming the field.
        """
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise PipeqError(ErrorCode.INVALID_MESSAGE, describe(error)) from error
        except TypeError as error:  # the output has keys that are not text
            raise PipeqError(ErrorCode.INVALID_MESSAGE, f"output: {error}") from error

    @classmethod
    def parse(cls, fields: Any) -> Self:
        """Parses the keyword arguments of a Celery message.

        Raises:
            PipeqError: ``invalid_message``: they are no message of ours.
        """
        if not isinstance(fields, dict):
            raise PipeqError(
                ErrorCode.INVALID_MESSAGE, f"the task's keyword arguments are a {type(fields).__name__}, not an object"
            )
        try:
            return cls(**fields)
        except TypeError as error:  # it has keys that are not text
            raise PipeqError(ErrorCode.INVALID_MESSAGE, str(error)) from error

    def to_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of the Celery task ``pipeq.infer``, without fields that have their default."""
        fields: dict[str, Any] = {"pipeline": self.pipeline, "inputs": self.inputs}
        if self.params:
            fields["params"] = self.params
        if self.output is not None:
            fields["output"] = {"uri": self.output.uri}
            if self.output.include_inputs:
                fields["output"]["include_inputs"] = True
        if self.custom_id is not None:
            fields["custom_id"] = self.custom_id
        return fields

    def destination(self, task_id: str, now: float | None = None) -> Output | None:
        """Where the result of this task goes: its output, with the fields of its URI filled in.

        Args:
            task_id: the task's id.
            now: when it was submitted, in seconds since the epoch; None for the present.

        Raises:
            PipeqError: ``invalid_message``: the task has nothing to fill in.
        """
        if self.output is None or not naming.has_fields(self.output.uri):
            return self.output
        uri = naming.expand(
            self.output.uri,
            task_id=task_id,
            pipeline=self.pipeline,
            inputs=self.inputs,
            custom_id=self.custom_id,
            now=now,
        )
        return Output(uri=uri, include_inputs=self.output.include_inputs)


def describe(error: ValidationError, inside: str = "") -> str:
    """Puts pydantic's errors on one line: ``inputs: Field required; pipline: Extra inputs are not permitted``.

    Args:
        error: pydantic's exception.
        inside: the field that contains the validated object, if there is one.
    """
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in (inside, *item["loc"]) if part != "") or "message"
        # Names of fields are foreign text, too.
        lines.append(f"{shown.line(where)}: {item['msg']}")
    return "; ".join(lines)


def plain(value: Any) -> Any:
    """Replaces every :class:`Ref` in ``value`` by its JSON form, and paths by ``file://`` references.

    Raises:
        PipeqError: ``invalid_input`` for bytes (with advice), and for anything else that is not JSON: NaN and infinity,
            text with a lone surrogate, an integer of over 300 digits, nesting deeper than 190 levels.
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
        # This also ends a list that contains itself.
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
            # The rest of a docstring is for Python programmers.
            part["description"] = part["description"].partition("\n")[0]
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
