"""CONTRACT: the schemes of URIs: which there are, and which of them results may be written to.

The one table that messages, settings, clients and the generated schemas read. How a worker reads and writes each of
them is in the worker's `stores/`, a file a scheme. Packages may register more by an entry point (docs/stores.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: The group of the entry points by which packages register schemes: the scheme is the name, a store the object.
GROUP = "pipeq.stores"


@dataclass(frozen=True)
class Scheme:
    """One scheme of URIs."""

    #: What stands before ``://``.
    name: str
    #: Whether results can be written there.
    writable: bool
    #: What the first part of its URIs names.
    first: str
    #: Whether errors show a ``?`` and what follows: as a part of a name. Of a query they do not, it may hold a secret.
    stored: bool = False
    #: Characters that its URIs may not hold: the package that reads it takes them for something else than a name.
    reserved: str = ""
    #: The package that reads it and the extra of pipeq that brings that package; None where pipeq itself brings it.
    package: str | None = None
    extra: str | None = None


#: The schemes that come with pipeq.
SCHEMES = {
    one.name: one
    for one in (
        Scheme("s3", writable=True, first="bucket", stored=True),
        Scheme("file", writable=True, first="folder", stored=True),
        Scheme("https", writable=False, first="host"),
        Scheme("gs", writable=True, first="bucket", package="gcsfs", extra="gs"),
        Scheme("az", writable=True, first="container", reserved="?#@:", package="adlfs", extra="az"),
        Scheme("hf", writable=False, first="repository", package="huggingface_hub", extra="hf"),
    )
}


@lru_cache(maxsize=1)
def registered() -> dict[str, EntryPoint]:
    """The schemes that installed packages register; nothing of those packages is imported. Looked up once."""
    from importlib.metadata import entry_points  # not at the top: most callers never need it

    return {one.name: one for one in entry_points(group=GROUP) if one.name not in SCHEMES}


def of(uri: str) -> str:
    """The scheme of a URI, as it is written; empty where a text is no URI."""
    scheme, is_uri, _ = uri.partition("://")
    return scheme if is_uri else ""


def is_known(name: str) -> bool:
    """Whether there may be references of a scheme: one of pipeq's own, or one that an installed package registers."""
    return name in SCHEMES or name in registered()


def is_writable(name: str) -> bool:
    """Whether output may be asked for there. Of a registered scheme only the worker knows, which refuses the task."""
    return SCHEMES[name].writable if name in SCHEMES else name in registered()


def known() -> tuple[str, ...]:
    """All schemes of references, pipeq's own first."""
    return (*SCHEMES, *registered())


def writable() -> tuple[str, ...]:
    """All schemes of outputs."""
    return tuple(name for name in known() if is_writable(name))


def listed(names: Iterable[str]) -> str:
    """Schemes as part of a sentence: ``s3://, file:// or https://``."""
    *others, last = (f"{name}://" for name in names)
    return f"{', '.join(others)} or {last}" if others else last
