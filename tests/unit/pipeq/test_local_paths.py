"""Names with wildcards -> files, also where folders and files have wildcards in their own names."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeq.local_paths import is_pattern, matching

FILES = ("bil der [1]/a.png", "bil der [1]/b[2].png", "bil der [1]/ü/c.png", "bilder 1/d.png", "e*.png", "e1.png")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("bil der [1]/", ["bil der [1]/a.png", "bil der [1]/b[2].png"]),
        ("bil der [1]/*.png", ["bil der [1]/a.png", "bil der [1]/b[2].png"]),
        ("bil der [1]/*/*.png", ["bil der [1]/ü/c.png"]),
        ("bil*/*.png", ["bil der [1]/a.png", "bil der [1]/b[2].png", "bilder 1/d.png"]),
        ("bilder*/", ["bilder 1/d.png"]),
        ("**/[cd].png", ["bil der [1]/ü/c.png", "bilder 1/d.png"]),
        ("e*", ["e*.png", "e1.png"]),
        ("none/", []),
        ("none/*.png", []),
        ("none*/", []),
    ],
)
def test_what_is_there_counts_first(pattern: str, found: list[str]) -> None:
    assert matching(pattern) == found
    assert matching(str(Path.cwd() / pattern) + "/" * pattern.endswith("/")) == [str(Path.cwd() / one) for one in found]


def test_a_file_that_is_there_is_no_pattern() -> None:
    assert [is_pattern(name) for name in ("e*.png", "e?.png", "bil der [1]", "e1.png")] == [False, True, False, False]
