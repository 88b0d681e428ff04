"""Every row of the table leads to its classes, and reading the table imports none of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from pipeq_worker.models import task_type, task_types
from pipeq_worker.models.later import Later
from pipeq_worker.models.params.accepted import signature_names
from pipeq_worker.models.quirks.base import Quirks
from pipeq_worker.models.signatures import pipeline_class
from pipeq_worker.models.task_types import TASK_TYPES

WITH_MODEL = sorted(name for name, row in TASK_TYPES.items() if row.has_model)


@pytest.mark.parametrize("name", sorted(TASK_TYPES))
def test_a_row_leads_to_its_quirks(name: str) -> None:
    found = TASK_TYPES[name].quirks()
    assert issubclass(found, Quirks)
    assert found is Quirks or found.__doc__ != Quirks.__doc__


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_row_leads_to_its_pipeline(name: str) -> None:
    found = pipeline_class(TASK_TYPES[name])
    assert issubclass(found, transformers.Pipeline)
    assert signature_names(found) is not None
    ours = TASK_TYPES[name].own
    assert (ours is None) == (found.__module__.split(".")[0] == "transformers")
    if ours is not None:
        assert ours.pipeline() is found
        # The auto class by which transformers finds a checkpoint's class.
        assert ours.model()._model_mapping._model_mapping
        model, revision = ours.default
        assert "/" in model
        assert revision


def test_each_class_of_quirks_has_a_row() -> None:
    """A class that no row names would never be used."""
    named = {row.quirks() for row in TASK_TYPES.values()}
    named |= {base for one in named for base in one.__mro__}
    modules = task_types.quirks
    for module in (modules.audio, modules.multimodal, modules.text, modules.vision):
        for one in vars(module).values():
            if isinstance(one, type) and issubclass(one, Quirks):
                assert one in named, one


@pytest.mark.parametrize("module", [task_type, task_types], ids=lambda module: module.__name__)
def test_what_is_imported_later_is_what_an_editor_follows(module: ModuleType) -> None:
    """The names under TYPE_CHECKING and those that are bound when the module runs are the same modules."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    (checked,) = (one for one in tree.body if isinstance(one, ast.If) and ast.unparse(one.test) == "TYPE_CHECKING")
    followed: dict[str, str] = {}
    for node in checked.body:
        if isinstance(node, ast.Import):
            followed |= {alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            followed |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    later = {name: one.module_name for name, one in vars(module).items() if isinstance(one, Later)}
    assert later
    assert later.items() <= followed.items()
    # Names that only annotations use need no module at run time.
    used = {one.id for one in ast.walk(tree) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}
    assert followed.keys() & used - later.keys() <= {"transformers"}


def test_reading_the_table_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from pipeq_worker.models.task_types import TASK_TYPES; from pipeq_worker.models import loading; "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
