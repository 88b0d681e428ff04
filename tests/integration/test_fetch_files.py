"""FETCH from a real disk, links and devices included."""

from __future__ import annotations

import os
import socket
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pipeq.contract.errors import ErrorCode
from pipeq.contract.message import Ref
from pipeq_worker.settings.sections import InputSettings, S3Settings
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stores.disk import open_below

from tests.integration.fetching import Budget, failure


def open_files() -> Counter[str]:
    """What this process has open. Garbage of earlier tests may be closed at any moment."""
    found: Counter[str] = Counter()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile, such as the folder's own
            found[os.readlink(f"/proc/self/fd/{descriptor}")] += 1
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def files(root: Path) -> Iterator[Fetcher]:
    fetcher = Fetcher(InputSettings(allow=(f"file://{root}/",), max_bytes=1000), S3Settings())
    before = open_files()
    yield fetcher
    assert not open_files() - before
    fetcher.close()


def test_a_file(files: Fetcher, root: Path) -> None:
    (root / "a b").mkdir()
    (root / "a b" / "c#d?e.txt").write_bytes(b"text")
    budget = Budget()
    assert files.fetch(Ref.from_path(root / "a b" / "c#d?e.txt"), budget) == b"text"
    assert files.fetch(Ref(f"file://{root}/a b/c#d?e.txt"), budget) == b"text"
    assert budget.sizes == [4, 4]


def test_a_folder_that_may_be_searched_but_not_read(files: Fetcher, root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "b").write_bytes(b"text")
    (root / "a").chmod(stat.S_IXUSR)
    try:
        assert files.fetch(Ref(f"file://{root}/a/b")) == b"text"
    finally:
        (root / "a").chmod(stat.S_IRWXU)


def test_missing_files(files: Fetcher, root: Path) -> None:
    (root / "file").touch()
    (root / "folder").mkdir()
    for path in ("missing", "missing/a", "file/a", "folder", "folder/", "", "a" * 300):
        error = failure(files, Ref(f"file://{root}/{path}"))
        assert (error.code, error.retryable) == (ErrorCode.INPUT_NOT_FOUND, False), path


def test_files_outside_the_roots(files: Fetcher, root: Path) -> None:
    secret = root.parent / "secret"
    secret.write_bytes(b"secret")
    (root / "link").symlink_to(secret)
    (root / "up").symlink_to("..")
    for path in ("../secret", "%2e%2e/secret", "link", "up/secret", "..%2fsecret", "../missing"):
        error = failure(files, Ref(f"file://{root}/{path}"))
        assert error.code == ErrorCode.INPUT_FORBIDDEN, path
        assert "[inputs] allow" in error.message
    assert failure(files, Ref("file:///etc/passwd")).code == ErrorCode.INPUT_FORBIDDEN


def test_links_inside_a_root(files: Fetcher, root: Path) -> None:
    (root / "file").write_bytes(b"text")
    (root / "link").symlink_to("file")
    (root / "loop").symlink_to("loop")
    assert files.fetch(Ref(f"file://{root}/link")) == b"text"
    assert failure(files, Ref(f"file://{root}/loop")).code == ErrorCode.INPUT_FORBIDDEN


def test_a_link_that_appears_after_the_check_is_not_followed(root: Path) -> None:
    secret = root.parent / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    (root / "folder").symlink_to(secret)
    (root / "file").symlink_to(secret / "file")
    for path in ("folder/file", "file"):
        with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
            open_below(str(root), path)


def test_what_is_no_file(files: Fetcher, root: Path) -> None:
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
        for path in ("pipe", "socket"):
            error = failure(files, Ref(f"file://{root}/{path}"))
            assert error.code == ErrorCode.INPUT_FORBIDDEN
            assert "a device, a pipe or a socket" in error.message


def test_devices() -> None:
    fetcher = Fetcher(InputSettings(allow=("file:///dev/",)), S3Settings())
    assert failure(fetcher, Ref("file:///dev/zero")).code == ErrorCode.INPUT_FORBIDDEN
    fetcher.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_the_worker_may_not_read(files: Fetcher, root: Path) -> None:
    (root / "file").touch(mode=0)
    error = failure(files, Ref(f"file://{root}/file"))
    assert (error.code, error.retryable) == (ErrorCode.INPUT_FORBIDDEN, False)


def test_a_file_beyond_the_limit(files: Fetcher, root: Path) -> None:
    (root / "fits").write_bytes(bytes(1000))
    (root / "large").write_bytes(bytes(1001))
    assert len(files.fetch(Ref(f"file://{root}/fits"))) == 1000
    assert failure(files, Ref(f"file://{root}/large")).code == ErrorCode.INPUT_TOO_LARGE


@pytest.mark.parametrize(("size", "code"), [(11, ErrorCode.INPUT_UNAVAILABLE), (2000, ErrorCode.INPUT_TOO_LARGE)])
def test_a_file_that_grows_while_it_is_read(files: Fetcher, root: Path, size: int, code: str) -> None:
    file = root / "growing"
    file.write_bytes(bytes(10))
    assert failure(files, Ref(f"file://{root}/growing"), lambda _: os.truncate(file, size)).code == code
