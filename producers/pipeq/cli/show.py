"""Shows things to people: a task's status, the table of queues, a late progress bar."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from threading import Lock, Timer
from typing import TYPE_CHECKING, Any, Self

from pipeq.contract import shown
from pipeq.contract.status import State, TaskStatus
from pipeq.queue_info import QueueInfo
from pipeq.terminal import is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

#: A progress bar appears after a wait of this many seconds.
PROGRESS_AFTER_S = 2.0
#: Most characters of a result that a status shows; ``pipeq result`` prints all of it.
RESULT_CHARS = 200
#: Most characters of an error's message that a status shows.
ERROR_CHARS = 2000
#: Characters that JSON allows in a text but that control a terminal, or change the direction of text; and lone
#: surrogates.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def as_json(value: Any) -> str:
    """One line of JSON for any script: NaN becomes null, and characters that control a terminal are escaped."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(value), ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda match: json.dumps(match[0])[1:-1], text)


def status_json(status: TaskStatus) -> str:
    """A task's status as one line of JSON."""
    return as_json(status.model_dump(mode="json"))


def status_block(status: TaskStatus) -> str:
    """A task's status for people: its id and state, then a line for each known field."""
    head = f"{shown.line(status.id)}  {status.state}"
    return "\n".join([head, *(f"  {name:<10} {text}" for name, text in _lines(status))])


def history_lines(status: TaskStatus) -> Iterator[str]:
    """A line for each try of a task: when, where and how long, and how it ended."""
    for number, one in enumerate(status.history, start=max(1, status.attempts - len(status.history) + 1)):
        at = one.started_at if one.started_at is not None else one.ended_at
        when = "-" if at is None else datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds")
        took = "" if one.started_at is None or one.ended_at is None else f"  {one.ended_at - one.started_at:.3g} s"
        stage = "" if one.stage is None or one.code is None else f" in {one.stage}"
        ended = "runs" if not status.is_final and one is status.history[-1] and one.code is None else "done"
        said = ended if one.code is None else f"{one.code}{stage}" + (f": {one.message}" if one.message else "")
        yield shown.line(f"try {number}  {when}  {one.worker or '-'}{took}  {said}", ERROR_CHARS)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return {name: _without_nan(item) for name, item in value.items()} if isinstance(value, dict) else value


def _lines(status: TaskStatus) -> Iterator[tuple[str, str]]:
    if status.pipeline is not None:
        yield "pipeline", shown.line(status.pipeline)
    times = {
        "submitted": status.submitted_at,
        "started": status.started_at,
        "finished": status.finished_at,
        "next try": status.due_at if status.state is State.RETRYING else None,
        "expires": status.expires_at,
    }
    for name, at in times.items():
        if at is not None:
            yield name, datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds")
    if status.attempts:
        yield "attempts", str(status.attempts)
    if status.worker is not None:
        yield "worker", shown.line(status.worker)
    if status.progress is not None:
        of = "" if status.progress.total is None else f" of {status.progress.total}"
        yield "progress", shown.line(f"{status.progress.done}{of} {status.progress.unit}")
    if status.model is not None:
        parts = (str(part) for part in status.model.model_dump().values() if part is not None)
        yield "model", shown.line(" ".join(parts))
    if status.batch is not None:
        yield "batch", f"{shown.count(status.batch.size, 'item')}, {status.batch.padding:.0%} padding"
    if status.timing_ms:
        yield "timing", shown.line(", ".join(f"{stage} {ms:.0f} ms" for stage, ms in status.timing_ms.items()))
    if status.error is not None:
        yield "error", shown.line(f"{status.error.code}: {status.error.message}", ERROR_CHARS)
    if status.result_uri is not None:
        yield "result", shown.uri(status.result_uri)
    elif status.result is not None:
        text = as_json(status.result)
        yield "result", text if len(text) <= RESULT_CHARS else f"{text[:RESULT_CHARS]}... (all: pipeq result)"


