"""An untrusted archive: nothing is written outside its folder, no link, no bomb; damage is reported."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeq_worker.models import unpack as unpacking
from pipeq_worker.models.unpack import ArchiveError, unpack
from pipeq_worker.settings.sections import ArchiveSettings

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in files.items():
                packed.writestr(name, data)
        return path
    with tarfile.open(path, MODES[path.name[path.name.index(".") :]]) as packed:
        for name, data in files.items():
            add(packed, name, data)
    return path


def add(packed: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    packed.addfile(member, io.BytesIO(data))


def link(packed: tarfile.TarFile, name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> None:
    add(packed, name, type=kind, linkname=to)


def refused(archive: Path, **limits: object) -> str:
    folder = archive.parent / "folder"
    folder.mkdir()
    with pytest.raises(ArchiveError) as caught:
        unpack(archive, folder, ArchiveSettings(**limits))
    assert sorted(os.listdir(archive.parent)) == sorted([archive.name, "folder"])
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    return str(caught.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_and_folders(tmp_path: Path, ending: str) -> None:
    files = {"./config.json": b"{}", "a/b/model.safetensors": os.urandom(1_200_000), "empty": b"", "ä " * 60: b"long"}
    archive = pack(tmp_path / f"it{ending}", files)
    folder = tmp_path / "folder"
    folder.mkdir()
    unpack(archive, folder, ArchiveSettings())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {name.removeprefix("./"): data for name, data in files.items()}


def chain(packed: tarfile.TarFile) -> None:
    """CVE-2025-4517: links whose resolved path exceeds PATH_MAX: realpath gives up, and later members lead outside."""
    folder, steps = "d" * 247, "abcdefghijklmnop"
    path = ""
    for step in steps:
        add(packed, f"{path}{folder}", type=tarfile.DIRTYPE)
        link(packed, f"{path}{step}", folder)
        path += folder + "/"
    short = "/".join(steps)
    link(packed, f"{short}/{'l' * 254}", "../" * len(steps))
    link(packed, "escape", f"{short}/{'l' * 254}/..")
    add(packed, "escape/victim", b"overwritten")


MEMBERS: dict[str, Callable[[tarfile.TarFile], None]] = {
    "a chain of links": chain,
    "a link inside": lambda packed: link(packed, "a", "b"),
    "a link outside": lambda packed: link(packed, "a", "../.."),
    "an absolute link": lambda packed: link(packed, "a", "/etc/passwd"),
    "a hard link": lambda packed: link(packed, "a", "../victim", tarfile.LNKTYPE),
    "a device": lambda packed: add(packed, "a", type=tarfile.CHRTYPE),
    "a block device": lambda packed: add(packed, "a", type=tarfile.BLKTYPE),
    "a pipe": lambda packed: add(packed, "a", type=tarfile.FIFOTYPE),
    "up": lambda packed: add(packed, "../victim"),
    "up from below": lambda packed: add(packed, "a/../../victim"),
    "absolute": lambda packed: add(packed, "/tmp/victim"),
    "a folder above": lambda packed: add(packed, "../victim", type=tarfile.DIRTYPE),
    "a backslash": lambda packed: add(packed, "..\\victim"),
    "too deep": lambda packed: add(packed, "a/" * 40 + "b"),
    "no name": lambda packed: add(packed, "."),
}


@pytest.mark.parametrize("members", MEMBERS.values(), ids=MEMBERS.keys())
def test_members_that_lead_outside_or_are_no_files(tmp_path: Path, members: Callable[[tarfile.TarFile], None]) -> None:
    with tarfile.open(tmp_path / "it.tar", "w") as packed:
        members(packed)
    assert "its member" in refused(tmp_path / "it.tar")


@pytest.mark.parametrize("names", [["a", "a"], ["a", "a/b"], ["a/b", "a"]])
@pytest.mark.parametrize("ending", [".tar", ".zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_in_the_place_of_another(tmp_path: Path, names: list[str], ending: str) -> None:
    archive = tmp_path / f"it{ending}"
    with zipfile.ZipFile(archive, "w") if ending == ".zip" else tarfile.open(archive, "w") as packed:
        for name in names:
            packed.writestr(name, b"x") if isinstance(packed, zipfile.ZipFile) else add(packed, name, b"x")
    assert refused(archive)


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        ("0.1", {"GNU.sparse.map": "0,1", "GNU.sparse.size": "99999999999"}),
        ("0.0", {"GNU.sparse.numblocks": "1", "GNU.sparse.size": "99999999999"}),
        ("1.0", {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999999"}),
    ],
)
def test_a_sparse_file(tmp_path: Path, version: str, headers: dict[str, str]) -> None:
    with tarfile.open(tmp_path / "it.tar", "w") as packed:
        add(packed, "a", b"1\n0\n1\n", pax_headers=headers)
    assert "its member" in refused(tmp_path / "it.tar")


@pytest.mark.parametrize("ending", ENDINGS[1:])
def test_a_bomb(tmp_path: Path, ending: str) -> None:
    archive = pack(tmp_path / f"it{ending}", {"a": bytes(25_000_000)})
    assert archive.stat().st_size < 40_000
    assert "unpacks to more than 16777216 bytes ([s3.archives] max_ratio)" in refused(archive)


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".zip"])
def test_bounds_of_files(tmp_path: Path, ending: str) -> None:
    archive = pack(tmp_path / f"it{ending}", {str(at): os.urandom(10_000) for at in range(10)})
    for limits, said in (
        ({"max_bytes": 50_000}, "more than 50000 bytes ([s3.archives] max_bytes)"),
        ({"max_file_bytes": 9_999}, "'0' has more than 9999 bytes ([s3.archives] max_file_bytes)"),
        ({"max_files": 9}, "more than 9 files ([s3.archives] max_files)"),
    ):
        assert said in refused(archive, **limits)
        shutil.rmtree(tmp_path / "folder")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_would_be_read_as_a_whole(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "it.tar", "w") as packed:
        add(packed, "h", bytes(100_000), type=kind)
    assert "a header of 100000 bytes" in refused(tmp_path / "it.tar")


def test_a_zip_with_a_link_and_one_that_asks_for_memory(tmp_path: Path) -> None:
    one = zipfile.ZipInfo("a")
    one.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as packed:
        packed.writestr(one, "/etc/passwd")
    assert "its member 'a' is a link" in refused(tmp_path / "it.zip")
    (tmp_path / "folder").rmdir()
    with zipfile.ZipFile(tmp_path / "it.zip", "w", zipfile.ZIP_LZMA) as packed:
        packed.writestr("a", b"x")
    assert "compressed in a way" in refused(tmp_path / "it.zip")


def test_a_directory_of_a_zip_that_would_be_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_MAX_DIRECTORY_BYTES", 70_000)
    archive = pack(tmp_path / "it.zip", {f"{at:060}": b"" for at in range(1_000)})
    assert "its directory has" in refused(archive)


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_archives(tmp_path: Path, ending: str) -> None:
    """Cut anywhere, and with any bytes changed: an ArchiveError, or files below the folder, and nothing else."""
    whole = pack(tmp_path / f"it{ending}", {"config.json": b"{}" * 400, "a/b": os.urandom(600)}).read_bytes()
    chance = random.Random(ending)
    damaged = [whole[: chance.randrange(len(whole))] for _ in range(60)]
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 4, 30))):
            data[chance.randrange(min(len(data), chance.choice((600, len(data)))))] = chance.choice(
                (0, 255, 46, 47, 50)
            )
        damaged.append(bytes(data))
    outcomes = set()
    for number, data in enumerate(damaged):
        place = tmp_path / "p" / str(number)
        (place / "folder").mkdir(parents=True)
        (place / f"it{ending}").write_bytes(data)
        try:
            unpack(place / f"it{ending}", place / "folder", ArchiveSettings())
        except ArchiveError:
            outcomes.add("refused")
        else:
            outcomes.add("unpacked")
        assert sorted(os.listdir(place)) == ["folder", f"it{ending}"]
    assert "refused" in outcomes
