"""Writes the tables of ``docs/metrics.md`` from the catalogue of metrics."""

from __future__ import annotations

from pathlib import Path

from pipeq_worker.observe.catalogue import GROUPS

PAGE = Path(__file__).parents[1] / "docs/metrics.md"
BEGIN, END = "<!-- metrics: made by `make docs` -->\n", "<!-- metrics end -->\n"


def page() -> str:
    """The whole page, with its tables made anew."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{_tables()}{END}{after}"


def _tables() -> str:
    lines = []
    for group, metrics in GROUPS.items():
        lines += [f"### {group}", "", "| metric | kind | labels | what it says |", "| --- | --- | --- | --- |"]
        for one in metrics:
            labels = ", ".join(f"`{label}`" for label in one.labels)
            lines.append(f"| `{one.name}` | {one.kind} | {labels} | {one.says} |")
        lines.append("")
    return "\n".join(lines)
