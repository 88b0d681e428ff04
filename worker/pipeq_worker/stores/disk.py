"""DISK: reads and writes files below a folder, and never leaves it through a symbolic link.

A path is walked one folder at a time from an open folder, and no step follows a link. So the file that was checked is
the file that is opened, even if a link is created in between.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# With O_PATH, where available, a folder on the way must only be searchable, not readable.
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY)
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a named pipe would wait for a writer.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class NotRegularError(OSError):
    """The file is a device, a pipe or a socket."""


@contextmanager
def _folder(root: str, parts: list[str], create: bool = False) -> Iterator[int]:
    # fsync does not accept a descriptor that was opened with O_PATH.
    access = os.O_RDONLY if create else _SEARCH
    descriptor = os.open(root, access | _FOLDER)
    try:
        for part in parts:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=descriptor)
            below = os.open(part, access | _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _split(relative: str) -> tuple[list[str], str]:
    *parts, name = relative.split("/")
    if not name or name == ".":
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return parts, name


def open_below(root: str, relative: str) -> int:
    """Opens a regular file for reading; the caller closes the descriptor.

    Args:
        root: a trusted folder.
        relative: the file's path below it, without ``..`` and without links, as file.py resolves it.

    Raises:
        NotRegularError: it is a device, a pipe or a socket.
        OSError: as ``open`` raises; ELOOP or ENOTDIR if a link has appeared in the path.
    """
    parts, name = _split(relative)
    with _folder(root, parts) as folder:
        descriptor = os.open(name, _READ, dir_fd=folder)
    try:
        _check_regular(os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise NotRegularError(errno.EINVAL, "not a regular file")


def create_below(root: str, relative: str) -> int:
    """Creates a file for writing, and the folders on its path; the caller closes the descriptor.

    Args:
        root: a trusted folder.
        relative: the file's path below it, without ``..``.

    Raises:
        FileExistsError: the name exists already.
        OSError: as ``open`` raises; ELOOP or ENOTDIR if the path has a link.
    """
    parts, name = _split(relative)
    with _folder(root, parts, create=True) as folder:
        return os.open(name, _CREATE, 0o666, dir_fd=folder)


def make_below(root: str, relative: str) -> None:
    """Makes a folder, and the folders on its path, unless they exist.

    Raises:
        OSError: as ``mkdir`` raises; ELOOP or ENOTDIR if the path has a link or a file.
    """
    with _folder(root, relative.split("/"), create=True):
        pass


def write_below(root: str, relative: str, data: bytes) -> None:
    """Writes a file completely or not at all. Folders are made as needed, and an existing file is replaced.

    The data has reached the disk when this returns.

    Args:
        root: a trusted folder.
        relative: the file's path below it, without ``..`` and without links.
        data: the file's content.

    Raises:
        OSError: as ``open``, ``write`` or ``rename`` raise.
    """
    os.makedirs(root, exist_ok=True)
    parts, name = _split(relative)
    with _folder(root, parts, create=True) as folder:
        # In the same folder, because a rename is atomic only within one file system.
        temporary = f".{secrets.token_hex(8)}.tmp"
        descriptor = os.open(temporary, _CREATE, 0o666, dir_fd=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                # The message is acknowledged after this returns, so the result must survive a power failure.
                os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        os.fsync(folder)
