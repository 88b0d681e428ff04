"""The click group behind ``pipeq``: commands loaded when they are called, errors as one line and an exit code."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError, RedisUnavailableError, WaitTimeoutError

#: Entry points of this group are commands of ``pipeq``; this is how the daemon's arrive, which we never import.
ENTRY_POINTS = "pipeq.commands"

OK = 0
TASK_FAILED = 1
NOT_FINISHED = 3
UNKNOWN_ID = 4
REDIS_UNREACHABLE = 5
REFUSED = 6

#: Most of a message that a line on stderr shows.
MESSAGE_CHARS = 2000

EXIT_CODES = """\b
Exit codes:
  0  all fine
  1  a task failed, was cancelled or expired, or its result cannot be read
  2  the command line is wrong
  3  a task has not finished yet, or the wait for it timed out
  4  no task of that id is known
  5  Redis cannot be reached
  6  refused: unknown pipeline, input too large, invalid message, missing package
Of several tasks, 4 goes before 1, and 1 before 3."""

#: What commands from entry points do, where we know: listing them must not load them.
_PLUGIN_HELP = {
    "worker": "Serve pipelines: take tasks off their queues in batches.",
    "doctor": "Compare a pipeline's answers in batches with those one by one.",
}


@dataclass(frozen=True)
class LazyCommand:
    """A command that is imported when it is called: an attribute of its name in a module."""

    module: str
    #: What it does, as the list of commands says.
    help: str
    #: Extras of pipeq whose packages it needs beyond the client's.
    extras: str = ""


def say(code: str, message: str) -> None:
    """One line on stderr, whatever the message holds: it may be from a record, and a terminal obeys what it prints."""
    click.echo(f"pipeq: {shown.line(code, 100)}: {shown.line(message, MESSAGE_CHARS)}", err=True)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called: ours, and those of :data:`ENTRY_POINTS`."""

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Ours as they are written, then the plug-ins."""
        return list(dict.fromkeys([*self._lazy, *_plugins()]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command; None where there is none of this name."""
        with self._missing_package_said(ctx, cmd_name):
            command: Any = None
            if cmd_name in self._lazy:
                command = getattr(importlib.import_module(self._lazy[cmd_name].module), cmd_name)
            elif cmd_name in (plugins := _plugins()):
                command = plugins[cmd_name].load()
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists all commands without importing any."""
        plugins = _plugins()
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._short_help(name, plugins)) for name in self.list_commands(ctx)])

    def _short_help(self, name: str, plugins: Mapping[str, Any]) -> str:
        return self._lazy[name].help if name in self._lazy else _PLUGIN_HELP.get(name, f"From {plugins[name].value}.")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the epilog as it stands."""
        formatter.write(f"\n{(self.epilog or '').replace(chr(8) + chr(10), '')}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; turns what pipeq raises into a line and an exit code."""
        try:
            with self._missing_package_said(ctx, None):
                return super().invoke(ctx)
        except PipeqError as error:
            say(error.code, error.message)
            ctx.exit(exit_code(error))

    @contextmanager
    def _missing_package_said(self, ctx: click.Context, command: str | None) -> Iterator[None]:
        """Says what to install when a command lacks a package. One that is here but lacks a module is a bug: raised."""
        try:
            yield
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if not package or importlib.util.find_spec(package) is not None:
                raise
            command = command or ctx.invoked_subcommand or ""
            extras = self._lazy[command].extras if command in self._lazy else "worker"
            install = f"pipeq[{extras}]" if extras else "pipeq"
            say("missing_package", f'`pipeq {command}` needs the package {package}: pip install "{install}"')
            ctx.exit(REFUSED)


def exit_code(error: PipeqError) -> int:
    """The exit code of a command that ended with this error."""
    if isinstance(error, RedisUnavailableError):
        return REDIS_UNREACHABLE
    if isinstance(error, WaitTimeoutError):
        return NOT_FINISHED
    cannot_be_read = error.code in (ErrorCode.OUTPUT_FAILED, ErrorCode.INPUT_FORBIDDEN)
    return TASK_FAILED if cannot_be_read else REFUSED


def _plugins() -> dict[str, Any]:
    from importlib.metadata import entry_points  # not at the top: it takes 20 ms, and `submit` needs none of it

    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
