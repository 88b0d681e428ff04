"""UNPACK: an untrusted archive -> files below one folder, and nowhere else. Used by model_archive.

    archive -> decompressed in pieces -> members, one by one: name checked, size counted -> files.create_below

Members must be regular files or folders. Links are refused, because chains of links lead outside even through
:mod:`tarfile`'s own filters (CVE-2025-4517), and a model needs none. The limits apply to the bytes that are unpacked,
never to sizes that a header declares.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, cast

from pipeq.contract import shown

from pipeq_worker.settings.sections import ArchiveSettings
from pipeq_worker.stores.disk import create_below, make_below

_CHUNK = 2**20
#: Bytes that any archive may unpack to, whatever its own size, because configurations compress well.
_ALWAYS_BYTES = 16 * 2**20
#: Most bytes of a header (names, attributes), and of a ZIP archive's directory; each is read as a whole.
_MAX_HEADER_BYTES = 2**16
_MAX_DIRECTORY_BYTES = 64 * 2**20
#: Most memory that an .xz archive may ask for; its presets take at most 65 MiB.
_XZ_BYTES = 256 * 2**20
#: Errors of the system that the archive causes: damage (gzip and bz2 give no number), names that no disk takes, a file
#: where a folder should be. All other errors are caused by the disk.
_DAMAGE = frozenset({None, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP})
#: Deepest nesting of folders.
_MAX_DEPTH = 32


class ArchiveError(Exception):
    """An archive cannot be unpacked. The message is half a sentence with the reason."""


def unpack(archive: Path, folder: Path, limits: ArchiveSettings) -> None:
    """Unpacks an archive into an empty folder.

    Args:
        archive: its name tells its kind: ``.tar``, ``.tar.gz``, ``.tgz``, ``.tar.bz2``, ``.tar.xz`` or ``.zip``.
        folder: the folder for its members. After an error its content is incomplete.
        limits: bounds of what is unpacked.

    Raises:
        ArchiveError: a member is neither file nor folder, or leads outside; a limit is exceeded; or the archive is
            damaged.
        OSError: the disk does not take it.
    """
    unpacked = _Unpacked(folder, limits, archive.stat().st_size)
    try:
        if archive.name.endswith(".zip"):
            _unzip(archive, unpacked)
        else:
            _untar(archive, unpacked)
    except (ArchiveError, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in _DAMAGE:
            raise ArchiveError(f"it is damaged ({shown.line(str(error))})") from error
        raise
    except Exception as error:
        # tarfile and zipfile raise almost anything on damaged data, and RuntimeError on an encrypted member.
        raise ArchiveError(f"it is damaged ({type(error).__name__}: {shown.line(str(error))})") from error


class _Unpacked:
    """What has been unpacked so far."""

    def __init__(self, folder: Path, limits: ArchiveSettings, packed_bytes: int) -> None:
        self._folder = str(folder)
        self._limits = limits
        self._count = 0
        self._bytes = 0
        by_ratio = max(_ALWAYS_BYTES, int(packed_bytes * limits.max_ratio))
        self._most_bytes = min(limits.max_bytes, by_ratio)
        self._key = "max_bytes" if limits.max_bytes <= by_ratio else "max_ratio"

    def begin(self, name: str) -> list[str]:
        """Counts a member and checks its name. Returns the parts of its path, none for the root itself."""
        self._count += 1
        if self._count > self._limits.max_files:
            raise ArchiveError(f"it has more than {self._limits.max_files} files ([s3.archives] max_files)")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or len(parts) > _MAX_DEPTH:
            raise ArchiveError(f"its member {shown.line(name)!r} would lie outside its folder, or too deep in it")
        return parts

    def count(self, more: int) -> None:
        """Counts unpacked bytes, of members and of headers."""
        self._bytes += more
        if self._bytes > self._most_bytes:
            raise ArchiveError(f"it unpacks to more than {self._most_bytes} bytes ([s3.archives] {self._key})")

    def add_folder(self, name: str) -> None:
        """Makes a folder, unless it exists already."""
        if parts := self.begin(name):
            make_below(self._folder, "/".join(parts))

    def add_file(self, name: str, read: Callable[[int], bytes], count: Callable[[int], None]) -> None:
        """Writes a file; ``count`` is called with the size of each piece."""
        parts = self.begin(name)
        if not parts:
            raise ArchiveError(f"its member {shown.line(name)!r} has no name")
        size = 0
        try:
            descriptor = create_below(self._folder, "/".join(parts))
        except FileExistsError as error:
            raise ArchiveError(f"it holds {shown.line(name)!r} twice") from error
        with open(descriptor, "wb") as file:
            while chunk := read(_CHUNK):
                size += len(chunk)
                count(len(chunk))
                if size > self._limits.max_file_bytes:
                    most = self._limits.max_file_bytes
                    raise ArchiveError(
                        f"{shown.line(name)!r} has more than {most} bytes ([s3.archives] max_file_bytes)"
                    )
                file.write(chunk)


def _unzip(archive: Path, unpacked: _Unpacked) -> None:
    with _Directory(archive) as file, zipfile.ZipFile(file) as packed:
        for member in packed.infolist():
            kind = member.external_attr >> 16 & 0o170000
            if kind not in (0, 0o100000, 0o040000):
                raise _no_file(member.filename)
            if member.is_dir():
                unpacked.add_folder(member.filename)
            elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
                # LZMA is refused because a member may ask for gigabytes of memory.
                raise ArchiveError(f"{shown.line(member.filename)!r} is compressed in a way that is not read")
            else:
                with packed.open(member) as data:
                    unpacked.add_file(member.filename, data.read, unpacked.count)


class _Directory(io.FileIO):
    """A ZIP archive with a bounded directory, because :mod:`zipfile` reads the directory as a whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise ArchiveError(f"its directory has {size} bytes, more than {_MAX_DIRECTORY_BYTES}")
        return super().read(-1 if size is None else size)


