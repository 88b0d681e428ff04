"""PLACES: looks at every place that the settings name: can inputs be read there, and results written?

Used by ``pipeq worker --check``, and by each worker when it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from pipeq.contract import shown
from pipeq.contract.errors import PipeqError

from pipeq_worker.settings.sections import InputSettings, ResultSettings, S3Settings
from pipeq_worker.stores.allow import AllowList
from pipeq_worker.stores.base import Access, Store, StoreError
from pipeq_worker.stores.registry import Stores
from pipeq_worker.stores.writer import Writer

#: How long one connect or read may take here, in seconds.
_TIMEOUT_S = 10.0
#: The object that is written to see that it can be. It always has this name, so that a worker that may not delete it
#: leaves only one behind; it is empty, and its name says what it is.
_TRIAL = ".pipeq-check-empty"


@dataclass(frozen=True)
class Looked:
    """What was found at one place."""

    #: The setting that names it: ``inputs.allow``.
    key: str
    #: The place, as it may be shown.
    place: str
    #: What is wrong, in a sentence; None if all is well.
    problem: str | None = None


def look(inputs: InputSettings, results: ResultSettings, s3: S3Settings) -> Iterator[Looked]:
    """Looks at one place after the other. A web server is not asked, because a prefix of its names is none itself.

    Raises:
        SettingsError: an entry cannot be used.
        PipeqError: an entry needs a package that is not installed.
    """
    yield from _inputs(inputs, s3)
    yield from _results(results, s3)


def _inputs(inputs: InputSettings, s3: S3Settings) -> Iterator[Looked]:
    key = "inputs.allow"
    AllowList(inputs.allow, key)
    stores = Stores(Access(_TIMEOUT_S, 1, inputs, s3))
    for prefix in inputs.allow:
        store, place = stores.of(prefix), shown.uri(prefix)
        if type(store).look is Store.look:
            continue
        try:
            store.look(store.prefix(prefix), place)
        except StoreError as error:
            yield Looked(key, place, error.sentence)
        else:
            yield Looked(key, place)
    stores.close()


def _results(results: ResultSettings, s3: S3Settings) -> Iterator[Looked]:
    places: dict[str, str] = dict.fromkeys(results.allow, "results.allow")
    if results.store:
        places[results.store] = "results.store"
    writer = Writer(results, s3)
    for prefix, key in places.items():
        uri, place = f"{prefix.rstrip('/')}/{_TRIAL}", shown.uri(prefix)
        try:
            writer.put(uri, b"", "application/octet-stream")
        except PipeqError as error:
            yield Looked(key, place, error.message)
        else:
            with suppress(PipeqError):  # it may lack the right to delete, which it does not need
                writer.remove(uri)
            yield Looked(key, place)
    writer.close()
