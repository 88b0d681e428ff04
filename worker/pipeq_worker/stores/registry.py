"""REGISTRY: scheme of a URI -> the store that serves it: pipeq's own by class, users' by entry point.

A scheme of pipeq is one file, one entry here, and one row of the contract's table (pipeq.contract.schemes). A user's
scheme is an entry point of the group ``pipeq.stores`` in the user's package (docs/stores.md).
"""

from __future__ import annotations

import threading
from importlib.metadata import EntryPoint, entry_points

from pipeq.contract import schemes, shown
from pipeq.contract.errors import SettingsError

from pipeq_worker.stores.az import Az
from pipeq_worker.stores.base import Access, Store
from pipeq_worker.stores.file import File
from pipeq_worker.stores.gs import Gs
from pipeq_worker.stores.hf import Hf
from pipeq_worker.stores.https import Https
from pipeq_worker.stores.s3 import S3

#: The stores that come with pipeq.
OURS: dict[str, type[Store]] = {store.scheme: store for store in (S3, File, Https, Gs, Az, Hf)}

_loaded: dict[str, type[Store]] = {}


def find(scheme: str) -> type[Store] | None:
    """Returns the store of a scheme; None if the scheme is not registered.

    Raises:
        SettingsError: what an installed package registers for it cannot be used.
    """
    if scheme in OURS:
        return OURS[scheme]
    if scheme not in _loaded:
        entry = schemes.registered().get(scheme)
        if entry is None:
            return None
        _loaded[scheme] = _load(entry)
    return _loaded[scheme]


def check() -> None:
    """Checks everything that installed packages register.

    Raises:
        SettingsError: it cannot be used, two packages register one scheme, or one registers a scheme of pipeq.
    """
    seen: dict[str, EntryPoint] = {}
    for entry in entry_points(group=schemes.GROUP):
        if entry.name in OURS:
            raise SettingsError(f"{_of(entry)} registers {entry.name}://, which pipeq reads itself: uninstall it")
        if entry.name in seen and entry.value != seen[entry.name].value:
            raise SettingsError(f"{_of(entry)} and {_of(seen[entry.name])} both register {entry.name}://")
        seen[entry.name] = entry
        find(entry.name)


def _load(entry: EntryPoint) -> type[Store]:
    try:
        store = entry.load()
    except Exception as error:  # importing a user's modules may raise anything
        reason = f"{type(error).__name__}: {shown.line(str(error))}"
        raise SettingsError(f"{_of(entry)} registers {entry.name}:// and cannot be loaded ({reason})") from error
    if not (isinstance(store, type) and issubclass(store, Store) and getattr(store, "scheme", None) == entry.name):
        wanted = f'a subclass of pipeq_worker.stores.base.Store whose `scheme` is "{entry.name}"'
        raise SettingsError(f"{_of(entry)} registers {entry.name}:// with what is not {wanted}")
    return store


def _of(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name if entry.dist else '?'} ({shown.line(entry.value)})"


class Stores:
    """The stores that one part of a worker uses, each created at its first use. Safe to call from several threads.

    Args:
        access: the settings that stores may need.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._made: dict[str, Store] = {}
        self._lock = threading.Lock()

    def of(self, uri: str) -> Store:
        """Returns the store of an allowed URI."""
        return self.get(schemes.of(uri))

    def get(self, scheme: str) -> Store:
        """Returns the store of a known scheme.

        Raises:
            PipeqError: a setting cannot be used, or a package is missing.
        """
        with self._lock:
            if scheme not in self._made:
                store = find(scheme)
                assert store is not None, scheme
                self._made[scheme] = store(self._access)
            return self._made[scheme]

    def close(self) -> None:
        """Closes the connections of all stores."""
        with self._lock:
            made = list(self._made.values())
        for store in made:
            store.close()
