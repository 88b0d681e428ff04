"""BOUNDS: refuses what one message would become, before it does. Used by preparation.

Each refusal names its setting. Bounds that need the value itself are elsewhere: bytes and pixels where they are decoded
(media/decoded.py), parameters in their table (models/params), tokens and scaled pixels where they are prepared
(models/quirks).
"""

from __future__ import annotations

from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.media.decoded import Decoded
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.task import Input, Task

#: A table is tokenized once for each question; so often its cells may be read, in tables of `max_table_cells`.
QUESTIONS_OF_A_FULL_TABLE = 16


def check_items(count: int, settings: Settings) -> None:
    """Raises ``input_too_large`` for more items than a task may become."""
    if count > (most := settings.max_items):
        raise PipeqError(
            ErrorCode.INPUT_TOO_LARGE,
            f"the task makes {count} items or more (inputs, times their labels or chunks), and this worker takes "
            f"{most} (`max_items`): send it in parts",
        )


def check_input(task: Task, at: int, one: Input, decoded: Decoded, settings: Settings) -> None:
    """Checks a decoded input before it is prepared. Counts what its preparation and its answer take.

    Raises:
        PipeqError: ``input_too_large``.
    """
    assert task.pipeline is not None
    _check_questions(one, settings)
    foreseen = task.pipeline.foresee(one.call_value, task.call_of(at))
    check_items((task.items if task.pack is None else 0) + foreseen.rows, settings)
    if foreseen.passing or foreseen.kept:
        decoded.check_made(foreseen.passing, foreseen.kept)


def _check_questions(one: Input, settings: Settings) -> None:
    table, questions = one.fields.get("table"), one.fields.get("query")
    if not isinstance(table, dict) or not isinstance(questions, list):
        return
    cells, most = sum(map(len, table.values())), settings.inputs.max_table_cells * QUESTIONS_OF_A_FULL_TABLE
    if cells * len(questions) > most:
        raise PipeqError(
            ErrorCode.INPUT_TOO_LARGE,
            f"{len(questions)} questions read a table of {cells} cells, together more than "
            f"{QUESTIONS_OF_A_FULL_TABLE} times the {settings.inputs.max_table_cells} of the largest table ([inputs] "
            "max_table_cells): send fewer questions in one input",
        )