def _untar(archive: Path, unpacked: _Unpacked) -> None:
    with _decompressed(archive) as data:
        counted = cast(IO[bytes], _Counted(data, unpacked.count))
        # Read as a stream, once from begin to end, so that nothing in the archive can make us seek.
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=_Member) as packed:
            for member in packed:
                if member.isdir():
                    unpacked.add_folder(member.name)
                elif member.isreg() and not member.issparse():
                    file = packed.extractfile(member)
                    assert file is not None
                    # Its bytes were counted when they were decompressed.
                    unpacked.add_file(member.name, file.read, _counted_already)
                else:
                    raise _no_file(member.name)
                # tarfile keeps every member that it has read.
                packed.members.clear()  # type: ignore[attr-defined]


def _no_file(name: str) -> ArchiveError:
    return ArchiveError(
        f"its member {shown.line(name)!r} is a link, a device or a sparse file: pack files and folders only "
        "(tar --dereference)"
    )


def _counted_already(size: int) -> None:
    pass


class _Member(tarfile.TarInfo):
    """A member with bounded headers, because :mod:`tarfile` reads headers as a whole."""

    _HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type in self._HEADERS and self.size > _MAX_HEADER_BYTES:
            raise ArchiveError(f"it has a header of {self.size} bytes, more than {_MAX_HEADER_BYTES}")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _no_file(self.name)
        return super()._proc_member(tar)  # type: ignore[misc]  # documented in tarfile's source as the place to override

    def _proc_gnusparse_00(self, following: tarfile.TarInfo, *_: Any) -> None:
        raise _no_file(following.name)

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


class _Counted:
    """A stream that counts the bytes that are read from it."""

    def __init__(self, stream: io.BufferedIOBase, count: Callable[[int], None]) -> None:
        self._stream = stream
        self._count = count

    def read(self, size: int) -> bytes:
        """Reads at most ``size`` bytes; returns none at the end."""
        data = self._stream.read(size)
        self._count(len(data))
        return data


def _decompressed(archive: Path) -> AbstractContextManager[io.BufferedIOBase]:
    name = archive.name
    if name.endswith((".tar.gz", ".tgz")):
        return gzip.open(archive, "rb")
    if name.endswith(".tar.bz2"):
        return bz2.open(archive, "rb")
    return io.BufferedReader(_Xz(archive)) if name.endswith(".tar.xz") else archive.open("rb")


class _Xz(io.RawIOBase):
    """An .xz file with bounded memory; :class:`lzma.LZMAFile` would take as much as the header asks for."""

    def __init__(self, path: Path) -> None:
        self._pieces = self._read(path)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = next(self._pieces, b"")
        piece, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._pieces.close()
        super().close()

    @staticmethod
    def _read(path: Path) -> Generator[bytes, None, None]:
        unpacker = lzma.LZMADecompressor(memlimit=_XZ_BYTES)
        with path.open("rb") as file:
            while not unpacker.eof:
                packed = file.read(_CHUNK) if unpacker.needs_input else b""
                if unpacker.needs_input and not packed:
                    raise EOFError("it breaks off")
                if piece := unpacker.decompress(packed, _CHUNK):
                    yield piece
