"""Writes the documentation that is made from code: pages and tables in ``docs``, JSON Schemas, parts of the README.

``docs/schemas`` has one JSON Schema for each task type, and the README the short table of task types. ``make docs``
runs this program; a test fails if it has to be run again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeq.contract import key_table, schemes
from pipeq.contract.bare import bare_schema
from pipeq.contract.headers import headers_schema
from pipeq.contract.message import Ref, json_schema
from pipeq.contract.pack import pack_schema
from pipeq_worker.models.params import refused
from pipeq_worker.models.params.accepted import ceilings
from pipeq_worker.models.params.compound import Fields
from pipeq_worker.models.signatures import rules_of
from pipeq_worker.models.task_type import Media, TaskType
from pipeq_worker.models.task_types import TASK_TYPES
from pipeq_worker.settings.sections import ParamLimits
from pipeq_worker.stages.accept import WORDS, shape

from tools import contract_docs, error_docs, metrics_docs, picture, record_tables

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- task types: made by `make docs` -->\n", "<!-- task types end -->\n"


def files() -> dict[str, str]:
    """Returns the content of every generated file, by its path in the repository."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = {
        "README.md": f"{before}{BEGIN}{_short_table()}{END}{after}",
        "docs/task-types.md": _long_table(),
        "docs/errors.md": error_docs.page(),
        "docs/architecture.svg": picture.svg(),
        "docs/record.md": record_tables.page(),
        "docs/dead-letters.md": record_tables.letters_page(),
        "docs/message.schema.json": json_schema(),
        "docs/headers.schema.json": headers_schema(),
        "docs/bare-message.schema.json": bare_schema(),
        "docs/pack.schema.json": pack_schema(),
        "docs/metrics.md": metrics_docs.page(),
        "docs/any-language.md": contract_docs.page(),
        "docs/keys.json": key_table.table(),
        **contract_docs.schemas(),
    }
    for row in TASK_TYPES.values():
        made[f"docs/schemas/{row.name}.json"] = json.dumps(schema(row), indent=2) + "\n"
    return made


def schema(row: TaskType) -> dict[str, Any]:
    """JSON Schema of a message for one task type: its ``inputs`` and ``params``."""
    one = _input_schema(row)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": row.name,
        "description": f"A message for {row.name}: it takes {shape(row)}, and gives {row.output}.",
        "type": "object",
        "required": ["pipeline", "inputs"],
        "properties": {
            "pipeline": {"type": "string"},
            "inputs": {"anyOf": [one, {"type": "array", "items": one}]},
            "params": _params_schema(row),
        },
        "$defs": {"ref": _ref_schema()},
    }


def _input_schema(row: TaskType) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "type": "object",
        "properties": {name: _media_schema(media) for name, media in row.fields.items()},
        "required": [name for name in row.fields if name not in row.optional],
        "additionalProperties": False,
    }
    return whole if row.main is None else {"anyOf": [_media_schema(row.fields[row.main]), whole]}


def _media_schema(media: Media) -> dict[str, Any]:
    ref, text = {"$ref": "#/$defs/ref"}, {"type": "string"}
    uri = {"type": "string", "pattern": f"^({'|'.join(schemes.SCHEMES)})://"}
    turn = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": text, "content": {"anyOf": [text, {"type": "array"}]}},
    }
    found: dict[Media, dict[str, Any]] = {
        Media.TEXT: {"anyOf": [text, ref]},
        Media.TEXTS: {"anyOf": [text, ref, {"type": "array", "items": text, "minItems": 1}]},
        Media.CHAT: {"anyOf": [text, ref, {"type": "array", "items": turn, "minItems": 1}]},
        Media.IMAGES: {"anyOf": [ref, uri, {"type": "array", "items": {"anyOf": [ref, uri]}}]},
        Media.TABLE: {"anyOf": [ref, {"type": "object"}, {"type": "array", "items": {"type": "object"}}]},
        Media.JSON: {},
    }
    return found.get(media, {"anyOf": [ref, uri]})


def _params_schema(row: TaskType) -> dict[str, Any]:
    if not row.has_model:
        return {"type": "object", "properties": {"seconds": {"type": "number"}}, "additionalProperties": False}
    return Fields(rules_of(row), {}).schema(ceilings(ParamLimits()))


def _ref_schema() -> dict[str, Any]:
    found = Ref.model_json_schema()
    found["description"] = str(found.get("description", "")).partition("\n")[0]
    return found


def _takes(row: TaskType) -> str:
    fields = ", ".join(f'"{name}"{"?" if name in row.optional else ""}' for name in row.fields)
    if row.main is None:
        return f"`{{{fields}}}`"
    plain = WORDS[row.fields[row.main]].removeprefix("a reference to ")
    return plain + (f", or `{{{fields}}}`" if len(row.fields) > 1 else "")


def _notes(row: TaskType) -> str:
    notes = [row.note] if row.note else []
    notes += [f"needs the parameter `{name}`" for name, _ in row.required]
    notes += [f"needs the package {name}" for name in row.needs]
    return "; ".join(notes)


def _short_table() -> str:
    lines = ["| task type | takes | notes |", "| --- | --- | --- |"]
    for row in TASK_TYPES.values():
        names = " or ".join(f"`{name}`" for name in (row.name, *row.aliases))
        lines.append(f"| {names} | {_takes(row)} | {_notes(row)} |")
    return "\n".join(lines) + "\n"


def _long_table() -> str:
    lines = [
        "# Task types",
        "",
        "Made by `make docs` from [task_types.py](../worker/pipeq_worker/models/task_types.py).",
        '"Same answer" says whether the tests compare the answers from batches of mixed lengths and sizes with the',
        "answers of transformers' own pipeline for each input alone",
        "([tests/integration/test_parity.py](../tests/integration/test_parity.py)). The JSON Schemas of messages are",
        "in [schemas](schemas).",
        "",
        "| task type | takes | gives | parts that are not JSON | cost of an item | shares a batch with | cuts chunks |"
        " same answer | notes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in TASK_TYPES.values():
        company = {"any length": "any length", "same shape": "items of its shape", "alone": "none"}[row.company]
        cells = [
            f"[{row.name}](schemas/{row.name}.json)",
            _takes(row),
            row.output,
            row.objects,
            row.cost,
            company,
            "yes" if row.chunks else "",
            f"no: {row.untested}" if row.untested else "tested",
            _notes(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + _parameters()


def _parameters() -> str:
    """The section about the parameters of all task types."""
    ceilings = ", ".join(f"`{name}` {value:,}" for name, value in ParamLimits().model_dump().items())
    reasons: dict[str, list[str]] = {}
    for name, reason in refused.EVERYWHERE.items():
        reasons.setdefault(reason, []).append(name)
    lines = [
        "## Parameters",
        "",
        "The schemas give each parameter its JSON type and bounds, at every depth, and allow no others. A model may",
        "take only some of them; the error for another one gives the reason. Null means transformers' default.",
        "`params` in the settings pass the same check. The ceilings are `[param_limits]` of the worker's settings:",
        f"{ceilings}.",
        "",
        "Parameters that transformers knows but that no task may set, at any depth:",
        "",
        "| why | parameters |",
        "| --- | --- |",
        *(f"| {reason} | {', '.join(f'`{name}`' for name in names)} |" for reason, names in reasons.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the files."""
    for name, content in files().items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
