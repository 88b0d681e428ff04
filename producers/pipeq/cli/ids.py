"""IDS: the arguments of a command, and lines of stdin -> ids of tasks, some at a time.

A line is an id, or what ``--json`` prints: an object with an ``id``. So commands can be joined by pipes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import click

from pipeq.cli.streams import Paused, Stream
from pipeq.contract import keys, shown
from pipeq.submitting import CHUNK_TASKS

#: Most bytes of a line; a status with its result may be long.
LINE_BYTES = 16 * 2**20

ids_argument = click.argument("ids", nargs=-1, required=True, metavar="ID...")


def in_chunks(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yields up to 500 ids at a time; for ``-`` those of stdin, and no later than nothing more comes for a moment.

    Raises:
        click.UsageError: one is no id.
        PipeqError: a line is too long.
    """
    chunk: list[str] = []
    for found in _each(arguments):
        if not isinstance(found, Paused):
            chunk.append(found)
        if len(chunk) >= CHUNK_TASKS or (chunk and isinstance(found, Paused)):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def are_many(arguments: Sequence[str]) -> bool:
    """Whether several ids are meant, even if stdin then has only one."""
    return len(arguments) != 1 or arguments[0] == "-"


def _each(arguments: Sequence[str]) -> Iterator[str | Paused]:
    for argument in arguments:
        if argument != "-":
            yield argument
            continue
        for line in Stream.stdin().lines(LINE_BYTES):
            if isinstance(line, Paused):
                yield line
            elif text := line.text.strip():
                yield _checked(_id_in(text) if text.startswith("{") else text, line.where)


def _id_in(text: str) -> str:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return str(found.get("id", "")) if isinstance(found, dict) else text


def _checked(text: str, where: str) -> str:
    if not keys.is_task_id(text):
        raise click.UsageError(f"{where} is no task id, which is {keys.TASK_ID_WORDS}: {shown.line(repr(text), 100)}")
    return text
