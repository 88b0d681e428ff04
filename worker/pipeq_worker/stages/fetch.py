"""FETCH: Ref -> bytes, inline or from the store of its scheme. Before: accept. After: decode."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import Ref
from pipeq.contract.reading import UnreadableError, json_value

from pipeq_worker.settings.sections import InputSettings, S3Settings
from pipeq_worker.stores import deadline
from pipeq_worker.stores.allow import AllowList
from pipeq_worker.stores.base import Access, Source, StoreError, display
from pipeq_worker.stores.gate import Gates
from pipeq_worker.stores.registry import Stores
from pipeq_worker.stores.signed import Signatures, looks_like_result, sign_objects

#: Bytes that one read asks for.
_CHUNK = 2**20
#: How long a read waits at most for the libraries of stores, in seconds.
WARM_S = 60.0
#: Largest result that a chain passes on to its next task; parsed JSON takes ten times as much memory.
MOST_RESULT_BYTES = 64 * 2**20


def _no_reserve(size: int) -> None:
    """The default, when memory is not budgeted."""


class Fetcher:
    """Reads references. One object serves all threads.

    Args:
        inputs: what may be read, and how much of it.
        s3: how to reach S3.
        threads: number of threads that fetch at the same time, for the connection pools.
        signatures: recognizes references that workers have signed.

    Raises (from the constructor):
        SettingsError: an entry of ``allow``, ``private_networks`` or ``ca_bundle`` cannot be used.
        PipeqError: an entry of ``allow`` needs a package that is not installed.
    """

    def __init__(
        self, inputs: InputSettings, s3: S3Settings, threads: int = 16, signatures: Signatures | None = None
    ) -> None:
        self._max_bytes = inputs.max_bytes
        self._max_fetch_s = inputs.max_fetch_s
        self._allow = AllowList(inputs.allow, "[inputs] allow", "--allow")
        self._signatures = signatures
        # A connection pool smaller than the number of threads would discard connections.
        self._stores = Stores(Access(inputs.timeout_s, threads, inputs, s3))
        self._gates = Gates()
        self._warm = threading.Event()
        self._warm.set()
        # The store of https checks its networks and certificates, which must be right even if nothing is allowed yet.
        for scheme in ("https", *self._allow.schemes):
            self._stores.get(scheme)

    def fetch(self, ref: Ref, reserve: Callable[[int], None] = _no_reserve) -> bytes:
        """Reads the bytes of a reference.

        Args:
            ref: the reference; its SHA-256 is checked if it has one.
            reserve: called once with the size in bytes, before they are read; an exception that it raises ends the
                fetch. If an https server does not give the size, it is called after they are read.

        Raises:
            PipeqError: ``input_forbidden`` (settings, or the store's own access control), ``input_not_found``,
                ``input_too_large``, ``input_unavailable`` (in most cases retryable) or ``input_undecodable`` (SHA-256).
        """
        name = ref_name(ref)
        with deadline.within(self._max_fetch_s):
            try:
                with self._open(ref, name) as source:
                    data = self._read(source, name, reserve)
            except PipeqError as error:
                if deadline.has_passed() and error.code == ErrorCode.INPUT_UNAVAILABLE:
                    raise self._too_slow(name) from error
                raise
        if ref.sha256 is not None:
            _check_digest(data, ref.sha256.lower(), name)
        return data

    def check(self, ref: Ref, *, waits: bool = False) -> None:
        """Raises if the store of a reference is known to be away now. Opens nothing.

        Args:
            ref: the reference.
            waits: whether it has waited for a thread already, as others do for a store that is away.

        Raises:
            PipeqError: as :meth:`fetch`.
        """
        if ref.uri is None or ref.signature is not None:
            return
        try:
            place = self._allow.check(ref.uri)
            self._gates.of(self._stores.of(ref.uri).server(place)).check(ref_name(ref), waits=waits)
        except StoreError as error:
            raise error.of_input() from error

    def warm_up_soon(self) -> None:
        """Notes that :meth:`warm_up` will be called on another thread."""
        self._warm.clear()

    def warm_up(self) -> None:
        """Prepares the stores of allowed schemes, so that the first task does not pay for it."""
        try:
            for scheme in self._allow.schemes:
                self._stores.get(scheme).warm_up()
        finally:
            self._warm.set()

    def wait_until_warm(self) -> None:
        """Waits for that, so that a read takes no longer than it does: its time is limited, and a task pays for it."""
        self._warm.wait(WARM_S)

    def close(self) -> None:
        """Closes the connections to the stores."""
        self._stores.close()

    @contextmanager
    def _open(self, ref: Ref, name: str) -> Iterator[Source]:
        uri = ref.uri
        if uri is None:
            encoded = ref.base64 or ""
            # Decoded only after its size was reserved.
            size = len(encoded) // 4 * 3 - encoded[-2:].count("=")
            yield Source(size, _Late(lambda: base64.b64decode(encoded)).read)
            return
        try:
            place = self._allowed(ref).check(uri)
            store = self._stores.of(uri)
            gate = self._gates.of(store.server(place))
            with gate.call(name), store.open(place, name) as source:
                yield gate.watched(source)
        except StoreError as error:
            raise error.of_input() from error

    def result_ref(self, value: Any) -> Ref | None:
        """Returns the reference to another task's result, if a worker of this fleet has signed it; else None."""
        if self._signatures is None or not looks_like_result(value):
            return None
        try:
            ref = Ref(**value)
        except PipeqError:
            return None
        return ref if self._signatures.knows(ref, "result") else None

    def fetch_result(self, ref: Ref, reserve: Callable[[int], None]) -> Any:
        """Reads the result behind a reference from :meth:`result_ref`, and signs the references to its objects."""
        assert self._signatures is not None
        assert ref.uri is not None

        def limited(size: int) -> None:
            if size > MOST_RESULT_BYTES:
                reason = f"the result before this one is {size} bytes, at most {MOST_RESULT_BYTES} are handed on"
                raise PipeqError(ErrorCode.INPUT_TOO_LARGE, reason)
            reserve(size)

        data = self.fetch(ref, limited)
        try:
            value = json_value(data)
        except UnreadableError as error:
            reason = f"{ref_name(ref)} is no result: {error}"
            raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error
        sign_objects(value, ref.uri, self._signatures)
        return value

    def _allowed(self, ref: Ref) -> AllowList:
        """The list of places where this reference may lie."""
        signatures = self._signatures
        if ref.signature is None or signatures is None:
            return self._allow
        ours = signatures.knows(ref, "result" if ref.sha256 else "object")
        return signatures.allow if ours else self._allow

    def _read(self, source: Source, name: str, reserve: Callable[[int], None]) -> bytes:
        size, read = source
        if size is not None:
            self._check_size(size, name)
            with deadline.paused():
                reserve(size)
        buffer = io.BytesIO()
        while chunk := read(min(_CHUNK, self._max_bytes + 1 - buffer.tell())):
            buffer.write(chunk)
            # Counted here, because the size that a store declares cannot be trusted, and a file may grow.
            self._check_size(buffer.tell(), name, "more than ")
            if deadline.has_passed():
                raise self._too_slow(name)
        if size is None:
            reserve(buffer.tell())
        elif size != buffer.tell():
            reason = f"{name} was said to have {size} bytes and gave {buffer.tell()}; did it change meanwhile?"
            raise PipeqError(ErrorCode.INPUT_UNAVAILABLE, reason)
        # Returns BytesIO's own buffer, without a copy.
        return buffer.getvalue()

    def _too_slow(self, name: str) -> PipeqError:
        reason = f"{name} took over {self._max_fetch_s:g} s to read ([inputs] max_fetch_s)"
        return PipeqError(ErrorCode.INPUT_UNAVAILABLE, reason)

    def _check_size(self, size: int, name: str, more: str = "") -> None:
        if size > self._max_bytes:
            size = self._max_bytes if more else size
            raise PipeqError(
                ErrorCode.INPUT_TOO_LARGE,
                f"{name} has {more}{size} bytes, and this worker reads {self._max_bytes} ([inputs] max_bytes)",
            )


class _Late:
    """Bytes that are made at the first read."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._stream: io.BytesIO | None = None

    def read(self, size: int) -> bytes:
        """Reads at most ``size`` bytes; returns none at the end."""
        if self._stream is None:
            self._stream = io.BytesIO(self._make())
        return self._stream.read(size)


def ref_name(ref: Ref) -> str:
    """The name of a reference in error messages: its URI without credentials and signature."""
    return "the inline input" if ref.uri is None else display(ref.uri)


def _check_digest(data: bytes, wanted: str, name: str) -> None:
    actual = hashlib.sha256(data).hexdigest()
    if actual != wanted:
        reason = f"{name} is not what was sent: its SHA-256 is {actual}, the message says {wanted}"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
