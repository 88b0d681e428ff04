"""UNPACK: an archive of anyone's -> files below one folder, and nowhere else. Used by model_archive.

    archive -> decompressed, by pieces -> members, one by one: name checked, size counted -> files.create_below

Members are regular files and folders. Links are refused rather than followed with care: chains of them lead outside
even through :mod:`tarfile`'s own filters (CVE-2025-4517), and a model needs none. What is counted are the bytes that
come out, never those that a header promises.
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

from pipeq_worker.settings.read import ArchiveSettings
from pipeq_worker.stores.files import create_below, make_below

_CHUNK = 2**20
#: Any archive may unpack to so many bytes, whatever its own size: configurations compress well.
_ALWAYS_BYTES = 16 * 2**20
#: Most bytes of a header (names, attributes), or of a ZIP archive's directory; both are read as a whole.
_MAX_HEADER_BYTES = 2**16
_MAX_DIRECTORY_BYTES = 64 * 2**20
#: Most memory that an .xz archive may ask for: its presets take 65 MiB at most.
_XZ_BYTES = 256 * 2**20
#: Errors of the system that an archive causes: damage (gzip and bz2 give no number), names that no disk takes, a file
#: in the place of a folder. All others are the disk's.
_DAMAGE = frozenset({None, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP})
#: Most folders inside each other.
_MAX_DEPTH = 32


class ArchiveError(Exception):
    """An archive that is not unpacked, and why, in half a sentence."""


def unpack(archive: Path, folder: Path, limits: ArchiveSettings) -> None:
    """Unpacks an archive into a folder that is empty.

    Args:
        archive: its kind is told by its name: ``.tar``, ``.tar.gz``, ``.tgz``, ``.tar.bz2``, ``.tar.xz`` or ``.zip``.
        folder: where its members go. What is there after an error is unfinished.
        limits: how much may come out of it.

    Raises:
        ArchiveError: a member that is no file and no folder, or leads outside; more than the limits allow; damage.
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
    """What came out of the archive so far."""

    def __init__(self, folder: Path, limits: ArchiveSettings, packed_bytes: int) -> None:
        self._folder = str(folder)
        self._limits = limits
        self._count = 0
        self._bytes = 0
        by_ratio = max(_ALWAYS_BYTES, int(packed_bytes * limits.max_ratio))
        self._most_bytes = min(limits.max_bytes, by_ratio)
        self._key = "max_bytes" if limits.max_bytes <= by_ratio else "max_ratio"

    def begin(self, name: str) -> list[str]:
        """Counts a member and checks its name; its parts, none for the root itself."""
        self._count += 1
        if self._count > self._limits.max_files:
            raise ArchiveError(f"it has more than {self._limits.max_files} files ([s3.archives] max_files)")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or len(parts) > _MAX_DEPTH:
            raise ArchiveError(f"its member {shown.line(name)!r} would lie outside its folder, or too deep in it")
        return parts

    def count(self, more: int) -> None:
        """Counts bytes that came out, members and headers alike."""
        self._bytes += more
        if self._bytes > self._most_bytes:
            raise ArchiveError(f"it unpacks to more than {self._most_bytes} bytes ([s3.archives] {self._key})")

    def add_folder(self, name: str) -> None:
        """Makes a folder, if it is not there already."""
        if parts := self.begin(name):
            make_below(self._folder, "/".join(parts))

    def add_file(self, name: str, read: Callable[[int], bytes], count: Callable[[int], None]) -> None:
        """Writes a file; ``count`` is told of each piece."""
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
                # Of LZMA, too, a member may ask for gigabytes of memory.
                raise ArchiveError(f"{shown.line(member.filename)!r} is compressed in a way that is not read")
            else:
                with packed.open(member) as data:
                    unpacked.add_file(member.filename, data.read, unpacked.count)


class _Directory(io.FileIO):
    """A ZIP archive whose directory, which :mod:`zipfile` reads as a whole, is bounded."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise ArchiveError(f"its directory has {size} bytes, more than {_MAX_DIRECTORY_BYTES}")
        return super().read(-1 if size is None else size)


def _untar(archive: Path, unpacked: _Unpacked) -> None:
    with _decompressed(archive) as data:
        counted = cast(IO[bytes], _Counted(data, unpacked.count))
        # As a stream: it is read once, from begin to end, and nothing in it can make us go back.
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=_Member) as packed:
            for member in packed:
                if member.isdir():
                    unpacked.add_folder(member.name)
                elif member.isreg() and not member.issparse():
                    file = packed.extractfile(member)
                    assert file is not None
                    # Its bytes are counted where they are decompressed.
                    unpacked.add_file(member.name, file.read, _counted_already)
                else:
                    raise _no_file(member.name)
                # It keeps every member it has seen.
                packed.members.clear()  # type: ignore[attr-defined]


def _no_file(name: str) -> ArchiveError:
    return ArchiveError(
        f"its member {shown.line(name)!r} is a link, a device or a sparse file: pack files and folders only "
        "(tar --dereference)"
    )


def _counted_already(size: int) -> None:
    pass


class _Member(tarfile.TarInfo):
    """A member whose headers are bounded: :mod:`tarfile` reads them as a whole."""

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
    """What is read of a stream is counted."""

    def __init__(self, stream: io.BufferedIOBase, count: Callable[[int], None]) -> None:
        self._stream = stream
        self._count = count

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end."""
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
    """An .xz file; :class:`lzma.LZMAFile` would take whatever memory its header asks for."""

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
