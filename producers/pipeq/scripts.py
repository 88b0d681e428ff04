"""SCRIPTS: the text of the Lua scripts beside this module, which only operators run. Used by dead and retire."""

from __future__ import annotations

from functools import cache
from importlib import resources

from pipeq.contract import events, job, record


@cache
def source(name: str) -> str:
    """Returns the text of ``<name>.lua``, below the lines that set the names that it shares with Python."""
    head = record.LUA + events.LUA + job.lua()
    return head + (resources.files(__package__) / f"{name}.lua").read_text(encoding="utf-8")
