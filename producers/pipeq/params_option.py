"""PARAMS OPTION: the JSON of ``--params`` -> parameters; what is no JSON object is answered with what to write instead.

For all commands that have ``--params``.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import click


def parse_params(_: click.Context, __: click.Parameter, text: str) -> dict[str, Any]:
    """Reads the option."""
    try:
        params = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"no JSON: {error}" if isinstance(error, ValueError) else "nested too deep"
        raise click.BadParameter(f"{reason}; {_write_params(text)}") from error
    if not isinstance(params, dict):
        raise click.BadParameter(f"not a JSON object; {_write_params(text)}")
    return params


def _write_params(text: str) -> str:
    """Suggests what to write instead of ``top_k=2``, or of anything else."""
    assigned = re.fullmatch(r"\s*-*(\w+)\s*[=:]\s*(.{1,100})", text)
    if assigned is None:
        return """write one object, as in --params '{"top_k": 2}'"""
    try:
        value = json.loads(assigned[2])
    except (ValueError, RecursionError):
        value = {"True": True, "False": False, "None": None}.get(assigned[2], assigned[2])
    return f"write --params {shlex.quote(json.dumps({assigned[1]: value}, ensure_ascii=False))}"
