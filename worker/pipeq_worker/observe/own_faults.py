"""OWN FAULTS: whether an exception tells of a fault of this worker itself, and not of the task that met it.

Used where an error is caught: by the stores, and by the stages for whatever else a library raises.
"""

from __future__ import annotations

import errno
import re
import socket

#: What only the machine or the process can lack, whatever the task is: file handles, room on a disk, the right to write
#: to one.
_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS})
#: The same where no task allocates anything: a connection, a small buffer.
_OF_A_CALL = _OWN | {errno.ENOMEM, errno.ENOBUFS}
#: What Python's own RuntimeError says when the system refuses a thread.
_NO_THREAD = "can't start new thread"
#: A URI: its scheme and host (or bucket), and its path.
_URI = re.compile(r"([a-z][a-z0-9+.-]*://[^/\s]*)/[^\s\"'<>)]*[^\s\"'<>):;,]")
#: How the sentences of stores go on after the object's name, which may hold blanks.
_STORE = ": the store "
#: Exceptions of one chain that are looked at.
_MOST = 20


def is_own_fault(error: BaseException) -> bool:
    """Whether an exception, or one that it came from, means that this worker lacks something that any task needs.

    Memory is not among it: a task that allocates too much fails by its own fault.
    """
    return any(_is(one, _OWN) for one in _chain(error))


def is_own_fault_of_call(error: BaseException) -> bool:
    """The same for a call to a store, which takes little memory itself."""
    return any(_is(one, _OF_A_CALL) for one in _chain(error))


def has_no_address(error: BaseException) -> bool:
    """Whether a name is not known to DNS. A name server that is away is another matter, and may come back."""
    return any(isinstance(one, socket.gaierror) and one.errno == socket.EAI_NONAME for one in _chain(error))


def without_object(sentence: str) -> str:
    """Returns an error's sentence for others than the task's producer: of its object, it names only the store."""
    name, found, rest = sentence.partition(_STORE)
    if found and (uri := _URI.match(name)) is not None:
        sentence = f"{uri[1]}/...{found}{rest}"
    return _URI.sub(lambda uri: f"{uri[1]}/...", sentence)


def _is(error: BaseException, numbers: frozenset[int]) -> bool:
    # Errors of name look-ups have numbers of their own.
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror):
        return error.errno in numbers
    return isinstance(error, RuntimeError) and _NO_THREAD in str(error)


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found and len(found) < _MOST:
        found.append(one)
        # Some libraries keep the cause only in an attribute, or among their arguments.
        inside = next((arg for arg in one.args if isinstance(arg, BaseException)), None)
        one = one.__cause__ or one.__context__ or inside
    return found
