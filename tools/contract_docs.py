"""Writes the JSON Schemas of records, marks and Celery's frame, and the table of keys in ``docs/any-language.md``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeq.contract import keys
from pipeq.contract.headers import headers_schema
from pipeq.contract.key_table import KEYS, PRIVATE
from pipeq.contract.record import Mark, Part, Record
from pipeq.contract.status import CELERY_STATES
from pipeq_worker.broker import protocol

from tools.record_tables import NESTED, rows_of

PAGE = Path(__file__).parents[1] / "docs/any-language.md"
#: The words of the tables -> JSON Schema.
TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "true or false": {"type": "boolean"},
    "list": {"type": "array"},
    "object": {"type": "object"},
    "object of numbers": {"type": "object", "additionalProperties": {"type": "number"}},
    "any JSON": {},
}
#: The same for Celery's headers and properties.
PROTOCOL: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "a count": {"type": "integer", "minimum": 0},
    "a list of two numbers": {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 2, "maxItems": 2},
    "true or false": {"type": "boolean"},
    "a list of texts": {"type": "array", "items": {"type": "string"}},
    "an object": {"type": "object"},
    "a number from 0 to 255": {"type": "integer", "minimum": 0, "maximum": 255},
    "1 or 2": {"enum": [0, 1, 2]},
}


def schemas() -> dict[str, str]:
    """The content of each schema, by its path in the repository."""
    record = _schema("record", "What the string celery-task-meta-<id> holds; fields may be added.", Record, " or null")
    record["properties"]["status"] = {"enum": sorted(set(CELERY_STATES.values()))}
    record["properties"]["pipeq"] |= {"properties": _properties(Part)}
    record["required"] = ["status", "result"]
    mark = _schema("mark", "What the field <id> of the hash pipeq:running holds; fields may be added.", Mark)
    mark["required"] = ["worker"]
    found = {"record": record, "mark": mark, "envelope": _envelope()}
    return {f"docs/{name}.schema.json": json.dumps(schema, indent=2) + "\n" for name, schema in found.items()}


def page() -> str:
    """The page on other languages, with its table of keys made anew."""
    text = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- keys: made by `make docs` -->\n", "<!-- keys end -->\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    lines = ["| key | type | written by | what it holds |", "| --- | --- | --- | --- |"]
    lines += [f"| `{_shown(one.name)}` | {one.type} | {one.written_by} | {one.holds} |" for one in KEYS]
    private = ", ".join(f"`{name}`" for name in PRIVATE)
    return (
        f"{before}{begin}{chr(10).join(lines)}\n\nPrivate, and free to change in any release: {private}.\n{end}{after}"
    )


def _shown(name: str) -> str:
    return name.replace(keys.PRIORITY_SEPARATOR, r"\x06\x16")


def _schema(name: str, says: str, shape: type, nothing: str = "") -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"pipeq:{keys.CONTRACT_VERSION}:{name}",
        "title": shape.__name__,
        "description": says,
        "type": "object",
        "properties": _properties(shape, nothing),
    }


def _properties(shape: type, nothing: str = "") -> dict[str, Any]:
    found = {}
    for name, kind, says in rows_of(shape, nothing):
        name = name.strip("`")
        schema = dict(TYPES[kind.removesuffix(" or null")])
        if kind.endswith(" or null") and schema:
            schema["type"] = [schema["type"], "null"]
        if (inner := NESTED.get(name)) is not None:
            schema["properties"] = _properties(inner, " or null")
        found[name] = {**schema, "description": says}
    return found


def _envelope() -> dict[str, Any]:
    own = json.loads(headers_schema())["properties"]
    headers = {name: own.get(name) or _or_null(PROTOCOL[words]) for name, (words, _) in protocol.HEADERS.items()
               if name in own or words in PROTOCOL}  # fmt: skip
    headers |= {"task": {"const": keys.TASK_NAME}, "id": {"type": "string", "minLength": 1}}
    properties = {name: _or_null(PROTOCOL[words]) for name, (words, _) in protocol.PROPERTIES.items()}
    properties |= {"body_encoding": {"const": "base64"}, "priority": {"type": "integer", "minimum": 0, "maximum": 9}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"pipeq:{keys.CONTRACT_VERSION}:envelope",
        "title": "Envelope",
        "description": "A message in Celery's protocol 2 inside kombu's frame for Redis. The body is the base64 of the "
        "JSON [[], kwargs, embed]; kwargs are a message (message.schema.json), or a pack of a job "
        "(pack.schema.json); embed may be {}.",
        "type": "object",
        "required": ["body", "headers", "properties", "content-type"],
        "properties": {
            "body": {"type": "string", "contentEncoding": "base64", "contentMediaType": "application/json"},
            "content-type": {"const": "application/json"},
            "content-encoding": {"const": "utf-8"},
            "headers": {"type": "object", "required": ["task", "id"], "properties": headers},
            "properties": {"type": "object", "required": ["body_encoding"], "properties": properties},
        },
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
