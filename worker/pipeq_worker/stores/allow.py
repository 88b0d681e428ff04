"""ALLOW: decides whether a URI may be accessed. Fetch and writer ask before they open anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeq.contract import schemes
from pipeq.contract.errors import SettingsError

from pipeq_worker.stores import registry
from pipeq_worker.stores.base import Fault, Prefixes, StoreError, display


class AllowList:
    """A list of prefixes of URIs.

    An entry that ends in ``/`` is a prefix. Any other entry is a single object, or a folder with everything below it.

    Args:
        entries: ``s3://bucket/prefix/``, ``file:///folder/``, ``https://host/path/`` or another known scheme.
        key: the setting that holds them, for error messages: ``[inputs] allow``.
        option: the command line's option for them, if there is one: ``--allow``.

    Raises (from the constructor):
        SettingsError: an entry cannot be compared.
    """

    def __init__(self, entries: Iterable[str], key: str, option: str | None = None) -> None:
        self._key = key
        self._option = option
        found: dict[str, list[Any]] = {}
        for entry in entries:
            found.setdefault(schemes.of(entry), []).append(self._parse(entry))
        self._prefixes = {scheme: Prefixes(tuple(parsed), key, option) for scheme, parsed in found.items()}

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes with at least one entry."""
        return tuple(self._prefixes)

    def check(self, uri: str) -> Any:
        """Returns the place of an allowed URI, for the store of its scheme.

        Raises:
            StoreError: ``REFUSED``: it is not allowed; the sentence says which line of the settings would allow it.
        """
        scheme = schemes.of(uri)
        store = registry.find(scheme)
        if store is None:
            raise StoreError(Fault.REFUSED, f"{display(uri)} is not touched: it is no {_all()} URI")
        return store.check(uri, self._prefixes.get(scheme) or Prefixes((), self._key, self._option))

    def _parse(self, entry: str) -> Any:
        store = registry.find(schemes.of(entry))
        if store is None:
            raise SettingsError(f"{self._key}: {display(entry)!r} cannot be used: it is no {_all()} URI")
        try:
            return store.prefix(entry)
        except ValueError as error:
            raise SettingsError(f"{self._key}: {display(entry)!r} {error}") from error


def _all() -> str:
    return schemes.listed(schemes.known())
