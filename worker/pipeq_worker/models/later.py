"""LATER: modules that are imported at first use, because torch and transformers take seconds to import."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Later:
    """Stands for a module. Reading an attribute imports the module, and returns the module's attribute.

    Use it beside an import of the same name under ``TYPE_CHECKING``, which editors and mypy follow.
    """

    def __init__(self, module: str) -> None:
        self.module_name = module

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.module_name), name)
