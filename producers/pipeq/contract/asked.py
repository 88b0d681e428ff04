"""CONTRACT: what was asked beside what was answered: the object that ``include_inputs`` writes to the store.

    {"pipeq": {"version": 1, "id": ..., "pipeline": ..., "inputs": ..., "params": ...}, "result": <the output>}

Inputs are as they were sent: references, not what they refer to. A client that reads the object returns the ``result``.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any, Final

from pipeq.contract import keys, shown
from pipeq.contract.message import TaskMessage
from pipeq.contract.writing import to_json

#: The two fields of the object.
_ASKED: Final = "pipeq"
_ANSWERED: Final = "result"
#: Most bytes of inputs and params together; beyond that their size stands in their place.
ASKED_MAX_BYTES: Final = keys.MAX_MESSAGE_BYTES


def asked(message: TaskMessage, task_id: str) -> bytes:
    """Returns the beginning of the object as JSON; the result and a brace follow.

    Passwords, signatures and bytes are left out: of bytes, their number and their SHA-256 are written.
    """
    return asked_of(message.pipeline, task_id, message.custom_id, content(message.inputs, message.params))


def asked_of(pipeline: str, task_id: str, custom_id: str | None, what: dict[str, Any]) -> bytes:
    """The same of its parts; ``what`` is what :func:`content` returned."""
    said: dict[str, Any] = {"version": keys.CONTRACT_VERSION, "id": task_id, "pipeline": pipeline}
    if custom_id is not None:
        said["custom_id"] = custom_id
    return f'{{"{_ASKED}":'.encode() + to_json(said | what) + f',"{_ANSWERED}":'.encode()


def content(inputs: Any, params: Any) -> dict[str, Any]:
    """What was asked, without passwords, signatures and bytes; both are null if they are too large."""
    found = {"inputs": _plain(inputs), "params": _plain(dict(params or {}))}
    try:
        size = len(to_json(found))
    except ValueError:  # NaN, or half of a surrogate pair: the task is going to fail of it
        found, size = {"inputs": None, "params": None}, 0
    if size > ASKED_MAX_BYTES:
        found = {"inputs": None, "params": None, "left_out_bytes": size}
    return found


def answer(value: Any) -> Any:
    """Returns the pipeline's output of a result object, whether or not the inputs are beside it."""
    if isinstance(value, dict) and value.keys() == {_ASKED, _ANSWERED} and isinstance(value[_ASKED], dict):
        return value[_ANSWERED]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return shown.without_secrets(value) if "://" in value else value
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        if isinstance(value.get("base64"), str):
            return _without_bytes(value)
        return {name: _plain(one) for name, one in value.items() if name != "signature"}
    return value


def _without_bytes(ref: dict[str, Any]) -> dict[str, Any]:
    rest = {name: one for name, one in ref.items() if name not in ("base64", "signature")}
    try:
        data = base64.b64decode(ref["base64"], validate=True)
    except ValueError:  # the task is going to fail of it
        return {**rest, "bytes": None}
    return {**rest, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
