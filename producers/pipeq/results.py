"""Reads a result that a worker has put into a store, with the caller's own credentials for it.

Before: read_allow, which decides whether the URI may be read.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any

from pipeq.contract import schemes, shown
from pipeq.contract.asked import answer
from pipeq.contract.errors import ErrorCode, ReadError
from pipeq.contract.extras import require
from pipeq.contract.reading import UnreadableError, readable
from pipeq.read_allow import ReadAllow
from pipeq.s3_client import s3_client


def read_result(uri: str, allow: ReadAllow) -> Any:
    """Returns the pipeline's output at ``uri``, without the inputs that may stand beside it.

    Raises:
        ReadError: ``input_forbidden``: it is not allowed; ``output_failed``: it cannot be read.
    """
    try:
        return answer(readable(_read(uri, allow)))
    except (OSError, UnreadableError) as error:
        raise _failed(f"cannot read the result {shown.uri(uri)}", error) from error


def read_object(part: Mapping[str, Any], allow: ReadAllow) -> bytes:
    """Returns the bytes of an object in a result: an image, audio, an array.

    Args:
        part: the dictionary that represents it in the result, with ``uri`` or ``base64``.
        allow: what may be read.

    Raises:
        ReadError: ``input_forbidden``: it is not allowed; ``output_failed``: it cannot be read.
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
    scheme = schemes.of(uri)
    if scheme == "file":
        return _read_file(allow.file(uri))
    if scheme not in _READERS:
        known = schemes.listed(name for name, row in schemes.SCHEMES.items() if row.writable)
        raise ReadError(ErrorCode.INPUT_FORBIDDEN, f"{shown.uri(uri)} is not read: it is no {known} URI")
    return _READERS[scheme](*allow.object(uri))


def _read_s3(bucket: str, key: str) -> bytes:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return bytes(s3_client().get_object(Bucket=bucket, Key=key)["Body"].read())
    except (BotoCoreError, ClientError, ValueError) as error:  # ValueError: a setting cannot be used, e.g. an endpoint
        raise OSError(str(error)) from error


def _read_gs(bucket: str, key: str) -> bytes:
    require("gs")
    # gcsfs.GCSFileSystem would first ask for the bucket's layout, by gRPC, which may take a minute.
    from gcsfs.core import GCSFileSystem

    return _read_fsspec(lambda: GCSFileSystem(access="read_only"), bucket, key)


def _read_az(bucket: str, key: str) -> bytes:
    require("az")
    from adlfs.spec import AzureBlobFileSystem

    return _read_fsspec(AzureBlobFileSystem, bucket, key)


def _read_fsspec(build: Callable[[], Any], bucket: str, key: str) -> bytes:
    try:
        return bytes(build().cat_file(f"{bucket}/{key}"))
    except Exception as error:  # each library has its own errors, without a common base class
        raise OSError(f"{type(error).__name__}: {error}") from error


#: Scheme -> the function that reads an object by its bucket and key, for all schemes of results except ``file``.
_READERS: dict[str, Callable[[str, str], bytes]] = {"s3": _read_s3, "gs": _read_gs, "az": _read_az}


def _read_file(path: str) -> bytes:
    # Does not wait for the writer of a pipe, and does not follow a link that was put there after the check.
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError("it is no regular file")
        return file.read()
