"""Options that several commands have, and the client that they ask for."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from pipeq import checks
from pipeq.cli.group import say
from pipeq.client import Client
from pipeq.contract import shown, variables
from pipeq.contract.errors import PipeqError, RedisUrlError, SettingsError
from pipeq.warn import no_logs_of_libraries

_F = TypeVar("_F", bound=Callable[..., Any])


def example(*lines: str) -> str:
    """The epilog of a command's help. The backspace keeps click from joining its lines."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


redis_url_option = click.option(
    "--redis-url", envvar="PIPEQ_REDIS_URL", metavar="URL", help="Default: PIPEQ_REDIS_URL, then localhost."
)
json_lines = click.option("--json", "in_json", is_flag=True, help="Print JSON, one object a line.")


def _parse_timeout(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    # Checked before anything is submitted. click's own range would accept NaN.
    try:
        return checks.seconds(str(option.name), value)
    except PipeqError as error:
        raise click.BadParameter(error.message) from error


def _timeout_option(says: str) -> Callable[[_F], _F]:
    return click.option("--timeout", type=float, callback=_parse_timeout, metavar="S", help=says)


wait_option = click.option("--wait", is_flag=True, help="Wait until every task has ended.")
timeout_option = _timeout_option("Wait at most this many seconds; implies --wait.")
#: Of the commands that wait anyway.
wait_timeout_option = _timeout_option("Wait at most this many seconds.")
allow_option = click.option(
    "--allow",
    multiple=True,
    metavar="URI",
    help="Read results below this prefix, such as s3://results/ (your workers' store); may be repeated. "
    "Default: PIPEQ_CLIENT_ALLOW.",
)

upload_option = click.option(
    "--upload",
    metavar="URI",
    help="Upload local files there, a prefix that the workers may read, such as s3://inputs/; without it, the workers "
    "must be able to open them under the same path. Default: PIPEQ_CLIENT_UPLOAD.",
)

#: Unit of a length of time -> seconds.
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_age(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """A length of time in seconds: a number of them, or a number with ``s``, ``m``, ``h`` or ``d``."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd]?)", text.strip())
    if match is None:
        raise click.BadParameter(f"{shown.line(text, 50)!r} is no length of time: write 90, 90s, 15m, 2h or 7d")
    try:
        return checks.seconds("the age", float(match[1]) * _UNITS[match[2]])
    except PipeqError as error:
        raise click.BadParameter(error.message) from error


@contextmanager
def connected(redis_url: str | None, allow: tuple[str, ...] = (), upload: str | None = None) -> Iterator[Client]:
    """A client, whose warnings are lines on stderr.

    Raises:
        click.UsageError: the URL, the prefixes, or an environment variable of pipeq is none.
    """
    if unknown := variables.unknown(os.environ):
        raise click.UsageError("; ".join(unknown))
    try:
        client = Client(redis_url, allow=allow or None, upload=upload)
    except RedisUrlError as error:
        source = click.get_current_context().get_parameter_source("redis_url")
        hint = "PIPEQ_REDIS_URL" if source is ParameterSource.ENVIRONMENT else "--redis-url"
        raise click.BadParameter(error.message, param_hint=hint) from error
    except SettingsError as error:
        option, variable, given = "--allow", "PIPEQ_CLIENT_ALLOW", bool(allow)
        if error.message.startswith("upload"):
            option, variable, given = "--upload", "PIPEQ_CLIENT_UPLOAD", upload is not None
        hint = option if given else variable
        raise click.BadParameter(error.message, param_hint=hint) from error
    no_logs_of_libraries()
    with client, _warnings_as_lines():
        yield client


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Prints each warning once, as a line on stderr."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            say("warning", str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
