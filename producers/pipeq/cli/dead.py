"""``pipeq dead``: lists and shows dead letters, sends them again, drops them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

import click

from pipeq.cli.group import OK, TASK_FAILED, UNKNOWN_ID, Group, say
from pipeq.cli.names import parse_codes
from pipeq.cli.options import connected, example, json_lines, parse_age, redis_url_option
from pipeq.cli.results import worst
from pipeq.cli.show import as_json, duration
from pipeq.client import Client
from pipeq.contract import shown
from pipeq.contract.dead_letter import DeadLetter
from pipeq.dead import DeadLetters, Handled
from pipeq.terminal import is_terminal

_F = TypeVar("_F", bound=Callable[..., Any])
#: Most refusals that are shown one by one.
REFUSALS_SHOWN = 20
#: Most characters of inputs and the like that `show` prints; --json prints all of them.
LONG_CHARS = 2000


@click.group(
    cls=Group, epilog=example("pipeq dead list", "pipeq dead retry text-classification --code timeout --newer-than 2h")
)
def dead() -> None:
    """List dead letters, send them again, or drop them.

    A dead letter is the message of a task that failed, or one that no worker could read, with the reason. Each queue
    keeps its newest ones (`[results] dead_letter_max` of the worker, 10,000).
    """


def _filters(command: _F) -> _F:
    options = (
        click.option(
            "--code",
            "codes",
            multiple=True,
            callback=parse_codes,
            metavar="CODE",
            help="With this error code; may be repeated.",
        ),
        click.option("--older-than", metavar="AGE", callback=parse_age, help="Failed so long ago: 90s, 15m, 2h, 7d."),
        click.option("--newer-than", metavar="AGE", callback=parse_age, help="Failed since: 90s, 15m, 2h, 7d."),
        json_lines,
        redis_url_option,
    )
    for option in reversed(options):
        command = option(command)
    return click.argument("names", nargs=-1, metavar="[PIPELINE] [ID]...")(command)


_every = click.option("--all", "every", is_flag=True, help="All letters, where no ID and no filter is given.")


def _choose(
    client: Client, names: tuple[str, ...], codes: tuple[str, ...], older: float | None, newer: float | None
) -> tuple[DeadLetters, frozenset[str]]:
    """Returns the letters that are meant, and the ids among the names. The first name may be a pipeline's."""
    pipeline, ids = None, names
    if names and (names[0] in client.pipelines() or next(iter(client.dead(names[0])), None) is not None):
        pipeline, ids = names[0], names[1:]
    found = client.dead(pipeline, ids=ids or None, code=codes or None, older_than_s=older, newer_than_s=newer)
    return found, frozenset(ids)


@dead.command("list", epilog=example("pipeq dead list text-classification --code worker_lost --older-than 1d"))
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="Most letters.")
@_filters
def list_(
    names: tuple[str, ...],
    codes: tuple[str, ...],
    older_than: float | None,
    newer_than: float | None,
    limit: int,
    in_json: bool,
    redis_url: str | None,
) -> None:
    """List dead letters, the newest of each queue first.

    ID is a task's id, or a letter's own. With --json, a line is the whole letter.
    """
    with connected(redis_url) as client:
        choice, _ = _choose(client, names, codes, older_than, newer_than)
        letters = choice.list(limit + 1)
    if in_json:
        for letter in letters[:limit]:
            click.echo(as_json(letter.shown()))
    elif letters:
        _print_table(letters[:limit])
    else:
        click.echo("No dead letters.", err=True)
    if len(letters) > limit:
        click.echo(f"There are more than {limit}: --limit shows more of them.", err=True)


@dead.command(epilog=example("pipeq dead show 6f1c0f5e-3c1c-4f0e-9b55-0a4b1f6d2a77"))
@_filters
def show(
    names: tuple[str, ...],
    codes: tuple[str, ...],
    older_than: float | None,
    newer_than: float | None,
    in_json: bool,
    redis_url: str | None,
) -> None:
    """Show all that dead letters say: the message, the reason, the worker, where it was raised.

    Passwords and signatures in URIs are left out.
    """
    with connected(redis_url) as client:
        choice, ids = _choose(client, names, codes, older_than, newer_than)
        unseen = set(ids)
        for letter in choice:
            unseen -= {letter.letter, letter.task_id}
            click.echo(as_json(letter.shown()) if in_json else _block(letter))
    click.get_current_context().exit(_say_unseen(unseen))


