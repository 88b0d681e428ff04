"""BASE: what a store is: all that a worker does with the URIs of one scheme. Used by allow, fetch, writer and registry.

    check (before anything is opened, without network) -> place -> open (to read) or put (to write)

A scheme is one subclass of :class:`Store` in a file of its own, and one entry of the registry (registry.py); that of a
user is an entry point of the user's package (docs/stores.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.settings.read import InputSettings, S3Settings


def display(uri: str) -> str:
    """The URI as errors and logs may show it: without user, password and signature."""
    return shown.uri(uri)


class Fault(Enum):
    """What kind of failure a store's is."""

    #: There is no such thing, or no such bucket.
    MISSING = auto()
    #: Settings do not allow it, or the store does not take the worker's credentials, or there are none.
    REFUSED = auto()
    #: Unreachable, throttled or broken for now: the same call may succeed later.
    PASSING = auto()
    #: The same call will fail again.
    PERMANENT = auto()
    #: It came in a form that nobody asked for.
    UNDECODABLE = auto()


_INPUT_CODES = {
    Fault.MISSING: ErrorCode.INPUT_NOT_FOUND,
    Fault.REFUSED: ErrorCode.INPUT_FORBIDDEN,
    Fault.PASSING: ErrorCode.INPUT_UNAVAILABLE,
    Fault.PERMANENT: ErrorCode.INPUT_UNAVAILABLE,
    Fault.UNDECODABLE: ErrorCode.INPUT_UNDECODABLE,
}


class StoreError(Exception):
    """The one error of all stores.

    Args:
        fault: what kind of failure, which decides the code that a producer sees, and whether the worker tries again.
        sentence: names the thing, as the caller calls it, and says what is wrong; without credentials.
        code: the store's own code, for those who call it.
    """

    def __init__(self, fault: Fault, sentence: str, code: str = "") -> None:
        super().__init__(fault, sentence, code)
        self.fault = fault
        self.sentence = sentence
        self.code = code

    def __str__(self) -> str:
        return self.sentence

    def of_input(self) -> PipeqError:
        """What it is to a producer whose input was to be read."""
        return PipeqError(_INPUT_CODES[self.fault], self.sentence, self.fault is Fault.PASSING)

    def of_output(self) -> PipeqError:
        """What it is to a producer whose result was to be written."""
        return PipeqError(ErrorCode.OUTPUT_FAILED, self.sentence, self.fault is Fault.PASSING)


class Source(NamedTuple):
    """Something that is open for reading."""

    #: In bytes; None where the store does not say.
    size: int | None
    #: Takes a number of bytes and gives at most so many; none at the end. Raises StoreError.
    read: Callable[[int], bytes]


@dataclass(frozen=True)
class Access:
    """What a store may need to know of the worker's settings."""

    #: How long one connect or read may take, in seconds. That all of them together end in time is kept by deadline.py.
    timeout_s: float
    #: How many threads use the store at once.
    connections: int
    #: Private networks and certificate authorities, of https.
    inputs: InputSettings = field(default_factory=InputSettings)
    s3: S3Settings = field(default_factory=S3Settings)


@dataclass(frozen=True)
class Prefixes:
    """The entries of an allow list that are of one scheme."""

    #: Each as :meth:`Store.prefix` reads it.
    entries: tuple[Any, ...]
    #: Where they are set, for the errors: ``[inputs] allow``.
    key: str
    #: The command line's name for the same, if there is one: ``--allow``.
    option: str | None = None

    def forbidden(self, uri: str, suggestion: str, name: str | None = None) -> StoreError:
        """That no entry allows a URI.

        Args:
            uri: what is not allowed.
            suggestion: the entry that would allow it.
            name: what the error calls it; the URI without credentials where it is absent.
        """
        suggestion = display(suggestion)
        option = f", or start the worker with {self.option} {suggestion}" if self.option else ""
        return StoreError(
            Fault.REFUSED,
            f'this worker\'s settings do not allow {name or display(uri)}: add "{suggestion}" to {self.key}{option}',
        )


def is_below(value: str, entry: str) -> bool:
    """Whether a text lies below an entry: one that ends in ``/`` is a prefix, any other that one thing or a folder."""
    return value.startswith(entry) if entry.endswith("/") else value == entry or value.startswith(entry + "/")


class Store(ABC):
    """Reads, and perhaps writes, what URIs of one scheme name. One object serves all threads.

    Its constructor takes an :class:`Access` and connects to nothing.

    Raises (from the constructor):
        PipeqError: a setting cannot be used, or a package is missing: the worker does not start.
    """

    #: What stands before ``://``.
    scheme: ClassVar[str]
    #: Whether :meth:`put` works.
    writable: ClassVar[bool] = False
    #: Whether :meth:`version` works, without which no model is kept in the cache.
    has_versions: ClassVar[bool] = False

    def __init__(self, access: Access) -> None:
        self._access = access

    @classmethod
    @abstractmethod
    def prefix(cls, entry: str) -> Any:
        """An entry of an allow list, as :meth:`check` wants to compare it.

        Raises:
            ValueError: the rest of a sentence about the entry: ``cannot be used: it names no bucket``.
        """

    @classmethod
    @abstractmethod
    def check(cls, uri: str, prefixes: Prefixes, name: str | None = None) -> Any:
        """The place that a URI names, if an entry allows it. Opens nothing and asks nobody.

        Raises:
            StoreError: ``REFUSED``: no entry allows it, or other readers of URIs might take it for another place.
        """

    @abstractmethod
    def open(self, place: Any, name: str) -> AbstractContextManager[Source]:
        """Opens a place of :meth:`check` for reading.

        Each step that waits waits no longer than :func:`pipeq_worker.stores.deadline.remaining_s`.

        Args:
            place: what is to be read.
            name: what errors call it.

        Raises (the function of the source, too):
            StoreError: whatever the fault is.
        """

    def put(self, place: Any, data: bytes, media_type: str, name: str) -> None:
        """Writes a place of :meth:`check`, as a whole or not at all; what is there is replaced.

        Raises:
            StoreError: whatever the fault is.
        """
        raise NotImplementedError(f"{self.scheme}:// is not written")

    def version(self, place: Any, name: str) -> str:
        """Differs where what is stored there does.

        Raises:
            StoreError: whatever the fault is.
        """
        raise NotImplementedError(f"{self.scheme}:// has no versions")

    def look(self, prefix: Any, name: str) -> None:
        """Whether what an allow list names is there, as far as that can be known. For `pipeq worker --check`.

        Raises:
            StoreError: it is not.
        """

    def remove(self, place: Any, name: str) -> None:
        """Takes back what :meth:`put` has written. For `pipeq worker --check`.

        Raises:
            StoreError: whatever the fault is.
        """

    def warm_up(self) -> None:
        """Does what takes time before the first use; what is wrong shows when it is used."""

    def close(self) -> None:
        """Closes the connections. A later call opens new ones."""
