"""The documents for developers name only things that exist: files, links, threads, targets of make."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import picture

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md"))
    if "schemas" not in path.parts
)
#: The first folders of paths in backticks in these documents.
TOP = "producers|worker|tests|tools|docs|deploy|examples|benchmarks|\\.github|\\.ci"
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORKER = ROOT / "worker/pipeq_worker"


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page: str) -> None:
    for named in re.findall(rf"`((?:{TOP})/[\w./-]+)`", text(page)):
        assert (ROOT / named).exists(), named


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#\s]+)\)", text(page)):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_that_a_page_names_are_there(page: str) -> None:
    named = re.findall(r"`make ([a-z]+)", text(page))
    assert set(named) <= TARGETS


def started() -> Iterator[tuple[str, str]]:
    """Each thread that the worker starts, by its name, and the file that starts it."""
    for path in WORKER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            made = ast.unparse(node.func).rpartition(".")[2]
            # For a pool, the prefix of its threads' names.
            name = [one.value for one in node.keywords if one.arg == "name"] if made == "Thread" else node.args[1:2]
            if made in ("Thread", "ThreadPoolExecutor", "Threads", "Readers"):
                assert name, f"{path}:{node.lineno}: a thread without a name"
                yield re.sub(r"^f?'(.*)'$", r"\1", ast.unparse(name[0])), path.relative_to(ROOT).as_posix()


def test_every_thread_of_a_worker_is_in_the_table() -> None:
    table = dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", text("docs/architecture.md"), re.MULTILINE))
    found = {
        name.replace("{name}", "<pipeline>"): path
        for name, path in started()
        # The threads of a lane, which are named where the lane is made.
        if "_name" not in name
    }
    assert found == table


def test_the_picture_is_of_these_districts() -> None:
    assert picture.districts().keys() == picture.LOOKS.keys()
    assert text("docs/architecture.svg") == picture.svg(), "run `make docs`"
