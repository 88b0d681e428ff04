"""CONTRACT: the schemes of URIs that pipeq knows, and which of them results can be written to.

Messages, settings, clients and the generated schemas all use this table. The worker's `stores/` has one file for each
scheme, which reads and writes it. Packages may register more schemes by an entry point (docs/stores.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: The group of the entry points by which packages register schemes. An entry's name is the scheme, its object a store.
GROUP = "pipeq.stores"


@dataclass(frozen=True)
class Scheme:
    """One scheme of URIs."""

    #: The part of the URI before ``://``.
    name: str
    #: Whether results can be written there.
    writable: bool
    #: What the first part of its URIs names, for error messages.
    first: str
    #: Whether errors show a ``?`` and what follows it. True if that is part of a name; a query may hold a secret.
    stored: bool = False
    #: Characters that its URIs must not contain, because the package that reads them does not take them as part of a
    #: name.
    reserved: str = ""
    #: The package that reads it, and pipeq's extra that installs the package; None if pipeq always has what it needs.
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
    """Returns the schemes that installed packages register, without importing the packages. Looked up once."""
    from importlib.metadata import entry_points  # not at the top: most callers never need it

    return {one.name: one for one in entry_points(group=GROUP) if one.name not in SCHEMES}


def of(uri: str) -> str:
    """Returns the scheme of a URI as it is written; empty if the text is not a URI."""
    scheme, is_uri, _ = uri.partition("://")
    return scheme if is_uri else ""


def has_dots(uri: str) -> bool:
    """Whether a part of a URI's path is ``.`` or ``..``: nobody follows these, and no key of a store has them."""
    return any(part in (".", "..") for part in uri.partition("://")[2].split("/"))


def is_known(name: str) -> bool:
    """Whether references may have a scheme: it is one of pipeq's own, or an installed package registers it."""
    return name in SCHEMES or name in registered()


def is_writable(name: str) -> bool:
    """Whether results may be requested there. Only the worker knows that of a registered scheme; it may refuse."""
    return SCHEMES[name].writable if name in SCHEMES else name in registered()


def known() -> tuple[str, ...]:
    """Returns all schemes of references, pipeq's own first."""
    return (*SCHEMES, *registered())


def writable() -> tuple[str, ...]:
    """Returns all schemes of outputs."""
    return tuple(name for name in known() if is_writable(name))


def listed(names: Iterable[str]) -> str:
    """Returns schemes as part of a sentence: ``s3://, file:// or https://``."""
    *others, last = (f"{name}://" for name in names)
    return f"{', '.join(others)} or {last}" if others else last
