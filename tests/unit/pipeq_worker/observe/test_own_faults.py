"""What counts as a fault of the worker itself."""

from __future__ import annotations

import errno
import socket

import pytest
from pipeq_worker.observe.own_faults import has_no_address, is_own_fault, is_own_fault_of_call, without_object

OWN = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
OF_A_CALL = (errno.ENOMEM, errno.ENOBUFS)
NOT_OWN = (errno.ENOENT, errno.EACCES, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EIO, errno.EPIPE)


@pytest.mark.parametrize("number", [*OWN, *OF_A_CALL, *NOT_OWN], ids=errno.errorcode.get)
def test_by_number(number: int) -> None:
    error = OSError(number, "x")
    assert is_own_fault(error) == (number in OWN)
    assert is_own_fault_of_call(error) == (number in (*OWN, *OF_A_CALL))


def test_in_a_chain_however_it_is_linked() -> None:
    inner = OSError(errno.EMFILE, "too many open files")
    by_cause, by_context = ValueError("a"), ValueError("b")
    by_cause.__cause__ = inner
    by_context.__context__ = by_cause
    assert all(map(is_own_fault, (by_cause, by_context, ValueError("text", inner))))
    loop = ValueError("loop")
    loop.__context__ = loop
    assert not is_own_fault(loop)


def test_threads_memory_and_names() -> None:
    assert is_own_fault(RuntimeError("can't start new thread"))
    # A task that allocates too much fails by its own fault.
    assert not is_own_fault(MemoryError())
    assert not is_own_fault_of_call(MemoryError())
    # The numbers of name look-ups are others than those of the system.
    unknown, away = socket.gaierror(socket.EAI_NONAME, "x"), socket.gaierror(socket.EAI_AGAIN, "x")
    assert has_no_address(unknown)
    assert not has_no_address(away)
    assert not is_own_fault(socket.gaierror(errno.EMFILE, "x"))


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("s3://b/my secret key: the store failed", "s3://b/...: the store failed"),
        (
            's3://b/k: the store cannot be reached (Could not connect to the endpoint URL: "http://h:9000/b/k")',
            's3://b/...: the store cannot be reached (Could not connect to the endpoint URL: "http://h:9000/...")',
        ),
        ("file:///data/a.wav cannot be read (too many)", "file:///... cannot be read (too many)"),
        ("this worker's user may not read file:///data/x/a", "this worker's user may not read file:///..."),
        ("no object at all", "no object at all"),
    ],
)
def test_others_are_not_told_of_an_object(sentence: str, shown: str) -> None:
    assert without_object(sentence) == shown
