"""Writes the tables of ``docs/record.md`` and ``docs/dead-letters.md`` from the dataclasses that are the contract.

What a field says is in its ``#:`` lines.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pipeq.contract.dead_letter import Letter
from pipeq.contract.record import Mark, Part, Record
from pipeq.contract.status import BatchInfo, ErrorInfo, ModelInfo, Progress

PAGE = Path(__file__).parents[1] / "docs/record.md"
LETTERS_PAGE = PAGE.with_name("dead-letters.md")
#: What JSON has for each annotation.
JSON_TYPES = {
    "str": "text",
    "int": "integer",
    "float": "number",
    "Finite": "number",
    "bool": "true or false",
    "Any": "any JSON",
    "list[Any]": "list",
    "dict[str, Any]": "object",
    "dict[str, float]": "object of numbers",
    "BatchInfo": "object",
    "ModelInfo": "object",
    "PipeqError": "object",
    "Progress": "object",
}
#: Fields that are objects, and what is in them.
NESTED = {"error": ErrorInfo, "batch": BatchInfo, "model": ModelInfo, "progress": Progress}


def page() -> str:
    """The whole page on records, with its tables made anew."""
    tables = {"record": rows_of(Record, " or null"), "pipeq": _with_parts(Part), "mark": _with_parts(Mark)}
    return _renewed(PAGE, tables)


def letters_page() -> str:
    """The whole page on dead letters, with its table made anew."""
    return _renewed(LETTERS_PAGE, {"letter": rows_of(Letter, " or null")})


def _renewed(path: Path, tables: Mapping[str, Iterable[tuple[str, str, str]]]) -> str:
    text = path.read_text(encoding="utf-8")
    for name, rows in tables.items():
        begin, end = f"<!-- {name}: made by `make docs` -->\n", f"<!-- {name} end -->\n"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        table = "".join(f"| {' | '.join(row)} |\n" for row in [("field", "JSON", "what it says"), ("---",) * 3, *rows])
        text = f"{before}{begin}{table}{end}{after}"
    return text


def _with_parts(shape: type) -> Iterator[tuple[str, str, str]]:
    """The rows of a dataclass, each followed by those of the object in it."""
    for name, kind, says in rows_of(shape):
        yield name, kind, says
        inner = NESTED.get(name.strip("`"))
        for below, its_kind, its_says in rows_of(inner, " or null") if inner else ():
            yield f"`{name.strip('`')}.{below.strip('`')}`", its_kind, its_says


def rows_of(shape: type, nothing: str = "") -> Iterator[tuple[str, str, str]]:
    """Name, JSON type and ``#:`` lines of each field; ``nothing`` is how a field without a value is written."""
    source = textwrap.dedent(inspect.getsource(shape))
    lines = source.splitlines()
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign):
            continue
        at, says = node.lineno - 2, list[str]()
        while lines[at].strip().startswith("#:"):
            says.insert(0, lines[at].strip().removeprefix("#:").strip())
            at -= 1
        kind, *other = ast.unparse(node.annotation).split(" | ")
        yield f"`{ast.unparse(node.target)}`", JSON_TYPES[kind] + (nothing if other else ""), _plain(" ".join(says))


def _plain(says: str) -> str:
    return re.sub(r":\w+:`[\w.]*?(\w+)`", r"`\1`", says).replace("``", "`")
