"""``pipeq doctor``: checks that a pipeline gives in batches the answers that transformers gives one by one."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError, SettingsError
from pipeq.contract.reading import UnreadableError, json_value
from rich.console import Console
from rich.progress import Progress, TaskID

from pipeq_worker.process import startup
from pipeq_worker.settings import read as settings_module
from pipeq_worker.settings.read import Settings

EXIT_DIFFERS, EXIT_SETTINGS = 1, 2


@click.command(
    epilog="""\b
Example:
  pipeq doctor text-classification=my/model --inputs texts.jsonl
FILE holds one input a line, as JSON, as it would stand in a message: a text in quotes, {"uri": "s3://..."}, an object.
"""
)
@click.argument("pipeline", metavar="PIPELINE|TASK=MODEL")
@click.option("--inputs", "source", type=click.File("r", encoding="utf-8"), required=True, metavar="FILE")
@click.option("--params", default="{}", metavar="JSON", help="Parameters of the call.")
@click.option("--config", type=click.Path(path_type=Path), help="Settings file that has the pipeline.")
@click.option("--allow", multiple=True, metavar="URI", help="Prefix that inputs may be read from; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.pass_context
def doctor(
    ctx: click.Context,
    pipeline: str,
    source: IO[str],
    params: str,
    config: Path | None,
    allow: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run inputs through a pipeline in batches and one by one, and say where the answers differ.

    Exits with 1 where they do, or where an input fails.
    """
    try:
        settings = settings_module.from_command_line(config, [pipeline] if "=" in pipeline else [], allow)
        name = pipeline.partition("=")[0]
        if name not in settings.pipelines:
            settings = settings_module.from_command_line(config, [pipeline], allow)
        startup.check_names(settings)
        found = _examine(settings, name, source, _object(params))
    except PipeqError as error:
        click.echo(f"pipeq: {shown.line(str(error), 2000)}", err=True)
        ctx.exit(EXIT_SETTINGS)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(shown.line(line, 2000) for line in _lines(found)))
    ctx.exit(EXIT_DIFFERS if found["differ"] or found["failed"] else 0)


def _examine(settings: Settings, name: str, source: IO[str], params: dict[str, Any]) -> dict[str, Any]:
    from pipeq_worker.models.loading import load_pipeline

    logging.basicConfig(level=logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    click.echo(f"loading {name} ...", err=True)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from pipeq_worker.doctor.doctor import check
    from pipeq_worker.models.transformers_pipeline import TransformersPipeline

    pipeline = load_pipeline(name, settings.pipelines[name], settings.device, settings.s3, settings.param_limits)
    if not isinstance(pipeline, TransformersPipeline):
        raise SettingsError(f"{name!r} has no model to compare with")
    values = list(_decoded(settings, pipeline, source))
    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in bar:
                bar[what] = bars.add_task(what, total=total)
            bars.update(bar[what], completed=done)

        report = check(pipeline, values, params, shuffle=None, progress=show)
    return {
        "pipeline": name,
        "task": pipeline.task_type.name,
        "model": pipeline.model.model_dump(),
        "inputs": len(values),
        "batches": len(report.batches),
        "largest_batch": report.largest_batch,
        "seconds_batched": round(report.batched_s, 3),
        "seconds_alone": round(report.alone_s, 3),
        "differ": {str(at): where for at, where in sorted(report.wrong.items())},
        "failed": {str(at): why for at, why in sorted(report.failed.items())},
    }


def _decoded(settings: Settings, pipeline: Any, source: IO[str]) -> Iterator[Any]:
    """Yields the inputs of a file, read and decoded as in a worker."""
    from pipeq_worker.stages.accept import read_inputs
    from pipeq_worker.stages.decode import decode
    from pipeq_worker.stages.fetch import Fetcher, ref_name

    fetcher = Fetcher(settings.inputs, settings.s3)
    try:
        for number, line in enumerate(source, 1):
            if not line.strip():
                continue
            try:
                (one,), _ = read_inputs(pipeline.task_type, [json_value(line)], settings.inputs)
                for slot in one.slots:
                    data, where, rate = fetcher.fetch(slot.ref), ref_name(slot.ref), pipeline.sampling_rate
                    slot.fill(decode(slot.media, data, where, settings.inputs, rate, slot.in_chat))
            except ValueError as error:
                raise PipeqError(ErrorCode.INVALID_INPUT, f"line {number} is no JSON: {error}") from error
            except PipeqError as error:
                raise PipeqError(error.code, f"line {number}: {error.message}") from error
            yield one.call_value
    finally:
        fetcher.close()


def _object(text: str) -> dict[str, Any]:
    hint = """write one object, as in --params '{"top_k": 2}'"""
    try:
        value = json_value(text)
    except UnreadableError as error:
        raise PipeqError(ErrorCode.INVALID_PARAMS, f"--params: {error}; {hint}") from error
    if not isinstance(value, dict):
        raise PipeqError(ErrorCode.INVALID_PARAMS, f"--params is no JSON object; {hint}")
    return value


def _lines(found: dict[str, Any]) -> Iterator[str]:
    model = found["model"]
    yield f"{found['pipeline']}: {model['id']} for {found['task']} on {model['device']}, {model['dtype']}"
    batched, alone = found["seconds_batched"], found["seconds_alone"]
    largest = shown.count(found["largest_batch"], "item")
    yield (
        f"inputs: {found['inputs']}; batches: {found['batches']}, the largest of {largest}: {batched:.2f} s; one by "
        f"one: {alone:.2f} s"
    )
    for at, why in found["failed"].items():
        yield f"input {at} failed: {why}"
    for at, where in found["differ"].items():
        more = f" (and {len(where) - 3} more)" if len(where) > 3 else ""
        yield f"input {at} differs: {'; '.join(where[:3])}{more}"
    same = found["inputs"] - len(found["differ"]) - len(found["failed"])
    yield f"{same} of {found['inputs']} answers are the same (numbers within 1e-5 absolute plus 1e-4 relative)"
