"""Values of settings: sizes, lists, prefixes of URIs, names; read as people write them."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pipeq.contract import keys, schemes, shown
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(value: Any) -> Any:
    """``"512MiB"`` -> 536870912. Plain integers are bytes.

    Raises:
        ValueError: ``value`` is not a number with one of the units B, KiB, MiB, GiB, kB, MB, GB.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(f"{value!r} is no size like 65536, 64KiB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_list(value: Any) -> Any:
    """Parses a list in the form of a variable: one value, several separated by commas, or JSON.

    Raises:
        ValueError: the value begins with a bracket and is no JSON.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{shown.line(value)!r} is no JSON list") from error
    return [part.strip() for part in value.split(",") if part.strip()]


def _check_input_prefix(uri: str) -> str:
    return _check_prefix(uri, schemes.known())


def _check_output_prefix(uri: str) -> str:
    return _check_prefix(uri, schemes.writable())


def _check_prefix(uri: str, known: tuple[str, ...]) -> str:
    scheme, _, rest = uri.partition("://")
    if schemes.of(uri) not in known:
        raise ValueError(f"{shown.uri(uri)!r} does not begin with one of {', '.join(f'{one}://' for one in known)}")
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError(f"{shown.uri(uri)!r} is not absolute: write file:///path/")
    if scheme != "file" and not rest.strip("/"):
        first = schemes.SCHEMES[scheme].first if scheme in schemes.SCHEMES else "place"
        raise ValueError(f"{shown.uri(uri)!r} names no {first}")
    return uri


def _check_redis_url(url: str) -> str:
    # Imports redis, which a child does not need: it gets settings that were checked.
    from pipeq.contract.redis_url import options

    options(url)
    return url


RedisUrl = Annotated[str, AfterValidator(_check_redis_url)]
Bytes = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
#: Runs before pydantic parses the tuple; NoDecode leaves JSON in the environment to :func:`parse_list`, too.
LISTED = (NoDecode, BeforeValidator(parse_list))
InputPrefix = Annotated[str, AfterValidator(_check_input_prefix)]
OutputPrefix = Annotated[str, AfterValidator(_check_output_prefix)]
Texts = Annotated[tuple[str, ...], *LISTED]


def _check_queue(name: str) -> str:
    if not keys.is_queue_name(name):
        raise ValueError(f"{shown.line(name)!r} is no name of a queue: {keys.QUEUE_NAME_WORDS}")
    return name


def _check_module(name: str) -> str:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{shown.line(name)!r} is no module's name like myapp.tasks")
    return name


QueueName = Annotated[str, AfterValidator(_check_queue)]
ModuleName = Annotated[str, AfterValidator(_check_module)]
