"""Draws ``docs/architecture.svg``: the districts of the worker and which imports which, as the imports themselves say.

An arrow that follows from two others is left out. Used by :mod:`tools.docs`; ``make docs`` runs it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "worker/pipeq_worker"
#: Width and height of a box, and the room to the next one, in pixels.
BOX, GAP = (92, 58), (24, 34)
MARGIN, TOP = 24, 64
#: Fill and stroke: of what a task runs through, of what that stands on, and of what stands above it.
PATH, BELOW, ABOVE = ("#fef3c7", "#f59e0b"), ("#e0f2fe", "#38bdf8"), ("#f3f4f6", "#9ca3af")
#: District -> its colours, and its second line.
LOOKS = {
    "settings": (BELOW, "pipelines.toml"),
    "observe": (BELOW, "log, listeners"),
    "media": (BELOW, "decoding"),
    "stores": (BELOW, "files, objects"),
    "models": (BELOW, "pipelines"),
    "leases": (PATH, "messages held"),
    "schedule": (PATH, "what runs next"),
    "stages": (PATH, "fetch to finish"),
    "children": (PATH, "processes"),
    "delivery": (PATH, "results, acks"),
    "broker": (PATH, "Celery's side"),
    "host": (ABOVE, "a process"),
    "process": (ABOVE, "pipeq worker"),
    "doctor": (ABOVE, "pipeq doctor"),
}
_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    ' font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img"'
    ' aria-label="The districts of pipeq_worker and which imports which">\n'
    '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L10 5L0 10z" fill="#6b7280"/></marker></defs>\n'
    '<rect width="{width}" height="{height}" rx="12" fill="#ffffff"/>\n'
)

Graph = Mapping[str, set[str]]


def districts() -> Graph:
    """District -> the districts that its modules import, anywhere, under TYPE_CHECKING and inside functions, too."""
    names = {path.parent.name for path in WORKER.glob("*/__init__.py")}
    found: dict[str, set[str]] = {name: set() for name in sorted(names)}
    for name in found:
        for path in (WORKER / name).rglob("*.py"):
            found[name] |= {one for one in _imported(path) if one in names and one != name}
    return found


def _imported(path: Path) -> Iterator[str]:
    """The districts that a module names, and other words that are none."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == WORKER.name:
                yield from parts[1:2] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == WORKER.name:
                    yield from parts[1:2]


def below(graph: Graph, name: str) -> set[str]:
    """All that a district imports, over others, too. The graph has no circle: a test sees to that."""
    return {one for direct in graph[name] for one in (direct, *below(graph, direct))}


def arrows(graph: Graph) -> list[tuple[str, str]]:
    """The imports that do not follow from others."""
    return [
        (name, one)
        for name in graph
        for one in sorted(graph[name])
        if not any(one in below(graph, other) for other in graph[name] - {one})
    ]


def svg() -> str:
    """The picture."""
    graph = districts()
    level: dict[str, int] = {}
    for name in sorted(graph, key=lambda one: len(below(graph, one))):
        level[name] = max((level[one] + 1 for one in graph[name]), default=0)
    columns = [sorted(name for name in graph if level[name] == at) for at in range(max(level.values()) + 1)]
    rows = max(len(column) for column in columns)
    width = 2 * MARGIN + len(columns) * (BOX[0] + GAP[0]) - GAP[0]
    bottom = TOP + rows * (BOX[1] + GAP[1])
    height = bottom + BOX[1] + MARGIN
    at: dict[str, tuple[float, float]] = {}
    for x, column in enumerate(columns):
        first = TOP + (rows - len(column)) * (BOX[1] + GAP[1]) / 2
        for y, name in enumerate(column):
            at[name] = (MARGIN + x * (BOX[0] + GAP[0]), first + y * (BOX[1] + GAP[1]))
    lines = [_arrow(at[name], at[one]) for name, one in arrows(graph)]
    boxes = [_box(name, at[name]) for name in graph]
    return "\n".join(
        [
            _HEAD.format(width=width, height=height)
            + _text(
                MARGIN, 30, "pipeq_worker: an arrow points from a district to one that it imports", "start", bold=True
            ),
            _text(
                MARGIN, 48, "yellow: what a task runs through; blue: what that stands on; grey: what runs it", "start"
            ),
            *lines,
            *boxes,
            f'<rect x="{MARGIN}" y="{bottom}" width="{width - 2 * MARGIN}" height="{BOX[1] - 14}" rx="9" '
            'fill="#dcfce7" stroke="#4ade80" stroke-width="1.5"/>',
            _text(width / 2, bottom + 27, "pipeq.contract: all that the worker imports of pipeq", bold=True),
            "</svg>",
            "",
        ]
    )


def _box(name: str, at: tuple[float, float]) -> str:
    (fill, stroke), words = LOOKS.get(name, (ABOVE, ""))
    x, y = at
    return "\n".join(
        [
            f'<rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="9" fill="{fill}" stroke="{stroke}" '
            'stroke-width="1.5"/>',
            _text(x + BOX[0] / 2, y + 26, name, bold=True),
            _text(x + BOX[0] / 2, y + 44, words),
        ]
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From a box to the right side of one that lies left of it: over those between them."""
    to_x, to_y = end[0] + BOX[0] + 2, end[1] + BOX[1] / 2
    x, y = start[0], start[1] + BOX[1] / 2
    bend_x, bend_y = x - GAP[0] / 2, y
    if x - to_x > BOX[0]:
        x, y = start[0] + BOX[0] / 2, start[1]
        bend_x, bend_y = x, to_y
    return (
        f'<path d="M{x:g} {y:g}C{bend_x:g} {bend_y:g} {to_x + GAP[0]:g} {to_y:g} {to_x:g} {to_y:g}" fill="none" '
        'stroke="#6b7280" stroke-width="1.5" marker-end="url(#a)"/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", bold: bool = False) -> str:
    style = 'font-size="14" font-weight="600" fill="#1f2937"' if bold else 'font-size="12" fill="#6b7280"'
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {style}>{text}</text>'
