"""UPLOADING: bytes and local files -> objects in the client's store, with the caller's own credentials.

Used by submission, for inputs that are too large for a message. An object is named by the digest of its bytes, so that
the same input is there once. Nothing removes it: give the store a rule that does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

from pipeq.contract import schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError, SettingsError
from pipeq.local_inputs import name_of
from pipeq.s3_client import s3_client

#: The environment variable with the store of a client that was given none.
VARIABLE = "PIPEQ_CLIENT_UPLOAD"


class Upload:
    """A prefix in a store: ``s3://bucket/prefix/`` or ``file:///folder/``.

    Raises (from the constructor):
        SettingsError: it cannot be used; the sentence names it.
    """

    def __init__(self, prefix: str) -> None:
        scheme = schemes.of(prefix) if isinstance(prefix, str) else ""
        place = prefix.partition("://")[2] if scheme else ""
        if scheme not in _WRITERS or not place.endswith("/") or not place.strip("/") or "{" in place:
            raise SettingsError(
                f"upload: {shown.value(prefix)} is no prefix like s3://inputs/ or file:///data/inputs/ (it ends in '/')"
            )
        self._prefix = prefix
        self._write = _WRITERS[scheme]

    def put(self, data: bytes | Path, media_type: str | None) -> str:
        """Writes an object, and returns its URI.

        Raises:
            PipeqError: ``input_not_found``: there is no such file; ``input_unavailable``: the store does not take it.
        """
        try:
            name = name_of(data, media_type)
        except OSError as error:
            raise PipeqError(
                ErrorCode.INPUT_NOT_FOUND, f"cannot read {shown.value(str(data))}: {shown.line(str(error))}"
            ) from error
        uri = self._prefix + quote(name)
        try:
            self._write(uri, data)
        except OSError as error:
            raise PipeqError(
                ErrorCode.INPUT_UNAVAILABLE, f"cannot upload to {shown.uri(uri)}: {shown.line(str(error))}"
            ) from error
        return uri


def _write_s3(uri: str, data: bytes | Path) -> None:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        client = s3_client()
        if isinstance(data, Path):
            client.upload_file(str(data), bucket, key)
        else:
            client.put_object(Bucket=bucket, Key=key, Body=data)
    except (BotoCoreError, Boto3Error, ClientError, ValueError) as error:
        raise OSError(str(error)) from error


def _write_file(uri: str, data: bytes | Path) -> None:
    path = Path(unquote(uri.removeprefix("file://")))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    # Renamed when it is whole, so that no worker reads a part.
    handle, part = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(data, Path):
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file)
            else:
                file.write(data)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


_WRITERS: dict[str, Callable[[str, bytes | Path], None]] = {"s3": _write_s3, "file": _write_file}
