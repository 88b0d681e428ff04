"""The house: which way imports go, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Of `producers`, the worker sees the contract, and how to connect to Redis.
CONTRACT = {"message", "queues", "status", "errors", "redis_url", "shown", "reading"}


def modules() -> dict[str, Path]:
    files = [*(ROOT / "producers").rglob("*.py"), *(ROOT / "worker").rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(path: Path) -> set[str]:
    """What a module imports anywhere, under TYPE_CHECKING and inside functions, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_producers_never_import_the_worker() -> None:
    for name, path in modules().items():
        if name.startswith("producers"):
            assert not {one for one in imports(path) if one.split(".")[0] == "worker"}, name


def test_the_worker_imports_only_the_contract_of_producers() -> None:
    for name, path in modules().items():
        if name.startswith("worker"):
            parts = {one.split(".")[1] for one in imports(path) if one.startswith("producers.")}
            assert parts - {"*"} <= CONTRACT, name


def test_no_import_cycle() -> None:
    known = modules()
    graph = {name: imports(path) & known.keys() - {name} for name, path in known.items()}
    # The package itself re-exports lazily.
    graph["producers"] = set()
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("statement", ["import producers", "import producers.client", "import producers.cli"])
def test_importing_producers_loads_nothing_heavy(statement: str) -> None:
    heavy = "torch transformers celery fastapi numpy boto3 av PIL"
    code = f"{statement}, sys; print([name for name in {heavy.split()} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_modules_say_what_they_are() -> None:
    for name, path in modules().items():
        assert ast.get_docstring(ast.parse(path.read_text())), name