@dead.command(
    epilog=example(
        "pipeq dead retry 6f1c0f5e-3c1c-4f0e-9b55-0a4b1f6d2a77",
        "pipeq dead retry text-classification --code input_unavailable",
    )
)
@_every
@_filters
def retry(
    names: tuple[str, ...],
    codes: tuple[str, ...],
    older_than: float | None,
    newer_than: float | None,
    every: bool,
    in_json: bool,
    redis_url: str | None,
) -> None:
    """Send tasks again, under their ids.

    Each goes to the end of its queue and has all of its tries; its attempts go on counting. A message that cannot be
    read stays, and so does a letter whose id belongs to a task that did not fail: exit code 1.
    """
    with connected(redis_url) as client:
        choice, ids = _choose(client, names, codes, older_than, newer_than)
        _check_chosen(bool(ids or codes or every), older_than, newer_than)
        code = _print_handled(choice.retry(), ids, "retried", in_json)
    click.get_current_context().exit(code)


@dead.command(
    epilog=example("pipeq dead drop 6f1c0f5e-3c1c-4f0e-9b55-0a4b1f6d2a77", "pipeq dead drop --older-than 7d --yes")
)
@_every
@click.option("--yes", is_flag=True, help="Do not ask.")
@_filters
def drop(
    names: tuple[str, ...],
    codes: tuple[str, ...],
    older_than: float | None,
    newer_than: float | None,
    every: bool,
    yes: bool,
    in_json: bool,
    redis_url: str | None,
) -> None:
    """Remove dead letters for good. The statuses of their tasks stay."""
    with connected(redis_url) as client:
        choice, ids = _choose(client, names, codes, older_than, newer_than)
        _check_chosen(bool(ids or codes or every), older_than, newer_than)
        if not ids and not yes:
            click.confirm(f"Drop {shown.count(sum(1 for _ in choice), 'dead letter')}?", abort=True, err=True)
        code = _print_handled(choice.drop(), ids, "dropped", in_json)
    click.get_current_context().exit(code)


def _check_chosen(is_chosen: bool, older_than: float | None, newer_than: float | None) -> None:
    if not is_chosen and older_than is None and newer_than is None:
        raise click.UsageError("say which letters: an ID, --code, --older-than, --newer-than, or --all")


def _print_handled(handled: Iterable[Handled], ids: frozenset[str], done: str, in_json: bool) -> int:
    handled, unseen = tuple(handled), set(ids)
    refused = [one for one in handled if one.refused is not None]
    for one in handled:
        unseen -= {one.letter, one.task_id}
        if in_json:
            click.echo(as_json(asdict(one)))
    if not in_json:
        click.echo(f"{len(handled) - len(refused)} {done}")
        for one in refused[:REFUSALS_SHOWN]:
            say("refused", f"{one.task_id or one.letter}: {one.refused}")
        if len(refused) > REFUSALS_SHOWN:
            say("refused", f"and {len(refused) - REFUSALS_SHOWN} more")
    return worst([_say_unseen(unseen), TASK_FAILED if refused else OK])


def _say_unseen(ids: set[str]) -> int:
    for one in sorted(ids):
        say("unknown", f"no dead letter has the id {one}")
    return UNKNOWN_ID if ids else OK


def _print_table(letters: Iterable[DeadLetter]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("letter", "task", "pipeline", "age", "attempts", "code", "reason", box=None)
    now = time.time()
    for one in letters:
        age = "-" if one.failed_at is None else duration(now - one.failed_at)
        texts = (one.task_id or "-", one.pipeline or one.queue, age, str(one.attempts), one.code, one.reason)
        table.add_row(one.letter, *(escape(shown.line(text, 100)) for text in texts))
    # A pipe has no width.
    Console(width=None if is_terminal(sys.stdout) else 250, highlight=False).print(table)


def _block(letter: DeadLetter) -> str:
    found = letter.shown()
    failed_at = found["failed_at"]
    if failed_at is not None:
        found["failed_at"] = datetime.fromtimestamp(failed_at).astimezone().isoformat(" ", "seconds")
    traceback = found.pop("traceback")
    lines = [f"{found.pop('letter')}  {shown.line(found.pop('code'))}: {shown.line(found.pop('reason'), LONG_CHARS)}"]
    for name, value in found.items():
        if value is not None and value != {}:
            text = value if isinstance(value, str) else as_json(value)
            lines.append(f"  {name.replace('_', ' '):<10} {shown.line(text, LONG_CHARS)}")
    lines += [f"    {shown.line(line)}" for line in (traceback or "").splitlines()]
    return "\n".join(lines)
