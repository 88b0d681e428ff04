"""``pipeq pipelines``: which pipelines are served, by which models and workers, and what tasks may ask of them."""

from __future__ import annotations

from typing import Any

import click

from pipeq.cli.group import say
from pipeq.cli.names import nearest
from pipeq.cli.options import connected, example, json_lines, redis_url_option
from pipeq.cli.show import as_json, table, tell
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.queue_info import QueueInfo

#: Most parameters that the table shows of a pipeline; that of a single one shows all.
PARAMS_SHOWN = 6


@click.command(epilog=example("pipeq pipelines", "pipeq pipelines text-generation", "pipeq pipelines --json"))
@click.argument("names", nargs=-1, metavar="[PIPELINE]...")
@json_lines
@redis_url_option
def pipelines(names: tuple[str, ...], in_json: bool, redis_url: str | None) -> None:
    """Show which pipelines are served, and how.

    \b
    task        the task type
    model       with its revision, its precision and its device, at the worker that said it last
    takes       what a plain input is: text, image, audio, video ...; object: named values
    workers     live ones, and those that are loading it
    parameters  of `--params`; all of them if you name PIPELINE
    """  # noqa: D301 - click knows \b only as the backspace that it is here
    with connected(redis_url) as client:
        known = client.pipelines()
        for name in names:
            if name not in known:
                sentence = f"no worker has ever served {shown.line(repr(name), 100)}{nearest(name, known)}"
                raise PipeqError(ErrorCode.UNKNOWN_PIPELINE, sentence)
        chosen = list(dict.fromkeys(names)) or sorted(known)
        queues = [client.queue(name) for name in chosen]
    if in_json:
        for queue in queues:
            click.echo(as_json(described(queue, known[queue.pipeline])))
    elif not queues:
        say("none", "no worker has ever served a pipeline here: start one with `pipeq worker TASK`")
    else:
        _print(queues, known, is_short=not names)


def described(queue: QueueInfo, registered: dict[str, Any]) -> dict[str, Any]:
    """One pipeline as JSON: what its last worker registered, and who serves it now."""
    model, params = registered.get("model"), registered.get("params")
    return {
        "pipeline": queue.pipeline,
        "task": registered.get("task"),
        "model": model if isinstance(model, dict) else {},
        "takes": registered.get("takes"),
        "params": [one for one in params if isinstance(one, str)] if isinstance(params, list) else [],
        "workers": queue.workers,
        "loading": queue.loading,
        "unlike": queue.unlike,
    }


def _print(queues: list[QueueInfo], known: dict[str, dict[str, Any]], *, is_short: bool) -> None:
    rows, below = [], []
    for queue in queues:
        found = described(queue, known[queue.pipeline])
        model = " ".join(str(part) for part in found["model"].values() if part is not None)
        params = found["params"]
        if is_short and len(params) > PARAMS_SHOWN:
            params = [*params[:PARAMS_SHOWN], f"... {len(params) - PARAMS_SHOWN} more"]
        loading = f" + {queue.loading} loading" if queue.loading else ""
        rows.append(
            [
                shown.line(queue.pipeline),
                *(shown.line(str(found[name] or "-")) for name in ("task",)),
                shown.line(model) or "-",
                shown.line(str(found["takes"] or "-")),
                f"{queue.workers}{loading}",
                shown.line(", ".join(params), 5000) or "-",
            ]
        )
        for name, how in sorted(queue.unlike.items()):
            below.append(
                f"{shown.line(queue.pipeline)}: {shown.line(name)} serves another model: {shown.line(how, 1000)}"
            )
    tell(table(("pipeline", "task", "model", "takes", "workers", "parameters"), rows), below)
