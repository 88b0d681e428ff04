"""OBJECTS: what the object stores (``scheme://bucket/key``) share. Base of s3 and similar stores."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from pipeq_worker.stores.base import Fault, Prefixes, Store, StoreError, display, is_below
from pipeq_worker.stores.climbing import climbs


class ObjectPlace(NamedTuple):
    """The place of an object."""

    bucket: str
    key: str


class ObjectStore(Store):
    """Base class of object stores. Names are taken literally, and compared as they are written."""

    #: The store's own word for a bucket.
    bucket: ClassVar[str] = "bucket"

    @classmethod
    def split(cls, uri: str) -> ObjectPlace:
        """``s3://bucket/key`` -> bucket and key. Nothing is decoded: ``%20``, ``?`` and ``#`` stand for themselves.

        Raises:
            ValueError: a segment is ``.`` or ``..``, in any encoding: many servers resolve those, some after decoding.
        """
        place = uri.removeprefix(f"{cls.scheme}://")
        if climbs(place, "/\\"):
            raise ValueError(f'its {cls.bucket} or key holds "." or ".." segments')
        bucket, _, key = place.partition("/")
        return ObjectPlace(bucket, key)

    @classmethod
    def prefix(cls, entry: str) -> str:
        try:
            cls.split(entry)
        except ValueError as error:
            raise ValueError(f"cannot be used: {error}") from error
        return entry

    @classmethod
    def check(cls, uri: str, prefixes: Prefixes, name: str | None = None) -> ObjectPlace:
        try:
            place = cls.split(uri)
        except ValueError as error:
            raise StoreError(Fault.REFUSED, f"{name or display(uri)} is not touched: {error}") from error
        if not place.bucket:
            raise StoreError(Fault.REFUSED, f"{name or display(uri)} names no {cls.bucket}")
        if not any(is_below(uri, entry) for entry in prefixes.entries):
            raise prefixes.forbidden(uri, f"{cls.scheme}://{place.bucket}/", name)
        return place

    @classmethod
    def require_key(cls, place: ObjectPlace, name: str) -> None:
        """Raises StoreError if a place is a bucket without a key."""
        if not place.key:
            raise StoreError(Fault.MISSING, f"{name} names a {cls.bucket} but no object in it")
