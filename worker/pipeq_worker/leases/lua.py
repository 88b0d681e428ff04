"""The text of the Lua scripts in this folder."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def source(name: str) -> str:
    """Returns the text of ``<name>.lua``."""
    return (resources.files(__package__) / f"{name}.lua").read_text(encoding="utf-8")