def print_queues(queues: Sequence[QueueInfo]) -> None:
    """Prints a table with a row for each pipeline, and then the workers that take no messages although they should."""
    titles = "pipeline,depth,waiting,oldest,in flight,running,to drain,workers,loading,dead,device time".split(",")
    rows, below = [], []
    for queue in queues:
        oldest, drain = (
            "-" if seconds is None else duration(seconds) for seconds in (queue.oldest_age_s, queue.drain_s)
        )
        name = shown.line(queue.pipeline)
        rows.append(
            [
                *(name, str(queue.depth), str(queue.waiting), oldest, str(queue.in_flight), str(queue.running), drain),
                *(str(queue.workers), str(queue.loading), str(queue.dead), _task_time(queue)),
            ]
        )
        if queue.depth and not queue.workers:
            loading = f"; {queue.loading} load it" if queue.loading else ""
            below.append(f"{name}: no worker takes its messages{loading}")
        for worker, reason in sorted(queue.deaf.items()):
            below.append(f"{name}: {shown.line(worker)} takes no messages: {shown.line(reason)}")
        for worker, how in sorted(queue.unlike.items()):
            below.append(f"{name}: {shown.line(worker)} serves another model: {shown.line(how, 1000)}")
    tell(table(titles, rows, right=range(1, len(titles))), below)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> Table:
    """A table without lines. Its cells are plain text; NO_COLOR leaves its titles without colour.

    Args:
        titles: of the columns.
        rows: of texts for each column.
        right: numbers of the columns that are aligned to the right.
    """
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=None)
    numbers = frozenset(right)
    for at, title in enumerate(titles):
        made.add_column(title, justify="right" if at in numbers else "left")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def tell(made: Table, below: Iterable[str]) -> None:
    """Prints a table, and lines below it."""
    from rich.console import Console

    # A pipe has no width, and 80 columns would cut names that a script searches for.
    console = Console(width=None if is_terminal(sys.stdout) else 200, highlight=False)
    console.print(made)
    for line in below:
        console.print(line, markup=False, soft_wrap=True)


def _task_time(queue: QueueInfo) -> str:
    """Device time of a task: the mean of the workers that have measured it."""
    times = [costs["task_s"] for costs in queue.costs.values() if "task_s" in costs]
    if not times:
        return "-"
    mean = sum(times) / len(times)
    return f"{mean:.1f} s" if mean >= 1 else f"{mean * 1000:.3g} ms"


def duration(seconds: float) -> str:
    """``95`` -> ``1 min 35 s``: the two largest units."""
    seconds = max(0, round(seconds))
    for size, unit, rest, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // rest} {small}"
    return f"{seconds} s"


class LateProgress:
    """A progress bar on stderr that appears only if something takes over 2 s, and only on a terminal.

    It owns one timer thread, which ends with the ``with`` block.

    Args:
        total: how many tasks there are; 0 if that is not known yet.
        title: what is done with them.
    """

    def __init__(self, total: int, title: str = "waiting") -> None:
        self._total = total
        self._title = title
        self._done = 0
        self._closed = False
        self._bar: Progress | None = None
        self._row: TaskID | None = None
        self._lock = Lock()
        self._timer = Timer(PROGRESS_AFTER_S, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if is_terminal(sys.stderr):
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.stop()

    def advance(self) -> None:
        """Counts one more task that has ended."""
        self.reach(self._done + 1, self._total)

    def reach(self, done: int, total: int) -> None:
        """Notes how many are done, and of how many."""
        with self._lock:
            self._done, self._total = done, total
            if self._bar is not None and self._row is not None:
                self._bar.update(self._row, completed=done, total=total or None)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        with self._lock:
            if self._closed:
                return
            self._bar = Progress(
                TextColumn(self._title),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
                # Results that go into a pipe must stay there; on the same terminal they are printed above the bar.
                redirect_stdout=is_terminal(sys.stdout),
            )
            self._row = self._bar.add_task(self._title, total=self._total or None, completed=self._done)
            self._bar.start()
