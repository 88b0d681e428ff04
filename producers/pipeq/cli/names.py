"""NAMES: the pipelines and parameters that a command names -> those that there are, or an error with the nearest one.

Parameters are checked by the worker, too; here, the one who made the mistake is told before anything is queued.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import click

from pipeq.client import Client
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError, RedisUnavailableError
from pipeq.queue_info import QueueInfo

#: Most names that an error lists, and most characters of one.
NAMES_SHOWN = 20
NAME_CHARS = 100


def queue_of(client: Client, pipeline: str) -> QueueInfo:
    """Returns the queue of a pipeline that a worker has served, or in which there is something.

    Raises:
        PipeqError: ``unknown_pipeline``, with the nearest one.
    """
    queue = client.queue(pipeline)
    anything = (queue.depth, queue.waiting, queue.in_flight, queue.dead, queue.workers, queue.loading)
    if not any(anything) and pipeline not in (known := client.pipelines()):
        name = shown.line(repr(pipeline), NAME_CHARS)
        raise PipeqError(
            ErrorCode.UNKNOWN_PIPELINE,
            f"no worker has ever served {name}, and nothing waits there{nearest(pipeline, known)}",
        )
    return queue


def registered(client: Client, pipeline: str) -> dict[str, Any]:
    """What a worker has registered of the pipeline; empty if that is not known."""
    with suppress(RedisUnavailableError):  # the submit itself will say it
        return client.pipelines().get(pipeline, {})
    return {}


def check_params(params: Mapping[str, Any], about: Mapping[str, Any], pipeline: str) -> None:
    """Checks the names of parameters, if the pipeline's worker has registered those that it takes.

    Raises:
        PipeqError: ``invalid_params``, with the nearest one.
    """
    listed = about.get("params")
    known = [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
    for name in params if known else ():
        if name not in known:
            raise PipeqError(
                ErrorCode.INVALID_PARAMS,
                f"{shown.line(repr(pipeline), NAME_CHARS)} takes no parameter {shown.line(repr(name), NAME_CHARS)}"
                f"{nearest(name, known)}; --no-check submits it anyway",
            )


def parse_codes(_: click.Context, __: click.Parameter, codes: tuple[str, ...]) -> tuple[str, ...]:
    """Codes of errors that choose something: an unknown one would choose nothing, and nobody would know why."""
    known = [str(one) for one in ErrorCode]
    for code in codes:
        if code not in known:
            raise click.BadParameter(
                f"there is no error code {shown.line(repr(code), NAME_CHARS)}{nearest(code, known)}"
            )
    return codes


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'top_k'?``, or what there is."""
    names = sorted(known)
    if close := get_close_matches(name[:200], names, 1):
        return f"; did you mean {shown.line(close[0], NAME_CHARS)!r}?"
    listed = ", ".join(shown.line(one, NAME_CHARS) for one in names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"; there are: {listed or 'none'}{more}"
