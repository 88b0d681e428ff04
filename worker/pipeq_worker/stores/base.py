"""BASE: the interface of a store, which reads and writes the URIs of one scheme. Used by all that touches stores.

    check (before anything is opened, without network) -> place -> open (to read) or put (to write)

A scheme is one subclass of :class:`Store` in a file of its own, and one entry of the registry (registry.py). A user's
scheme is an entry point of the user's package (docs/stores.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple

from pipeq.contract import shown
from pipeq.contract.errors import Blame, ErrorCode, PipeqError

from pipeq_worker.settings.sections import InputSettings, S3Settings


def display(uri: str) -> str:
    """The URI in the form that errors and logs may show: without user, password and signature."""
    return shown.uri(uri)


class Fault(Enum):
    """The kind of a store's failure."""

    #: The object, or its bucket, does not exist.
    MISSING = auto()
    #: The settings do not allow it, or the store refuses the worker's credentials, or there are none.
    REFUSED = auto()
    #: Unreachable, throttled or broken for now: the same call may succeed later.
    PASSING = auto()
    #: The same call would fail again.
    PERMANENT = auto()
    #: It came in an encoding that was not asked for.
    UNDECODABLE = auto()


_INPUT_CODES = {
    Fault.MISSING: ErrorCode.INPUT_NOT_FOUND,
    Fault.REFUSED: ErrorCode.INPUT_FORBIDDEN,
    Fault.PASSING: ErrorCode.INPUT_UNAVAILABLE,
    Fault.PERMANENT: ErrorCode.INPUT_UNAVAILABLE,
    Fault.UNDECODABLE: ErrorCode.INPUT_UNDECODABLE,
}


class StoreError(Exception):
    """The only exception that stores raise.

    Args:
        fault: the kind of failure. It decides the error code that a producer sees, and whether the worker tries again.
        sentence: names the object and says what is wrong; without credentials.
        code: the store's own error code, for callers.
        blame: whose fault it is, so far as that is known.
    """

    #: Its cause, if there is one, has the traceback that counts (observe/traces.py).
    is_found_by_pipeq = True

    def __init__(self, fault: Fault, sentence: str, code: str = "", blame: Blame = Blame.TASK) -> None:
        super().__init__(fault, sentence, code)
        self.fault = fault
        self.sentence = sentence
        self.code = code
        self.blame = blame

    def __str__(self) -> str:
        return self.sentence

    def blamed(self, blame: Blame) -> StoreError:
        """Returns the same error as somebody else's fault."""
        return StoreError(self.fault, self.sentence, self.code, blame)

    def of_input(self) -> PipeqError:
        """The error for a producer whose input could not be read."""
        return self._error(_INPUT_CODES[self.fault])

    def of_output(self) -> PipeqError:
        """The error for a producer whose result could not be written."""
        return self._error(ErrorCode.OUTPUT_FAILED)

    def _error(self, code: ErrorCode) -> PipeqError:
        error = PipeqError(code, self.sentence, self.fault is Fault.PASSING)
        error.blame = self.blame
        return error


class Source(NamedTuple):
    """An object that is open for reading."""

    #: Its size in bytes; None if the store does not give it.
    size: int | None
    #: Reads at most the given number of bytes; returns none at the end. Raises StoreError.
    read: Callable[[int], bytes]


@dataclass(frozen=True)
class Access:
    """The settings that a store may need."""

    #: How long one connect or read may take, in seconds. deadline.py bounds all of them together.
    timeout_s: float
    #: Number of threads that use the store at the same time.
    connections: int
    #: Holds the private networks and certificate authorities of https.
    inputs: InputSettings = field(default_factory=InputSettings)
    s3: S3Settings = field(default_factory=S3Settings)


