"""Describes errors in the settings in words: unknown keys and variables, with the name that was probably meant.

Used by settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pipeq.contract import shown, variables
from pydantic import BaseModel, ValidationError


def unknown_variables(environ: Mapping[str, str], settings: type[BaseModel]) -> list[str]:
    """Returns a sentence for each environment variable that begins with our prefix and is not known."""
    return variables.unknown(environ, settings.model_fields, _nested(settings))


def sentences(error: ValidationError, settings: type[BaseModel]) -> list[str]:
    """Returns a sentence for each error that pydantic found, with its key."""
    found = []
    for item in error.errors(include_url=False):
        *place, name = item["loc"] or ("settings",)
        where = ".".join(map(str, (*place, name)))
        if item["type"] != "extra_forbidden":
            says = item["msg"].removeprefix("Value error, ")
            found.append(f"{shown.line(where).removesuffix('.[key]')}: {shown.line(says)}")
            continue
        model = _model_at(settings, place)
        keys = list(model.model_fields) if model else []
        found.append(f"{shown.line(where)}: there is no such key{_meant(str(name), keys) or _all(keys)}")
    return found


def _meant(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name[:200], list(known), 1, 0.7)
    return f"; did you mean {close[0]}?" if close else ""


def _all(keys: list[str]) -> str:
    return f"; there are: {', '.join(keys)}" if keys else ""


def _nested(settings: type[BaseModel]) -> Iterable[str]:
    """Names of nested settings, for users who wrote one underscore in place of two: PIPEQ_INPUTS__ALLOW."""
    for name, field in settings.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from (f"{name}__{inner}".upper() for inner in model.model_fields)


def _model_at(model: type[BaseModel], place: Iterable[Any]) -> type[BaseModel] | None:
    """The model of the section in which a key lies."""
    found: Any = model
    for name in place:
        if isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(str(name))
            found = field.annotation if field else None
        elif get_origin(found) in (dict, Mapping):
            found = get_args(found)[1]
        else:
            return None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None
