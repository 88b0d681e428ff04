"""Makes the table and the plot of README.md from the results that were kept (``--save``)."""

from __future__ import annotations

import statistics
from html import escape
from pathlib import Path

from benchmarks.report import GPU_RESULTS, RESULTS, Ratio, Result

PAGE = Path(__file__).parent / "README.md"
PLOT = Path(__file__).parent / "results.svg"
BEGIN, END = "<!-- results: made by `python -m benchmarks --save` -->\n", "<!-- results end -->\n"
GPU_BEGIN = "<!-- results on a GPU: made by `python -m benchmarks --save --device cuda:0` -->\n"
GPU_END = "<!-- results on a GPU end -->\n"
#: Width of the plot and of the part where its bars are, height of a row, in pixels; and where its axis ends.
WIDTH, LEFT, ROW, MOST = 900, 470, 26, 2.0
GOOD, BAD, INK = "#2f7d4f", "#b8452f", "#444444"


def results(folder: Path | None = None) -> list[Result]:
    """The results that were kept, by letter."""
    return [Result.load(path) for path in sorted((folder or RESULTS).glob("*.json"))]


def write() -> None:
    """Writes the table into README.md, and the plot."""
    PAGE.write_text(page(), encoding="utf-8")
    PLOT.write_text(plot(), encoding="utf-8")


def page() -> str:
    """The whole page, with its table made anew."""
    text = PAGE.read_text(encoding="utf-8")
    for begin, end, folder in ((BEGIN, END, RESULTS), (GPU_BEGIN, GPU_END, GPU_RESULTS)):
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}{_table(results(folder))}{end}{after}"
    return text


def _table(found: list[Result]) -> str:
    if not found:
        return "No results have been kept yet.\n"
    lines = [
        "| | benchmark | figure | median | min to max | wanted | met |",
        "| --- | --- | --- | ---: | --- | --- | --- |",
    ]
    for result in found:
        for at, ratio in enumerate(result.ratios):
            cells = [
                f"({result.letter})" if not at else "",
                result.title if not at else "",
                ratio.name,
                f"{_number(ratio.median)}{ratio.unit}",
                f"{_number(min(ratio.values))} to {_number(max(ratio.values))}",
                f"{ratio.wanted}{ratio.unit}" if ratio.wanted else "",
                ("yes" if ratio.is_met else "no") if ratio.wanted else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "What was measured, medians of all rounds:", ""]
    for result in found:
        arms = "; ".join(f"{name} {_number(statistics.median(values))}" for name, values in result.arms.items())
        where = ", ".join(f"{name} {value}" for name, value in result.machine.items())
        lines.append(f"- ({result.letter}) {arms} ({result.unit}). {result.notes} Machine: {where}.")
    return "\n".join(lines) + "\n"


def plot() -> str:
    """An SVG: for each figure with a bound a bar of its median, a line from least to most, and a line at the bound."""
    rows = [(result, ratio) for result in results() for ratio in result.ratios if _at(ratio, ratio.median) is not None]
    height = ROW * (len(rows) + 2)
    body = "".join(_row(number, result, ratio) for number, (result, ratio) in enumerate(rows))
    line = _x(1.0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="13">\n<rect width="{WIDTH}" height="{height}" fill="white"/>\n'
        f'<text x="{line + 6:.0f}" y="16" fill="{INK}">as wanted, and better to the right</text>\n{body}'
        f'<line x1="{line:.0f}" y1="6" x2="{line:.0f}" y2="{height - ROW / 2:.0f}" stroke="{INK}" '
        'stroke-dasharray="4 3"/>\n</svg>\n'
    )


def _row(number: int, result: Result, ratio: Ratio) -> str:
    y, colour = ROW * (number + 1) + 2, GOOD if ratio.is_met else BAD
    least, most = sorted(_at(ratio, one) or 0.0 for one in (min(ratio.values), max(ratio.values)))
    label = f"({result.letter}) {ratio.name}: {_number(ratio.median)}{ratio.unit}, wanted {ratio.wanted}{ratio.unit}"
    middle = y + ROW / 2 - 2
    return (
        f'<text x="8" y="{middle + 4:.0f}" fill="{INK}">{escape(label)}</text>\n'
        f'<rect x="{LEFT}" y="{y}" width="{_x(_at(ratio, ratio.median) or 0.0) - LEFT:.1f}" height="{ROW - 6}" '
        f'fill="{colour}" fill-opacity="0.75"/>\n'
        f'<line x1="{_x(least):.1f}" y1="{middle:.0f}" x2="{_x(most):.1f}" y2="{middle:.0f}" stroke="{INK}"/>\n'
    )


def _at(ratio: Ratio, value: float) -> float | None:
    """A value against what is wanted: 1 is as wanted, more is better. None where that cannot be said."""
    if not ratio.wanted:
        return None
    sign, bound = ratio.wanted.split()
    if not float(bound):
        return None
    if sign == ">=":
        return value / float(bound)
    return float(bound) / value if value > 0 else MOST


def _x(at: float) -> float:
    return LEFT + min(max(at, 0.0), MOST) / MOST * (WIDTH - LEFT - 20)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
