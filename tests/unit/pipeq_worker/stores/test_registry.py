"""The registry: every scheme of the contract's table has a store that does what the table says."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from pipeq.contract import schemes
from pipeq_worker.settings.sections import ResultSettings, S3Settings
from pipeq_worker.stores import registry
from pipeq_worker.stores.base import Access, Store
from pipeq_worker.stores.registry import Stores
from pipeq_worker.stores.writer import Writer

ACCESS = Access(timeout_s=1, connections=1)


def test_every_scheme_has_a_store_and_every_store_a_scheme() -> None:
    assert list(registry.OURS) == list(schemes.SCHEMES)


@pytest.mark.parametrize("name", schemes.SCHEMES)
def test_a_store_does_what_the_table_says(name: str) -> None:
    store = registry.OURS[name]
    assert store.scheme == name
    assert store.writable is schemes.SCHEMES[name].writable
    for method, promised in (("put", store.writable), ("version", store.has_versions)):
        assert not promised or getattr(store, method) is not getattr(Store, method), method


@pytest.mark.parametrize("name", schemes.SCHEMES)
def test_a_scheme_is_a_file_of_its_own(name: str) -> None:
    assert Path(inspect.getfile(registry.OURS[name])).stem == name


def test_one_store_a_scheme() -> None:
    stores = Stores(ACCESS)
    assert stores.get("s3") is stores.of("s3://b/k")
    assert stores.get("s3") is not stores.get("file")
    stores.close()


def test_a_scheme_that_nobody_registered() -> None:
    assert registry.find("nobodys") is None
    assert registry.find("") is None


def test_what_cannot_be_written_says_where_output_goes() -> None:
    writer = Writer(ResultSettings(), S3Settings())
    known = schemes.listed(name for name, row in schemes.SCHEMES.items() if row.writable)
    for uri in ("https://h/a", "nobodys://a/b", "nonsense"):
        for call in (writer.check_allowed, lambda uri: writer.put(uri, b"", "text/plain")):
            with pytest.raises(Exception, match=f"cannot be written: output goes to {known}"):
                call(uri)
    writer.close()
