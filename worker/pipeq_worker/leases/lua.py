"""The text of the Lua scripts in this folder."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def source(name: str, head: str = "") -> str:
    """Returns the text of ``<name>.lua``, below the lines ``head``, which set the names that it shares with Python."""
    return head + (resources.files(__package__) / f"{name}.lua").read_text(encoding="utf-8")
