"""Reading a result that a worker put into a store: ``s3://`` with the caller's own AWS credentials, or ``file://``."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from producers.errors import ErrorCode, PipeqError


def read_result(uri: str) -> Any:
    """The JSON that ``uri`` holds.

    Raises:
        PipeqError: ``output_failed``, when it cannot be read.
    """
    try:
        return json.loads(_read(uri))
    except (OSError, ValueError) as error:
        raise PipeqError(ErrorCode.OUTPUT_FAILED, f"cannot read the result {uri}: {error}") from error


def read_object(part: Mapping[str, Any]) -> bytes:
    """The bytes of an object in a result: an image, audio, an array.

    Args:
        part: what stands for it in the result, with ``uri`` or ``base64``.

    Raises:
        PipeqError: ``output_failed``, when it cannot be read.
    """
    try:
        return base64.b64decode(part["base64"]) if "base64" in part else _read(part["uri"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipeqError(ErrorCode.OUTPUT_FAILED, f"cannot read the object {part.get('uri', '')}: {error}") from error


def _read(uri: str) -> bytes:
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(uri.removeprefix("file://"))).read_bytes()
    import boto3  # not at the top: half a second that most callers never need
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        body = boto3.client("s3").get_object(Bucket=parts.netloc, Key=uri.split("/", 3)[3])["Body"]
        return body.read()
    except (BotoCoreError, ClientError) as error:
        raise OSError(str(error)) from error
