"""Modules that are imported when something of them is first used: torch and transformers take seconds."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Later:
    """Stands for a module: any attribute of it imports the module, and is the module's own.

    To be used beside an import of the same name under ``TYPE_CHECKING``, which editors and mypy follow.
    """

    def __init__(self, module: str) -> None:
        self.module_name = module

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.module_name), name)
