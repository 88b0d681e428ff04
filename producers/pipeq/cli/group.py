"""The click group behind ``pipeq``: imports commands when they are called, turns errors into exit codes."""

from __future__ import annotations

import errno
import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from pipeq import shadowed, terminal
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError, ReadError, RedisUnavailableError, WaitTimeoutError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: Entry points of this group are commands of ``pipeq``. The worker's commands come this way, because we never import
#: it.
ENTRY_POINTS = "pipeq.commands"

OK = 0
TASK_FAILED = 1
NOT_FINISHED = 3
UNKNOWN_ID = 4
REDIS_UNREACHABLE = 5
REFUSED = 6
#: After Ctrl-C, as shells have it.
INTERRUPTED = 130

#: Most characters of a message that a line on stderr shows.
MESSAGE_CHARS = 2000
#: What the system says where a disk takes no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

EXIT_CODES = """\b
Exit codes:
  0  all fine
  1  a task failed, was cancelled or expired, or its result cannot be read
  2  the command line is wrong, or a PIPEQ_ variable
  3  a task has not finished yet, or the wait for it timed out
  4  no task or job of that id is known
  5  Redis cannot be reached, or refuses this user
  6  refused: unknown pipeline or parameter, input too large, nothing below a prefix, pipeline in use, missing package
  130  interrupted by Ctrl-C
Of several tasks, 4 goes before 1, and 1 before 3."""

#: Short helps of commands from entry points, because listing commands must not import them.
_PLUGIN_HELP = {
    "worker": "Serve pipelines: take tasks off their queues in batches.",
    "doctor": "Compare a pipeline's answers in batches with those one by one.",
}


@dataclass(frozen=True)
class LazyCommand:
    """A command that is imported when it is called: the attribute of its name in a module."""

    module: str
    #: Its line in the list of commands.
    help: str
    #: Extras of pipeq with packages that it needs in addition to the client's.
    extras: str = ""


def say(code: str, message: str) -> None:
    """Prints one line on stderr, without control characters, because the message may come from a record."""
    click.echo(f"pipeq: {shown.line(code, 100)}: {shown.line(message, MESSAGE_CHARS)}", err=True)


class Group(click.Group):
    """A group that names the command that was probably meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command; an unknown one is an error with the nearest name."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = get_close_matches(args[0][:100], self.list_commands(ctx), 1)
            if not close:
                raise
            raise click.UsageError(f"{error.message.rstrip('.')}. Did you mean {close[0]!r}?", ctx) from error


class LazyGroup(Group):
    """A group whose commands are imported when they are called: our own, and those of :data:`ENTRY_POINTS`."""

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Our own commands in the order of their definition, then those of plug-ins."""
        return list(dict.fromkeys([*self._lazy, *_plugins()]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command; returns None if there is none of this name."""
        with self._missing_package_said(ctx, cmd_name):
            command: Any = None
            # What modules are made of stays. To look for garbage among it takes an eighth of the time of an import.
            gc.disable()
            try:
                if cmd_name in self._lazy:
                    command = getattr(importlib.import_module(self._lazy[cmd_name].module), cmd_name)
                elif cmd_name in (plugins := _plugins()):
                    command = plugins[cmd_name].load()
            finally:
                gc.enable()
        return command if isinstance(command, click.Command) else None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completes commands without importing them."""
        from click.shell_completion import CompletionItem  # not at the top: only completion needs it

        plugins = _plugins()
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        found = [CompletionItem(name, help=self._short_help(name, plugins)) for name in names]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists all commands without importing them."""
        plugins = _plugins()
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._short_help(name, plugins)) for name in self.list_commands(ctx)])

    def _short_help(self, name: str, plugins: Mapping[str, Any]) -> str:
        return self._lazy[name].help if name in self._lazy else _PLUGIN_HELP.get(name, f"From {plugins[name].value}.")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the epilog unchanged."""
        formatter.write(f"\n{(self.epilog or '').replace(chr(8) + chr(10), '')}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command, and turns a PipeqError and Ctrl-C into a line and an exit code."""
        terminal.escape_what_it_cannot_show()
        try:
            with self._missing_package_said(ctx, None):
                return super().invoke(ctx)
        except PipeqError as error:
            say(error.code, error.message)
            ctx.exit(exit_code(error))
        except KeyboardInterrupt:
            say("interrupted", "ended by Ctrl-C")
            ctx.exit(INTERRUPTED)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            say(ErrorCode.OUTPUT_FAILED, f"cannot write: {error.strerror}")
            with suppress(OSError):  # what stdout still holds would fail once more when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(TASK_FAILED)

    @contextmanager
    def _missing_package_said(self, ctx: click.Context, command: str | None) -> Iterator[None]:
        """Says what to install if a package is missing. A missing module of an installed package is a bug: raised."""
        try:
            yield
        except ImportError as error:
            if (hidden := shadowed.sentence(error)) is not None:
                say("missing_package", hidden)
                ctx.exit(REFUSED)
            package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
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
    if error.code == ErrorCode.UNKNOWN_JOB:
        return UNKNOWN_ID
    cannot_be_read = error.code == ErrorCode.OUTPUT_FAILED or isinstance(error, ReadError)
    return TASK_FAILED if cannot_be_read else REFUSED


def _plugins() -> dict[str, Any]:
    from importlib.metadata import entry_points  # not at the top: it takes 20 ms, and `submit` needs none of it

    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
