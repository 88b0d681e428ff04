"""UPLOADING: bytes and local files -> objects in the client's store, with the caller's own credentials.

Used by submission, for inputs that are too large for a message. An object is named by the digest of its bytes, so that
the same input is there once. Nothing removes it: give the store a rule that does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote

from pipeq.contract import schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError, SettingsError
from pipeq.contract.extras import require
from pipeq.local_inputs import name_of
from pipeq.s3_client import s3_client

#: The environment variable with the store of a client that was given none.
VARIABLE = "PIPEQ_CLIENT_UPLOAD"


class Upload:
    """A prefix in a store: ``s3://bucket/prefix/``, ``gs://``, ``az://`` or ``file:///folder/``. Threads may share it.

    Raises (from the constructor):
        SettingsError: it cannot be used; the sentence names it.
        MissingPackageError: its package is not installed.
    """

    def __init__(self, prefix: str) -> None:
        scheme = schemes.of(prefix) if isinstance(prefix, str) else ""
        place = prefix.partition("://")[2] if scheme else ""
        if scheme not in _WRITERS or not place.endswith("/") or not place.strip("/") or "{" in place:
            raise SettingsError(
                f"upload: {shown.value(prefix)} is no prefix like s3://inputs/ or file:///data/inputs/ (it ends in '/')"
            )
        if schemes.has_dots(prefix):
            raise SettingsError(f"upload: {shown.uri(prefix)} has '.' or '..' as a part of its path: write the place")
        require(scheme)
        self._prefix = prefix
        # Made at the first write: it takes a while, and most clients upload nothing.
        self._writer = cache(_WRITERS[scheme])
        self._lock = Lock()

    def place(self, data: bytes | Path, media_type: str | None) -> str:
        """The URI of an object, which is not written yet. Reads a file to its end.

        Raises:
            PipeqError: ``input_not_found``: there is no such file.
        """
        try:
            return self._prefix + quote(name_of(data, media_type))
        except OSError as error:
            raise PipeqError(
                ErrorCode.INPUT_NOT_FOUND, f"cannot read {shown.value(str(data))}: {shown.line(str(error))}"
            ) from error

    def write(self, uri: str, data: bytes | Path) -> None:
        """Writes an object.

        Raises:
            PipeqError: ``input_unavailable``: the store does not take it.
        """
        try:
            with self._lock:
                writer = self._writer()
            writer(uri, data)
        except Exception as error:  # each library has its own errors, without a common base class
            raise PipeqError(
                ErrorCode.INPUT_UNAVAILABLE, f"cannot upload to {shown.uri(uri)}: {shown.line(str(error))}"
            ) from error


#: Writes an object.
Writer = Callable[[str, bytes | Path], None]


def _s3() -> Writer:
    client = s3_client()

    def write(uri: str, data: bytes | Path) -> None:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if isinstance(data, Path):
            client.upload_file(str(data), bucket, key)
        else:
            client.put_object(Bucket=bucket, Key=key, Body=data)

    return write


def _gs() -> Writer:
    # gcsfs.GCSFileSystem would first ask for the bucket's layout, by gRPC, which may take a minute.
    from gcsfs.core import GCSFileSystem

    return _fsspec(GCSFileSystem(access="read_write", use_listings_cache=False))


def _az() -> Writer:
    from adlfs.spec import AzureBlobFileSystem

    return _fsspec(AzureBlobFileSystem(use_listings_cache=False))


def _fsspec(files: Any) -> Writer:
    def write(uri: str, data: bytes | Path) -> None:
        name = uri.partition("://")[2]
        if isinstance(data, Path):
            files.put_file(str(data), name)
        else:
            files.pipe_file(name, data)

    return write


def _file() -> Writer:
    return _write_file


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


#: Scheme -> makes what writes there.
_WRITERS: dict[str, Callable[[], Writer]] = {"s3": _s3, "gs": _gs, "az": _az, "file": _file}


def writer_of(scheme: str) -> Writer:
    """Makes what writes objects of a scheme, which replaces one that is there; large ones go in parts.

    Raises:
        MissingPackageError: its package is not installed.
    """
    require(scheme)
    return _WRITERS[scheme]()


#: The schemes that can be written to.
SCHEMES = tuple(_WRITERS)
