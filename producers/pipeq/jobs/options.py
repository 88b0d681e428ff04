"""OPTIONS: the command line -> how rows are read and sent. Used by the commands that make jobs, and `pipeq run`.

They have the names that :meth:`.jobs.Jobs.submit` gives its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pipeq import checks
from pipeq.contract import shown
from pipeq.contract.errors import PipeqError
from pipeq.jobs.readers import KINDS
from pipeq.params_option import parse_params

_F = TypeVar("_F", bound=Callable[..., Any])


def _pair(value: str, what: str) -> tuple[str, str]:
    name, equals, column = value.partition("=")
    if not equals or not name or not column:
        raise click.BadParameter(f"{shown.line(value)!r} is not {what}")
    return name, column


def _fields(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> Any:
    """``--field text``, or ``--field question=q --field context=c``."""
    if len(values) == 1 and "=" not in values[0]:
        return values[0]
    return dict(_pair(value, "FIELD=COLUMN, which several fields need") for value in values) or None


def _param_columns(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> Any:
    return dict(_pair(value, "PARAMETER=COLUMN") for value in values) or None


def _params(ctx: click.Context, option: click.Parameter, value: str | None) -> Any:
    return None if value is None else parse_params(ctx, option, value)


def _limit(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    try:
        return checks.timeout(option.opts[0].lstrip("-"), value)
    except PipeqError as error:
        raise click.BadParameter(error.message) from error


def all_of(*options: Callable[[Any], Any]) -> Callable[[_F], _F]:
    """Options of a command, in the order in which its help has them."""

    def decorate(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


#: How rows are read.
read_options = all_of(
    click.option(
        "--field", multiple=True, callback=_fields, metavar="COLUMN",
        help="The column that is the input; FIELD=COLUMN, several times, where the pipeline takes several fields.",
    ),
    click.option("--id", metavar="COLUMN", help="The column with the rows' names."),
    click.option("--params", callback=_params, metavar="JSON", help="Parameters of the pipeline's call, for all rows."),
    click.option(
        "--params-column", "params_columns", multiple=True, callback=_param_columns, metavar="PARAMETER=COLUMN",
        help="A parameter that each row has in a column; may be repeated.",
    ),
    click.option(
        "--format", type=click.Choice(KINDS),
        help="What the input holds, where its name does not say it; refs: each file or object is an input.",
    ),
)  # fmt: skip
#: How they are sent, too.
row_options = all_of(
    read_options,
    click.option(
        "--output", metavar="URI",
        help="Prefix for outcomes that are too large for Redis; with fields such as {id}, the name of each row's "
        "result.",
    ),
    click.option("--include-inputs", is_flag=True, help="Write each row's inputs and parameters beside its result."),
    click.option("--priority", type=click.IntRange(0, 9), default=6, show_default=True, help="0 is served first."),
    click.option("--fair-key", metavar="TEXT", help="Whose job it is."),
    click.option(
        "--max-backlog", type=int, default=50_000, show_default=True, help="Rows that wait or run at most."
    ),
    click.option(
        "--expires", "expires_s", type=float, callback=_limit, metavar="S",
        help="Rows that have not ended after so many seconds fail.",
    ),
    click.option(
        "--task-timeout", "timeout_s", type=float, callback=_limit, metavar="S",
        help="Fail a row that is not done this many seconds after a worker started it. (--timeout ends only the wait.)",
    ),
)  # fmt: skip
