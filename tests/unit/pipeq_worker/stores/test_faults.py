"""What kind of fault an error of a library is, by the status it says, however deep it is wrapped."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pipeq_worker.stores.base import Fault
from pipeq_worker.stores.faults import fault_in_chain, of_status

STATUS = {
    400: Fault.PERMANENT,
    401: Fault.REFUSED,
    403: Fault.REFUSED,
    404: Fault.MISSING,
    408: Fault.PASSING,
    409: Fault.PERMANENT,
    410: Fault.MISSING,
    425: Fault.PASSING,
    429: Fault.PASSING,
    500: Fault.PASSING,
    502: Fault.PASSING,
    503: Fault.PASSING,
    504: Fault.PASSING,
}


class LibraryError(Exception):
    def __init__(self, **fields: object) -> None:
        super().__init__("it")
        self.__dict__.update(fields)


def nobody(error: BaseException) -> Fault | None:
    return None


@pytest.mark.parametrize("status", STATUS)
def test_every_way_to_say_a_status(status: int) -> None:
    assert of_status(status) is STATUS[status]
    for fields in (
        {"status_code": status},
        {"code": status},
        {"code": str(status)},
        {"status": status},
        {"response": SimpleNamespace(status_code=status)},
    ):
        assert fault_in_chain(LibraryError(**fields), nobody) is STATUS[status]
        outer = RuntimeError("cannot upload")
        outer.__cause__ = LibraryError(**fields)
        assert fault_in_chain(outer, nobody) is STATUS[status]


@pytest.mark.parametrize("code", [None, 0, 200, 999, "BlobNotFound", True, 4.04])
def test_what_is_no_status_says_nothing(code: object) -> None:
    assert fault_in_chain(LibraryError(code=code), nobody) is Fault.PASSING


def test_a_store_knows_its_own_errors_first() -> None:
    assert fault_in_chain(LibraryError(status=404), lambda _: Fault.REFUSED) is Fault.REFUSED


def test_a_circle_of_causes_ends() -> None:
    one, other = RuntimeError("1"), RuntimeError("2")
    one.__cause__, other.__cause__ = other, one
    assert fault_in_chain(one, nobody) is Fault.PASSING
