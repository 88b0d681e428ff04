"""FILE: ``file:///folder/name`` on the worker's own disk. Links cannot lead out of an allowed folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from pipeq.contract.errors import Blame

from pipeq_worker.observe.own_faults import is_own_fault_of_call
from pipeq_worker.stores.base import Fault, Prefixes, Source, Store, StoreError, display, is_below
from pipeq_worker.stores.disk import NotRegularError, open_below, write_below

#: Errors of a disk that may be temporary: a file server is away. So may those of a worker that lacks something be.
_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN})


class FilePlace(NamedTuple):
    """The place of a file; both parts are free of symbolic links."""

    #: The allowed folder that holds it; trusted.
    root: str
    #: Its path below that folder.
    relative: str


class File(Store):
    """Files on a disk that the worker can access."""

    scheme = "file"
    writable = True

    @classmethod
    def prefix(cls, entry: str) -> str:
        try:
            return file_path(entry)
        except ValueError as error:
            raise ValueError(f"cannot be used: {error}") from error

    @classmethod
    def check(cls, uri: str, prefixes: Prefixes, name: str | None = None) -> FilePlace:
        """The file need not exist. It may be replaced by a link before it is opened; disk.py follows none."""
        name = name or display(uri)
        try:
            path = file_path(uri)
        except ValueError as error:
            raise StoreError(Fault.REFUSED, f"{name} is not opened: {error}") from error
        real = os.path.realpath(path)
        for entry in prefixes.entries:
            # Resolved each time, because a root such as "current" may be a link that changes while the worker runs.
            root = os.path.realpath(entry)
            if real == root:
                return FilePlace(*os.path.split(real))
            if real.startswith(root.rstrip("/") + "/"):
                return FilePlace(root, os.path.relpath(real, root))
        if any(is_below(path, entry) for entry in prefixes.entries):
            reason = 'leads outside the allowed folders, through a symbolic link or ".."'
            raise StoreError(Fault.REFUSED, f"{name} {reason}; to allow that, add its folder to {prefixes.key}")
        folder = uri[: uri.rindex("/") + 1]
        # For a file directly below the root, the suggested folder would be the whole disk.
        raise prefixes.forbidden(uri, uri if folder == "file:///" else folder, name)

    @contextmanager
    def open(self, place: FilePlace, name: str) -> Iterator[Source]:
        try:
            descriptor = open_below(*place)
        except OSError as error:
            raise _problem(error, name, place.root) from error

        def read(size: int) -> bytes:
            try:
                return os.read(descriptor, size)
            except OSError as error:
                raise _problem(error, name) from error

        try:
            yield Source(os.fstat(descriptor).st_size, read)
        finally:
            os.close(descriptor)

    def put(self, place: FilePlace, data: bytes, media_type: str, name: str) -> None:
        """Writes a file; its media type is not stored."""
        try:
            write_below(*place, data)
        except OSError as error:
            is_own = is_own_fault_of_call(error)
            fault = Fault.PASSING if is_own or error.errno in _PASSING else Fault.PERMANENT
            blame = Blame.WORKER if is_own else Blame.EITHER if isinstance(error, PermissionError) else Blame.TASK
            raise StoreError(fault, f"{name} cannot be written ({error.strerror})", blame=blame) from error

    def look(self, prefix: str, name: str) -> None:
        if not os.path.exists(prefix):
            raise StoreError(Fault.MISSING, f"{name}: there is no such file or folder")
        if not os.access(prefix, os.R_OK | (os.X_OK if os.path.isdir(prefix) else 0)):
            raise StoreError(Fault.REFUSED, f"{name} cannot be read by this user")

    def server(self, place: FilePlace) -> str:
        """The folder that an entry allows: each may be another disk."""
        return f"file://{place.root}"

    def remove(self, place: FilePlace, name: str) -> None:
        try:
            os.unlink(os.path.join(*place))
        except OSError as error:
            raise _problem(error, name) from error


def file_path(uri: str) -> str:
    """``file:///a%20b`` -> ``/a b``. ``?`` and ``#`` are part of the name, as they can mean nothing else.

    Raises:
        ValueError: the path is relative, on another host, or has a zero byte.
    """
    path = os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
    if not path.startswith("/"):
        raise ValueError("it is no absolute path on the worker's own disk: write file:///folder/file")
    if "\0" in path:
        raise ValueError("its name holds a zero byte")
    return path


def _problem(error: OSError, name: str, root: str = "/") -> StoreError:
    if is_own_fault_of_call(error):
        return StoreError(Fault.PASSING, f"{name} cannot be read ({error.strerror})", blame=Blame.WORKER)
    if isinstance(error, FileNotFoundError) and not os.path.isdir(root):
        # For instance a disk that is not mounted here.
        reason = f"{name} does not exist on this worker's disk, nor does the folder that it is allowed to read there"
        return StoreError(Fault.MISSING, reason, blame=Blame.EITHER)
    if isinstance(error, IsADirectoryError):
        return StoreError(Fault.MISSING, f"{name} is a folder, not a file")
    if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ENAMETOOLONG:
        return StoreError(Fault.MISSING, f"{name} does not exist on this worker's disk")
    if isinstance(error, NotRegularError) or error.errno == errno.ENXIO:
        return StoreError(Fault.REFUSED, f"{name} is a device, a pipe or a socket, not a file")
    if error.errno == errno.ELOOP:
        return StoreError(Fault.REFUSED, f"{name} became a symbolic link while it was opened")
    if isinstance(error, PermissionError):
        return StoreError(Fault.REFUSED, f"this worker's user may not read {name}", blame=Blame.EITHER)
    return StoreError(Fault.PASSING, f"{name} cannot be read ({error.strerror})")
