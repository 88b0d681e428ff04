"""WRITER: writes results that do not go into the result backend. Used by deliver."""

from __future__ import annotations

from typing import Any

from pipeq.contract import schemes
from pipeq.contract.errors import Blame, ErrorCode, PipeqError

from pipeq_worker.settings.sections import ResultSettings, S3Settings
from pipeq_worker.stores import deadline, registry
from pipeq_worker.stores.allow import AllowList
from pipeq_worker.stores.base import Access, StoreError, display
from pipeq_worker.stores.gate import Gates
from pipeq_worker.stores.registry import Stores

#: How long one connect or read of the store may take, in seconds.
_TIMEOUT_S = 30
#: Connections that are kept open; no more threads than this deliver at the same time.
_CONNECTIONS = 16


class Writer:
    """Writes results below the prefixes that the settings allow. One object serves all threads.

    Args:
        results: the worker's own store, and the prefixes to which producers may send output.
        s3: how to reach S3.

    Raises (from the constructor):
        PipeqError: one of the prefixes needs a package that is not installed.
    """

    def __init__(self, results: ResultSettings, s3: S3Settings) -> None:
        own = (results.store,) if results.store else ()
        #: In total, even if the store answers slowly.
        self._max_write_s = results.max_write_s
        self._producers = AllowList(results.allow, "[results] allow")
        self._all = AllowList((*results.allow, *own), "[results] allow")
        #: A place that the worker chose itself is nothing that a task could get wrong.
        self._own = AllowList(own, "[results] store")
        self._stores = Stores(Access(_TIMEOUT_S, _CONNECTIONS, s3=s3))
        self._gates = Gates()
        for scheme in self._all.schemes:
            self._stores.get(scheme)

    def check_allowed(self, uri: str) -> None:
        """Checks that a producer may have its output written to a URI: it must lie below ``[results] allow``.

        Raises:
            PipeqError: ``input_forbidden``, with the line to add to the settings; ``output_failed`` if the store is
                away now, so that nothing is computed that could not be written.
        """
        place = _locate(self._producers, uri)
        try:
            self._gates.of(self._stores.of(uri).server(place)).check(display(uri))
        except StoreError as error:
            raise error.of_output() from error

    def put(self, uri: str, data: bytes, media_type: str) -> None:
        """Writes an object completely or not at all; an existing one is replaced.

        Args:
            uri: a URI below ``[results] allow`` or the worker's own store.
            data: the object's content.
            media_type: its MIME type; a file stores none.

        Raises:
            PipeqError: ``input_forbidden``; ``output_failed``, retryable if the fault may be temporary.
        """
        place, name = _locate(self._all, uri), display(uri)
        if uri.endswith("/"):
            raise PipeqError(ErrorCode.OUTPUT_FAILED, f"{name} names a folder, not an object", False)
        try:
            store = self._stores.of(uri)
            gate = self._gates.of(store.server(place))
            with deadline.within(self._max_write_s), gate.call(name, may_be_silent=True):
                store.put(place, data, media_type, name)
        except StoreError as error:
            is_own = error.blame is Blame.EITHER and self._is_own(uri)
            raise (error.blamed(Blame.WORKER) if is_own else error).of_output() from error

    def remove(self, uri: str) -> None:
        """Removes an object that :meth:`put` has written.

        Raises:
            PipeqError: as :meth:`put` raises.
        """
        try:
            self._stores.of(uri).remove(_locate(self._all, uri), display(uri))
        except StoreError as error:
            raise error.of_output() from error

    def _is_own(self, uri: str) -> bool:
        try:
            self._own.check(uri)
        except StoreError:
            return False
        return True

    def close(self) -> None:
        """Closes the connections to the stores."""
        self._stores.close()


def _locate(allow: AllowList, uri: str) -> Any:
    store = registry.find(schemes.of(uri))
    if store is None or not store.writable:
        known = schemes.listed(name for name, one in registry.OURS.items() if one.writable)
        raise PipeqError(ErrorCode.INPUT_FORBIDDEN, f"{display(uri)} cannot be written: output goes to {known}")
    try:
        return allow.check(uri)
    except StoreError as error:
        raise error.of_input() from error
