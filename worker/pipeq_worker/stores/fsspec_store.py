"""FSSPEC_STORE: the base of gs, az and hf: reads and writes objects through a file system of fsspec.

    check (objects.py) -> information about the object -> its blocks, one request each -> information again

fsspec may wait for ever, so each call is limited to the time that is left (deadline.py). A call of an asynchronous file
system is then cancelled. A call of a synchronous one runs in a thread of its own, which is abandoned.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

from pipeq.contract import shown
from pipeq.contract.errors import Blame
from pipeq.contract.extras import require
from pipeq.contract.schemes import SCHEMES

from pipeq_worker.observe.own_faults import is_own_fault_of_call
from pipeq_worker.stores import deadline
from pipeq_worker.stores.base import Access, Fault, Source, StoreError
from pipeq_worker.stores.faults import fault_in_chain, is_forbidden
from pipeq_worker.stores.objects import ObjectPlace, ObjectStore

#: Number of bytes that one request asks for.
BLOCK_BYTES = 8 * 2**20
#: Characters that URIs must not contain here: libraries drop some of them, and would read another object than checked.
_CONTROL = frozenset(map(chr, (*range(32), 127)))


class FsspecStore(ObjectStore):
    """Objects in a file system of fsspec. A subclass creates the file system, and classifies its errors.

    Raises (from the constructor):
        MissingPackageError: a package is missing; the sentence says what to install.
    """

    #: Fields of an object's information; at least one of them changes whenever the content changes.
    version_fields: ClassVar[tuple[str, ...]]
    #: Whether a refusal says that the credentials are wrong, unless it says that this place is forbidden to them.
    knows_credentials: ClassVar[bool] = True
    #: More arguments for ``info``.
    info_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        require(self.scheme)
        self._lock = threading.Lock()
        self._fs: Any = None
        # Bounds the number of threads, including abandoned ones, that call a synchronous file system.
        self._turns = threading.BoundedSemaphore(max(1, access.connections))

    @abstractmethod
    def build(self) -> Any:
        """Creates the file system, without a cache of listings. Its library finds the credentials."""

    def fault_of(self, error: BaseException) -> Fault | None:
        """Returns the fault of an error of this library that has no HTTP status; None if it is unknown."""
        return None

    @classmethod
    def split(cls, uri: str) -> ObjectPlace:
        reserved = SCHEMES[cls.scheme].reserved if cls.scheme in SCHEMES else ""
        if any(char in _CONTROL or char in reserved for char in uri.removeprefix(f"{cls.scheme}://")):
            also = f" or one of {' '.join(reserved)}" if reserved else ""
            raise ValueError(
                f"its {cls.bucket} or key holds a control character{also}, which its library reads otherwise"
            )
        return super().split(uri)

    @contextmanager
    def open(self, place: ObjectPlace, name: str) -> Iterator[Source]:
        self.require_key(place, name)
        with self._translated(name):
            fs, path = self.filesystem(), _path(place)
            info = self._file(fs, place, name)
            size = info.get("size")
            if not isinstance(size, int) or size < 0:
                raise StoreError(Fault.PERMANENT, f"{name}: the store does not say its size")
        blocks = self._blocks(fs, path, info, size, name)
        left = memoryview(b"")

        def read(most: int) -> bytes:
            nonlocal left
            if not left:
                with self._translated(name):
                    left = memoryview(next(blocks, b""))
            part, left = left[:most], left[most:]
            return bytes(part)

        yield Source(size, read)

    def put(self, place: ObjectPlace, data: bytes, media_type: str, name: str) -> None:
        self._require_object(place, name)
        with self._translated(name):
            fs = self.filesystem()
            self._call(fs, fs.pipe_file, _path(place), data, **self.put_options(media_type))

    def put_options(self, media_type: str) -> dict[str, Any]:
        """Returns more arguments for ``pipe_file``."""
        return {}

    def version(self, place: ObjectPlace, name: str) -> str:
        self.require_key(place, name)
        with self._translated(name):
            found = self._version(self._file(self.filesystem(), place, name))
        if not any(found):
            raise StoreError(Fault.PERMANENT, f"{name}: the store says no version of it")
        return repr(found)

    def look(self, prefix: str, name: str) -> None:
        """Checks that the bucket exists. Passes if that is forbidden, because its objects may still be readable."""
        bucket = self.split(prefix).bucket
        try:
            with self._translated(name):
                fs = self.filesystem()
                self._call(fs, fs.info, bucket)
        except StoreError as error:
            if error.fault is not Fault.REFUSED:
                raise

    def remove(self, place: ObjectPlace, name: str) -> None:
        with self._translated(name):
            fs = self.filesystem()
            self._call(fs, fs.rm_file, _path(place))

    def warm_up(self) -> None:
        """Imports the library and creates the file system, which takes a second or more."""
        with suppress(StoreError), self._translated(self.scheme):
            self.filesystem()

    def close(self) -> None:
        # fsspec's file systems close their connections when nothing refers to them any more.
        with self._lock:
            self._fs = None

    def filesystem(self) -> Any:
        """Returns the file system; creates it at the first call."""
        with self._lock:
            if self._fs is None:
                self._fs = self.build()
            return self._fs

    @classmethod
    def _require_object(cls, place: ObjectPlace, name: str) -> None:
        if not place.key:
            raise StoreError(Fault.PERMANENT, f"{name} names a {cls.bucket}, not an object")

    def _file(self, fs: Any, place: ObjectPlace, name: str) -> dict[str, Any]:
        """Returns the store's information about an object."""
        info: dict[str, Any] = self._call(fs, fs.info, _path(place), **self.info_options)
        # Libraries drop a slash at the end, and would then find a folder or another object.
        if info.get("type") == "directory" or place.key.endswith("/"):
            raise StoreError(Fault.MISSING, f"{name} names a folder, not an object")
        return info

    def _blocks(self, fs: Any, path: str, info: dict[str, Any], size: int, name: str) -> Iterator[bytes]:
        at = 0
        while at < size:
            # The last block asks for one more byte, to detect an object that has grown.
            end = at + BLOCK_BYTES if at + BLOCK_BYTES < size else size + 1
            block = self._read(fs, path, at, end, size)
            yield block
            if not block:
                return  # the object has shrunk; the reader detects that by the size
            at += len(block)
        # A single request reads one version of the object, but several may read parts of two.
        if size > BLOCK_BYTES:
            now = self._call(fs, fs.info, path, **self.info_options)
            if self._version(now) != self._version(info):
                raise StoreError(Fault.PASSING, f"{name} changed while it was read")

    def _read(self, fs: Any, path: str, start: int, end: int, size: int) -> bytes:
        if fs.async_impl:
            return self._call(fs, fs.cat_file, path, start=start, end=end)

        def read() -> bytes:
            # The size is known; without it, the file system would ask for it with each block.
            with fs.open(path, "rb", size=size, cache_type="none", block_size=BLOCK_BYTES) as file:
                file.seek(start)
                return bytes(file.read(end - start))

        return self._call(fs, read)

    def _version(self, info: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(info.get(field) for field in self.version_fields)

    def _call(self, fs: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls the library, for at most the time that is left until the deadline."""
        left = deadline.remaining_s()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        if fs.async_impl:
            # 10 ms more, so that the deadline has passed when the timeout is handled.
            return call(*args, timeout=None if left == float("inf") else left + 0.01, **kwargs)
        return self._in_thread(lambda: call(*args, **kwargs), left)

    def _in_thread(self, call: Callable[[], Any], timeout_s: float) -> Any:
        if timeout_s == float("inf"):
            return call()
        if not self._turns.acquire(timeout=timeout_s):
            raise TimeoutError("too many calls before this one do not end")
        answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def run() -> None:
            try:
                answers.put((call(), None))
            except BaseException as error:
                answers.put((None, error))
            finally:
                self._turns.release()

        threading.Thread(target=run, name="store-call", daemon=True).start()
        try:
            answer, error = answers.get(timeout=max(0, deadline.remaining_s()) + 0.01)
        except Empty:
            raise TimeoutError("no answer in time") from None
        if error is not None:
            raise error
        return answer

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            raise self._store_error(error, name) from error

    def _store_error(self, error: Exception, name: str) -> StoreError:
        fault = fault_in_chain(error, self.fault_of)
        kind = type(error).__name__
        said = f"{kind}: {shown.line(str(error), 200)}" if str(error) else kind
        reason = {
            Fault.MISSING: f"does not have it ({kind})",
            # Without the message, because it may name the account, which producers must not see.
            Fault.REFUSED: f"refused this worker's credentials ({kind})",
            Fault.PASSING: f"failed for now ({said})",
        }.get(fault, f"does not take the request ({said})")
        return StoreError(fault, f"{name}: the store {reason}", kind, self._blame(fault, error))

    def _blame(self, fault: Fault, error: Exception) -> Blame:
        if is_own_fault_of_call(error):
            return Blame.WORKER
        if fault is not Fault.REFUSED:
            return Blame.TASK
        return Blame.WORKER if self.knows_credentials and not is_forbidden(error) else Blame.EITHER


def _path(place: ObjectPlace) -> str:
    return f"{place.bucket}/{place.key}"
