"""SIGNED: references that one worker passes to another, in a chain or to a chord's body. Used by fetch and deliver.

The next task must get the same value whether a result was passed on or went to the store, and producers need not be
allowed to read the store for that. So the worker that wrote an object signs its URI, and any worker of the fleet reads
a signed URI, if it lies where results go. The key lies in Redis, where workers may read it and producers may not
(deploy/redis-users.acl). No record and no result that a producer sees holds a signature.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pipeq.contract import keys
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import Ref

from pipeq_worker.settings.sections import ResultSettings
from pipeq_worker.stores.allow import AllowList

if TYPE_CHECKING:
    import redis

#: A whole result, as JSON, or an object that a result refers to. The signature of one kind is not valid for the other.
Kind = Literal["result", "object"]

_KEY_BYTES = 32
#: Number of keys that a worker still accepts after Redis has lost them.
MOST_KEYS = 4
#: Greatest age of the known key when a reference is signed, in seconds.
LEARN_S = 1.0
_OBJECT_NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*\.[a-z]+")


class _NoKeyError(Exception):
    """Redis does not say the key."""


class Signatures:
    """Signs references, and verifies signatures. Safe for any number of threads.

    Args:
        connect: returns the Redis that holds the fleet's key. Called when there is something to sign or to verify:
            to import redis takes a fifth of the time in which a child starts, and most never need it.
        results: where results may lie.
    """

    def __init__(self, connect: Callable[[], redis.Redis], results: ResultSettings) -> None:
        self._connect = connect
        self._redis: redis.Redis | None = None
        own = (results.store,) if results.store else ()
        #: Workers write only below these prefixes; a signature for any other place is not accepted.
        self.allow = AllowList((*results.allow, *own), "[results] allow")
        #: Known keys, newest first.
        self._keys: list[bytes] = []
        #: When to read the key again (monotonic clock), so that workers that start after Redis lost its keys can verify
        #: it.
        self._learn_again_at = 0.0
        self._lock = threading.Lock()

    def sign(self, uri: str, kind: Kind, sha256: str = "") -> str:
        """Returns the signature of a URI and of its content.

        Raises:
            PipeqError: ``output_failed``, retryable: the key is not known yet, and Redis does not answer.
        """
        try:
            if time.monotonic() >= self._learn_again_at:
                self._learn()
            return _signature(self._keys[0], uri, kind, sha256)
        except _NoKeyError as error:
            raise PipeqError(ErrorCode.OUTPUT_FAILED, "Redis does not say the key for signatures", True) from error

    def knows(self, ref: Ref, kind: Kind) -> bool:
        """Whether a worker of this fleet has signed this reference.

        Raises:
            PipeqError: ``input_unavailable``: Redis does not answer.
        """
        if ref.uri is None or ref.signature is None:
            return False
        try:
            for is_last in (False, True):
                wanted = [_signature(key, ref.uri, kind, ref.sha256 or "") for key in list(self._keys)]
                if any(hmac.compare_digest(one, ref.signature) for one in wanted):
                    return True
                if not is_last:
                    # Another worker may have made a new key, if Redis has lost the old one.
                    self._learn()
        except _NoKeyError as error:
            raise PipeqError(ErrorCode.INPUT_UNAVAILABLE, "Redis does not say the key for signatures") from error
        return False

    def _learn(self) -> None:
        """Reads the fleet's key from Redis. If there is none, stores this worker's last key, or a new one."""
        from redis.exceptions import RedisError, ResponseError

        with self._lock:
            self._redis = self._redis or self._connect()
            mine = self._keys[0] if self._keys else os.urandom(_KEY_BYTES)
            try:
                self._redis.set(keys.SIGNING_KEY, mine, nx=True)
                try:
                    key = self._redis.get(keys.SIGNING_KEY)
                except ResponseError:  # the key holds no string
                    key = None
                if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
                    self._redis.set(keys.SIGNING_KEY, mine)
                    key = mine
            except RedisError as error:
                raise _NoKeyError from error
            self._keys = [key, *[other for other in self._keys if other != key][: MOST_KEYS - 1]]
            self._learn_again_at = time.monotonic() + LEARN_S


def _signature(key: bytes, uri: str, kind: Kind, sha256: str) -> str:
    text = "\0".join((kind, sha256, uri))
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def looks_like_result(value: Any) -> bool:
    """Whether a value has the form of a reference to another task's result in the store."""
    return isinstance(value, dict) and value.keys() == {"uri", "sha256", "signature"}


def objects_of(result_uri: str) -> str:
    """Prefix of the URIs of a result's objects."""
    return f"{result_uri.removesuffix('.json')}.objects/"


def sign_objects(value: Any, result_uri: str, signatures: Signatures) -> None:
    """Signs the references in a result to its own objects, in place.

    A result may repeat what a producer sent, so only names that a worker makes are signed (outputs.py), none with
    ``..``.
    """
    below = objects_of(result_uri)
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            left += one.values()
            uri = one.get("uri")
            if isinstance(uri, str) and uri.startswith(below) and _OBJECT_NAME.fullmatch(uri, len(below)):
                one["signature"] = signatures.sign(uri, "object")
