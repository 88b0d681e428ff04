"""Reading a result that a worker put into a store: ``s3://`` with the caller's own AWS credentials, or ``file://``.

Before: read_allow, which says whether it may be read at all.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Mapping
from typing import Any

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, ReadError
from pipeq.contract.reading import UnreadableError, readable
from pipeq.read_allow import ReadAllow


def read_result(uri: str, allow: ReadAllow) -> Any:
    """The JSON that ``uri`` holds.

    Raises:
        ReadError: ``input_forbidden``, when it is not allowed; ``output_failed``, when it cannot be read.
    """
    try:
        return readable(_read(uri, allow))
    except (OSError, UnreadableError) as error:
        raise _failed(f"cannot read the result {shown.uri(uri)}", error) from error


def read_object(part: Mapping[str, Any], allow: ReadAllow) -> bytes:
    """The bytes of an object in a result: an image, audio, an array.

    Args:
        part: what stands for it in the result, with ``uri`` or ``base64``.
        allow: what may be read.

    Raises:
        ReadError: ``input_forbidden``, when it is not allowed; ``output_failed``, when it cannot be read.
    """
    inline, uri = (part.get("base64"), part.get("uri")) if isinstance(part, Mapping) else (None, None)
    try:
        if isinstance(inline, str):
            return base64.b64decode(inline, validate=True)
        if isinstance(uri, str):
            return _read(uri, allow)
    except (OSError, ValueError) as error:
        name = shown.uri(uri) if isinstance(uri, str) else "of the result"
        raise _failed(f"cannot read the object {name}", error) from error
    what = shown.value(part)
    raise ReadError(
        ErrorCode.OUTPUT_FAILED, f"cannot read the object {what}: it has neither a `uri` nor `base64` as text", False
    )


def _failed(what: str, error: Exception) -> ReadError:
    return ReadError(ErrorCode.OUTPUT_FAILED, f"{what}: {shown.line(str(error))}")


def _read(uri: str, allow: ReadAllow) -> bytes:
    if uri.startswith("file://"):
        return _read_file(allow.file(uri))
    if not uri.startswith("s3://"):
        raise ReadError(ErrorCode.INPUT_FORBIDDEN, f"{shown.uri(uri)} is not read: it is no s3:// or file:// URI")
    bucket, key = allow.s3(uri)
    import boto3  # not at the top: half a second that most callers never need
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    except (BotoCoreError, ClientError, ValueError) as error:  # the last for an endpoint or a number that is none
        raise OSError(str(error)) from error


def _read_file(path: str) -> bytes:
    # No waiting for a writer of a pipe, and no link that was put there since it was looked at.
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError("it is no regular file")
        return file.read()
