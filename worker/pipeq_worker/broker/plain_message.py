"""PLAIN MESSAGE: a message's bytes -> what the host needs of it, in one step. Before: reserver. After: intake.

Nearly all messages are alike: the headers of Celery's protocol with nothing in them that Celery would have to act on,
and a body of three parts of which the host needs the pipeline's name. Such a message is read into typed fields, and its
inputs and parameters go on as the bytes that they came as. For any other message this module returns None, and it takes
Celery's own way, which knows what to do with it or why it must be refused. So nothing is refused here, and a message
that is accepted here would be accepted there.

A bare message (:mod:`pipeq.contract.bare`) is read here, too, unless it expires.
"""

from __future__ import annotations

from binascii import a2b_base64
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field
from pipeq.contract import keys, pack
from pipeq.contract.reading import is_bounded

from pipeq_worker.broker.protocol import LARGEST, has_types
from pipeq_worker.leases.enveloping import EMBED, priority_of
from pipeq_worker.leases.frame import ENCODINGS, JSON, Limits
from pipeq_worker.leases.reserved import Reserved

_Count = Annotated[int, Meta(ge=0, le=LARGEST)]
_WorkerName = Annotated[str, Meta(max_length=keys.WORKER_NAME_MAX)]
_Id = Annotated[str, Meta(min_length=1, max_length=keys.TASK_ID_MAX_BYTES)]
_FairKey = Annotated[str, Meta(min_length=1, max_length=keys.FAIR_KEY_MAX)]
_Seconds = Annotated[float, Meta(ge=0)]
_Timeout = Annotated[float, Meta(gt=0)]


class Headers(Struct):
    """Celery's headers (:data:`pipeq_worker.broker.protocol.HEADERS`); those that must be null have the type None."""

    task: Literal["pipeq.infer"]
    id: _Id
    eta: None = None
    expires: None = None
    compression: None = None
    lang: str | None = None
    shadow: None = None
    group: str | None = None
    group_index: _Count | None = None
    retries: _Count | None = None
    root_id: str | None = None
    parent_id: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    replaced_task_nesting: _Count | None = None
    timelimit: tuple[float | None, float | None] | None = None
    ignore_result: bool | None = None
    redelivered: bool | None = None
    stamped_headers: Annotated[list[str], Meta(max_length=0)] | None = None
    stamps: dict[str, Any] | None = None
    fair_key: _FairKey | None = field(default=None, name=keys.FAIR_KEY_HEADER)
    deadline_s: _Seconds | None = field(default=None, name=keys.DEADLINE_HEADER)
    sent_at: _Seconds | None = field(default=None, name=keys.SENT_AT_HEADER)
    timeout_s: _Timeout | None = field(default=None, name=keys.TIMEOUT_HEADER)
    past_attempts: Annotated[int, Meta(ge=0, le=keys.ATTEMPTS_MAX)] | None = field(
        default=None, name=keys.PAST_ATTEMPTS_HEADER
    )
    retrying_since: Annotated[float, Meta(ge=0)] | None = field(default=None, name=keys.RETRYING_SINCE_HEADER)
    put_off: Annotated[int, Meta(ge=0, le=keys.ATTEMPTS_MAX)] | None = field(default=None, name=keys.PUT_OFF_HEADER)
    past_deaths: Annotated[int, Meta(ge=0, le=keys.ATTEMPTS_MAX)] | None = field(
        default=None, name=keys.PAST_DEATHS_HEADER
    )
    #: Whether it is for this worker, the consumer decides.
    failed_on: None = field(default=None, name=keys.FAILED_ON_HEADER)
    refused_by: Annotated[list[_WorkerName], Meta(max_length=keys.REFUSED_BY_MAX)] | None = field(
        default=None, name=keys.REFUSED_BY_HEADER
    )


class Properties(Struct):
    """Celery's properties (:data:`pipeq_worker.broker.protocol.PROPERTIES`)."""

    body_encoding: Literal["base64"]
    priority: Annotated[int, Meta(ge=0, le=255)] | None = None
    delivery_mode: Annotated[int, Meta(ge=0, le=2)] | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None


class _Frame(Struct):
    body: str
    headers: Headers
    properties: Properties
    content_type: str = field(name="content-type")
    content_encoding: str | None = field(default=None, name="content-encoding")


class _Fields(Struct, forbid_unknown_fields=True):
    pipeline: str
    #: Read only to see that they are JSON; a task has inputs, and a pack has rows.
    inputs: Any = UNSET
    rows: list[Any] | UnsetType = UNSET
    params: Any = None
    output: Any = None
    job: Any = None
    custom_id: Any = None
    include_inputs: Any = None


