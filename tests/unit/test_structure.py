"""The structure: which way imports go, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.scheduling import shares

ROOT = Path(__file__).parents[2]
PACKAGES = {"pipeq": ROOT / "producers/pipeq", "pipeq_worker": ROOT / "worker/pipeq_worker"}
#: The districts of the worker: each may import those before it, and none after it.
#: From the bottom to the top.
DISTRICTS = (
    "settings observe media stores models schedule stages children leases delivery host broker process doctor".split()
)
#: Districts before it that a district may nevertheless not import.
APART = {
    "media": {"observe"},
    "stores": {"media"},
    "models": {"observe"},
    "schedule": {"media", "stores", "observe"},
    "leases": {"media", "stores", "models", "schedule", "stages", "children"},
}
#: For each folder of ``pipeq``: the other folders that it may import. "" stands for the files at the top.
PRODUCERS = {
    "contract": set[str](),
    "jobs": {"", "contract"},
    "": {"contract", "jobs"},
    "cli": {"", "contract", "jobs"},
    "demo": {"", "contract", "jobs"},
}


@cache
def modules() -> dict[str, Path]:
    return {
        ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*.py")
    }


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules that a module imports, also under TYPE_CHECKING and inside functions."""
    found = set[str]()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def district(name: str) -> str:
    """The folder of a module below its package; empty for the files at the package's top."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGES[parts[0]] / parts[1]).is_dir() else ""


def ours(path: Path) -> set[str]:
    known = modules()
    return {one for one in imports(path) if one in known}


def test_pipeq_never_imports_the_worker() -> None:
    for name, path in modules().items():
        if name.split(".")[0] == "pipeq":
            assert not {one for one in imports(path) if one.split(".")[0] == "pipeq_worker"}, name


def test_the_worker_imports_only_the_contract_of_pipeq() -> None:
    for name, path in modules().items():
        if name.split(".")[0] == "pipeq_worker":
            parts = {".".join(one.split(".")[:2]) for one in imports(path) if one.split(".")[0] == "pipeq"}
            assert parts <= {"pipeq.contract"}, name


def test_every_district_has_its_place_and_says_what_lives_there() -> None:
    folders = {path.name for path in PACKAGES["pipeq_worker"].iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(DISTRICTS)
    # What all modules import, and what imports all modules, are districts, too.
    # The package's own file holds the names in Celery's settings.
    assert [path.name for path in PACKAGES["pipeq_worker"].glob("*.py")] == ["__init__.py"]
    for folder in folders:
        assert ast.get_docstring(ast.parse((PACKAGES["pipeq_worker"] / folder / "__init__.py").read_text())), folder


@pytest.mark.parametrize("folder", DISTRICTS)
def test_no_arrow_runs_up_between_districts(folder: str) -> None:
    below = set(DISTRICTS[: DISTRICTS.index(folder) + 1]) - APART.get(folder, set())
    for name, path in modules().items():
        if name.split(".")[0] == "pipeq_worker" and district(name) == folder:
            found = {district(one) for one in ours(path) if one.startswith("pipeq_worker.")}
            assert found <= below, f"{name} imports {sorted(found - below)}"


def test_the_stages_know_nothing_of_celery_redis_leases_and_records() -> None:
    for name, path in modules().items():
        if name.split(".")[0] == "pipeq_worker" and district(name) == "stages":
            assert not {one.split(".")[0] for one in imports(path)} & {"celery", "kombu", "redis"}, name


def test_folders_of_pipeq() -> None:
    for name, path in modules().items():
        # `python -m pipeq`, and the public names of the package.
        if name.split(".")[0] == "pipeq" and name not in ("pipeq", "pipeq.__main__"):
            mine = district(name)
            found = {district(one) for one in ours(path) if one.startswith("pipeq.")} - {mine}
            assert found <= PRODUCERS[mine], f"{name} imports {sorted(found)}"


def test_no_import_cycle() -> None:
    known = modules()
    graph = {name: imports(path) & known.keys() - {name} for name, path in known.items()}
    # The package itself re-exports lazily.
    graph["pipeq"] = set()
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("statement", ["import pipeq", "import pipeq.client", "import pipeq.cli"])
def test_importing_pipeq_loads_nothing_heavy(statement: str) -> None:
    heavy = "torch transformers celery fastapi numpy boto3 av PIL"
    code = f"{statement}, sys; print([name for name in {heavy.split()} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_modules_say_what_they_are() -> None:
    for name, path in modules().items():
        assert ast.get_docstring(tree(path)), name


def test_no_hidden_globals() -> None:
    """No module rebinds its own names while it runs, or checks whether an object has an attribute yet."""
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            assert not isinstance(node, ast.Global), f"{name}: {ast.unparse(node)}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
                whose = ast.unparse(node.args[0]).split(".")[-1]
                assert whose not in ("self", "app"), f"{name}: {ast.unparse(node)}"


def test_the_leases_are_told_once_whom_to_call() -> None:
    callbacks = {"on_lost", "on_stalled", "on_unusable"}
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and name.startswith("pipeq_worker.broker"):
                attributes = [one for one in ast.walk(node) if isinstance(one, ast.Attribute)]
                set_here = {one.attr for one in attributes if isinstance(one.ctx, ast.Store)}
                assert not set_here & callbacks or (name, node.name) == ("pipeq_worker.broker.consumer", "_listen")


def test_the_host_imports_no_torch() -> None:
    """What the process that holds the leases is made of; its children import torch."""
    host = "process.cli broker.app broker.pool broker.consumer broker.transport host.runtime host.seen delivery.backend"
    lines = [f"import pipeq_worker.{name}" for name in host.split()]
    heavy = "torch transformers av numpy"
    lines.append(f"import sys; print([name for name in {heavy.split()} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", "; ".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_child_imports_neither_broker_nor_torch() -> None:
    """Before it knows that it needs them: each import counts whenever a child dies, or is started again."""
    heavy = "kombu celery amqp redis boto3 torch transformers"
    lines = [
        # What Python itself has set when it imports the package, before the main module.
        "import sys; sys.orig_argv = [sys.executable, '-P', '-m', 'pipeq_worker.children.main']",
        "import pipeq_worker.children.main, pipeq_worker.children.child, pipeq_worker.models.constant_pipeline",
        f"print([name for name in {heavy.split()} if name in sys.modules])",
    ]
    done = subprocess.run([sys.executable, "-c", "; ".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_test_files_that_share_a_worker_run_in_one_process() -> None:
    """A process that ran one of them alone would start that worker once more."""
    for path in (ROOT / "tests/acceptance").glob("test_*.py"):
        assert ("service: Service" in path.read_text()) <= shares(str(path.relative_to(ROOT))), path.name