@dataclass(frozen=True)
class Prefixes:
    """The entries of an allow list that belong to one scheme."""

    #: Each entry as :meth:`Store.prefix` returned it.
    entries: tuple[Any, ...]
    #: The setting that holds them, for error messages: ``[inputs] allow``.
    key: str
    #: The command line's option for them, if there is one: ``--allow``.
    option: str | None = None

    def forbidden(self, uri: str, suggestion: str, name: str | None = None) -> StoreError:
        """Returns the error for a URI that no entry allows.

        Args:
            uri: the URI.
            suggestion: the entry that would allow it.
            name: the name that the error uses; by default the URI without credentials.
        """
        suggestion = display(suggestion)
        option = f", or start the worker with {self.option} {suggestion}" if self.option else ""
        return StoreError(
            Fault.REFUSED,
            f'this worker\'s settings do not allow {name or display(uri)}: add "{suggestion}" to {self.key}{option}',
        )


def is_below(value: str, entry: str) -> bool:
    """Whether a text lies below an entry: if that ends in ``/`` it is a prefix, else a single object or a folder."""
    return value.startswith(entry) if entry.endswith("/") else value == entry or value.startswith(entry + "/")


class Store(ABC):
    """Reads, and perhaps writes, the URIs of one scheme. One object serves all threads.

    Its constructor takes an :class:`Access`, and does not connect.

    Raises (from the constructor):
        PipeqError: a setting cannot be used, or a package is missing; the worker does not start.
    """

    #: The part of the URI before ``://``.
    scheme: ClassVar[str]
    #: Whether :meth:`put` is implemented.
    writable: ClassVar[bool] = False
    #: Whether :meth:`version` is implemented. Models can be cached only from such a store.
    has_versions: ClassVar[bool] = False

    def __init__(self, access: Access) -> None:
        self._access = access

    @classmethod
    @abstractmethod
    def prefix(cls, entry: str) -> Any:
        """Parses an entry of an allow list into the form that :meth:`check` compares.

        Raises:
            ValueError: the end of a sentence about the entry: ``cannot be used: it names no bucket``.
        """

    @classmethod
    @abstractmethod
    def check(cls, uri: str, prefixes: Prefixes, name: str | None = None) -> Any:
        """Returns the place that a URI names, if an entry allows it. Opens nothing, and uses no network.

        Raises:
            StoreError: ``REFUSED``: no entry allows it, or other parsers of URIs might read it as another place.
        """

    @abstractmethod
    def open(self, place: Any, name: str) -> AbstractContextManager[Source]:
        """Opens a place from :meth:`check` for reading.

        No step may wait longer than :func:`pipeq_worker.stores.deadline.remaining_s`.

        Args:
            place: the place to read.
            name: the name that error messages use.

        Raises (the function of the source, too):
            StoreError: with any fault.
        """

    def put(self, place: Any, data: bytes, media_type: str, name: str) -> None:
        """Writes a place from :meth:`check`, either completely or not at all; an existing object is replaced.

        Raises:
            StoreError: with any fault.
        """
        raise NotImplementedError(f"{self.scheme}:// is not written")

    def version(self, place: Any, name: str) -> str:
        """Returns a text that changes when the object changes.

        Raises:
            StoreError: with any fault.
        """
        raise NotImplementedError(f"{self.scheme}:// has no versions")

    def look(self, prefix: Any, name: str) -> None:
        """Checks that an entry of an allow list exists, as far as that can be known. For `pipeq worker --check`.

        Raises:
            StoreError: it does not exist.
        """

    def server(self, place: Any) -> str:
        """Returns what answers for a place, as text: when it fails for some places, it fails for all that share it."""
        return self.scheme

    def remove(self, place: Any, name: str) -> None:
        """Removes an object that :meth:`put` has written. For `pipeq worker --check`.

        Raises:
            StoreError: with any fault.
        """

    def warm_up(self) -> None:
        """Does slow preparations before the first use. Faults are not raised here, but when the store is used."""

    def close(self) -> None:
        """Closes the connections. A later call opens new ones."""