class _Counted(_Fields, forbid_unknown_fields=True):
    #: Rows are only counted; values of Python are not made of them.
    rows: list[Raw] | UnsetType = UNSET


class _Bare(Struct, forbid_unknown_fields=True):
    id: _Id
    pipeline: str
    inputs: Any
    params: Any = None
    output: Any | UnsetType = UNSET
    custom_id: Any | UnsetType = UNSET
    expires_at: None = None
    fair_key: _FairKey | None = None
    deadline_s: _Seconds | None = None
    sent_at: _Seconds | None = None
    timeout_s: _Timeout | None = None


class _Embed(Struct, forbid_unknown_fields=True):
    callbacks: None = None
    errbacks: None = None
    chain: None = None
    chord: None = None


_Nothing = Annotated[list[Any], Meta(max_length=0)]
#: Bodies of more bytes are packs, or texts that are as fast to read in one way as in the other.
LARGE_BYTES = 2048
_any = msgspec.json.Decoder().decode
_body = msgspec.json.Decoder(tuple[_Nothing, _Fields, _Embed]).decode
_counted = msgspec.json.Decoder(tuple[_Nothing, _Counted, _Embed]).decode
_bare = msgspec.json.Decoder(_Bare).decode
_encode = msgspec.json.Encoder().encode
_straight = msgspec.json.Decoder(_Frame).decode


def _frame(raw: bytes) -> _Frame:
    return _straight(raw) if _is_simple(raw) else msgspec.convert(_any(raw), _Frame)


def _is_simple(raw: bytes) -> bool:
    """Whether texts have nothing that could be wrong: msgspec does not look into what it leaves out."""
    return raw.isascii() and b"\\" not in raw and raw.decode().isprintable()


class PlainMessage(Struct):
    """What the host needs of a message."""

    headers: Headers
    #: As it was sent; None if it was not.
    priority: int | None
    #: JSON: ``[[], {"pipeline": ..., "inputs": ..., ...}, {}]``.
    body: bytes
    #: Of a pack: where it belongs, and the number of its rows.
    pack_of: pack.PackOf | None = None
    rows: int = 0


def read(one: Reserved, limits: Limits) -> PlainMessage | None:
    """Returns a message that Celery need not act on; None for any other. Never raises."""
    # requeue.lua puts a blank in front of a message that was delivered before; Celery tells its observers of that.
    if one.too_large or one.raw.startswith(b" ") or not is_bounded(one.raw):
        return None
    try:
        frame = _frame(one.raw)
    except (ValueError, RecursionError):
        return _read_bare(one, limits) if limits.takes_bare else None
    try:
        body = a2b_base64(frame.body)
        if len(body) > limits.body_bytes or not is_bounded(body) or has_types(body):
            return None
        _, fields, _ = (_counted if len(body) > LARGE_BYTES and _is_simple(body) else _body)(body)
    except (ValueError, RecursionError):
        return None
    kind, encoding = frame.content_type, frame.content_encoding
    if kind not in JSON or (encoding is not None and encoding.lower() not in ENCODINGS):
        return None
    # The list that held it counts, and a message of another pipeline on it is refused.
    if fields.pipeline != one.queue or not keys.is_task_id(frame.headers.id):
        return None
    about = (frame.headers, frame.properties.priority, body)
    if isinstance(fields.rows, UnsetType):
        return None if fields.inputs is UNSET or fields.job is not None else PlainMessage(*about)
    found = pack.read_of(fields.job)
    if found is None or fields.inputs is not UNSET or not 0 < len(fields.rows) <= pack.ROWS_MAX:
        return None
    return PlainMessage(*about, found, len(fields.rows))


def _read_bare(one: Reserved, limits: Limits) -> PlainMessage | None:
    try:
        bare = _bare(one.raw)
        fields = {"pipeline": bare.pipeline, "inputs": bare.inputs}
        if bare.params is not None:
            fields["params"] = bare.params
        if bare.output is not UNSET:
            fields["output"] = bare.output
        if bare.custom_id is not UNSET:
            fields["custom_id"] = bare.custom_id
        body = _encode([[], fields, EMBED])
    except (ValueError, OverflowError, RecursionError):
        return None
    if len(body) > limits.body_bytes or not is_bounded(body) or has_types(body):
        return None
    if bare.pipeline != one.queue or not keys.is_task_id(bare.id):
        return None
    headers = Headers(
        task=keys.TASK_NAME,
        id=bare.id,
        root_id=bare.id,
        fair_key=bare.fair_key,
        deadline_s=bare.deadline_s,
        sent_at=bare.sent_at,
        timeout_s=bare.timeout_s,
    )
    return PlainMessage(headers, priority_of(one), body)
