"""STORE: where results go that do not go into the result backend. Used by deliver."""

from __future__ import annotations

import errno

from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.settings.read import ResultSettings, S3Settings
from pipeq_worker.stores import deadline
from pipeq_worker.stores.allow import AllowList, display
from pipeq_worker.stores.files import write_below
from pipeq_worker.stores.s3 import S3, Fault, S3Error

#: How long one connect or read of the store may take, in seconds.
_TIMEOUT_S = 30
#: How long the store may take to answer in all, however slowly it drips, in seconds.
_WRITE_S = 600
#: Connections that are kept open: more threads than this never deliver at once.
_CONNECTIONS = 16

#: Faults of a disk that may pass: full, over quota, a file server that is away.
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE})


class Store:
    """Writes results below the prefixes that settings allow. One serves all threads.

    Args:
        results: the worker's own store, and where producers may send output.
        s3: how to reach S3.
    """

    def __init__(self, results: ResultSettings, s3: S3Settings) -> None:
        own = (results.store,) if results.store else ()
        self._producers = AllowList(results.allow, "[results] allow")
        self._all = AllowList((*results.allow, *own), "[results] allow")
        self._s3 = S3(s3, _TIMEOUT_S, _CONNECTIONS)

    def check_allowed(self, uri: str) -> None:
        """Whether a producer may have its output written there: below ``[results] allow``.

        Raises:
            PipeqError: ``input_forbidden``, with the line to add to the settings.
        """
        _locate(self._producers, uri)

    def put(self, uri: str, data: bytes, media_type: str) -> None:
        """Writes an object, as a whole or not at all; one that is there is replaced.

        Args:
            uri: an ``s3://`` or ``file://`` URI below ``[results] allow`` or the worker's own store.
            data: what the object will hold.
            media_type: its MIME type; a file has none.

        Raises:
            PipeqError: ``input_forbidden``; ``output_failed``, retryable if the fault may pass.
        """
        place, name = _locate(self._all, uri)
        if not name or name.endswith("/"):
            raise PipeqError(ErrorCode.OUTPUT_FAILED, f"{display(uri)} names a folder, not an object", False)
        if uri.startswith("s3://"):
            self._put_s3(place, name, data, media_type, display(uri))
        else:
            _put_file(place, name, data, display(uri))

    def close(self) -> None:
        """Closes the connections to the store."""
        self._s3.close()

    def _put_s3(self, bucket: str, key: str, data: bytes, media_type: str, name: str) -> None:
        try:
            with deadline.within(_WRITE_S):
                self._s3.put(bucket, key, data, media_type)
        except S3Error as error:
            passing = error.fault is Fault.PASSING
            raise PipeqError(ErrorCode.OUTPUT_FAILED, f"{name}: the store {error.reason}", passing) from error


def _locate(allow: AllowList, uri: str) -> tuple[str, str]:
    if uri.startswith("s3://"):
        return allow.check_s3(uri)
    if uri.startswith("file://"):
        root, relative = allow.check_file(uri)
        return root, relative + "/" if uri.endswith("/") else relative
    raise PipeqError(ErrorCode.INPUT_FORBIDDEN, f"{display(uri)} cannot be written: output goes to s3:// or file://")


def _put_file(root: str, relative: str, data: bytes, name: str) -> None:
    try:
        write_below(root, relative, data)
    except OSError as error:
        reason = f"{name} cannot be written ({error.strerror})"
        raise PipeqError(ErrorCode.OUTPUT_FAILED, reason, error.errno in _PASSING) from error
