"""LINK: one end of the connection between the host and a child. Only :meth:`Link.write` may block the caller.

What is to go out at once is written by the thread that says it, as far as the other end has room: passing it to another
thread would take longer than the write does, twice over if both ends do so. What the other end has no room for, and
what was only gathered, is written by a thread of the link; everything that was given to it while the last write ran
goes out in one. What is gathered waits for company: each write wakes the process at the other end, which costs more
than a message does.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TypeVar

from pipeq_worker.children import protocol

logger = logging.getLogger(__name__)

M = TypeVar("M")

#: How long messages are gathered at most, in seconds: what a hundred of them take to be made.
GATHER_S = 0.005

#: Longest message whose length ``multiprocessing.Connection`` writes into four bytes.
_SHORT = 2**31 - 1

#: Errors of a connection whose other end is gone.
GONE = (EOFError, OSError)


class Link:
    """Sends and receives lists of messages.

    Args:
        end: one end of a socket pair; the link owns it.
        name: of the other end, for the log.
    """

    def __init__(self, end: socket.socket, name: str) -> None:
        self._socket = end
        self._connection = Connection(os.dup(end.fileno()))
        self._name = name
        self._out: list[protocol.ToChild | protocol.ToHost] = []
        #: When the messages have to go out (monotonic clock).
        self._due = math.inf
        self._sent_at = -math.inf
        self._closed = False
        #: Bytes that the other end had no room for; they go first.
        self._rest = b""
        #: Whether a thread is in a write that may wait.
        self._is_writing = False
        # Of one lock, but two, so that the end of a write does not wake the link's thread.
        lock = threading.RLock()
        self._changed, self._written = threading.Condition(lock), threading.Condition(lock)
        threading.Thread(target=self._send_all, name="send", daemon=True).start()

    def send(self, *messages: protocol.ToChild | protocol.ToHost) -> None:
        """Sends messages, in order, after those that were given before. To an end that is gone they are dropped."""
        with self._changed:
            if messages and not self._closed:
                self._out.extend(messages)
                self._write_now()

    def gather(self, *messages: protocol.ToChild | protocol.ToHost) -> None:
        """Sends messages soon: at once, if nothing was sent within :data:`GATHER_S`.

        If not, they wait until that time is over, and go out with what comes meanwhile. They stay in order with all
        others.
        """
        with self._changed:
            if messages and not self._closed:
                self._out.extend(messages)
                if (due := self._sent_at + GATHER_S) <= time.monotonic():
                    self._write_now()
                else:
                    self._hasten(due)

    def leave(self, *messages: protocol.ToChild | protocol.ToHost) -> None:
        """Leaves messages for :meth:`write`, which the caller calls soon."""
        with self._changed:
            if messages and not self._closed:
                self._out.extend(messages)
                self._due = min(self._due, time.monotonic() + GATHER_S)

    @property
    def is_due(self) -> bool:
        """Whether something has waited for :data:`GATHER_S`."""
        return self._due <= time.monotonic()

    def write(self) -> None:
        """Sends everything on the calling thread, which may wait for the other end."""
        with self._changed:
            self._written.wait_for(lambda: not self._is_writing)
            if not (data := self._taken()):
                return
            self._is_writing = True
        is_sent = False
        try:
            self._socket.sendall(data)
            is_sent = True
        except GONE:
            pass
        finally:
            with self._changed:
                self._is_writing = False
                if not is_sent:
                    self._end()
                self._written.notify_all()

    def flush(self) -> None:
        """Sends what was gathered."""
        with self._changed:
            if self._out:
                self._write_now()

    def fileno(self) -> int:
        """Becomes readable when there is something to receive."""
        return self._connection.fileno()

    def receive(self, read: Callable[[bytes], Sequence[M]]) -> Sequence[M]:
        """Waits for the next list of messages.

        Raises:
            EOFError, OSError: the other end is gone.
        """
        return read(self._connection.recv_bytes())

    def close(self) -> None:
        """Tells the other end that nothing more comes, once all has been sent. Returns at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def release(self) -> None:
        """Gives the connection back. Call it when nobody receives any more."""
        self.close()
        self._connection.close()
        self._socket.close()

    # -- with the lock held -------------------------------------------------------------------------------------------

    def _hasten(self, due: float) -> None:
        if due < self._due:
            self._due = due
            self._changed.notify_all()

    def _write_now(self) -> None:
        """Sends everything, as far as the other end has room now."""
        if self._is_writing or self._rest:
            self._hasten(0.0)  # it goes out after that
            return
        if not (data := self._taken()):
            return
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except GONE:
            self._end()
            return
        if sent < len(data):
            self._rest = data[sent:]
            self._hasten(0.0)

    def _taken(self) -> bytes:
        """Takes everything that is to go out, as bytes; nothing if there is nothing."""
        rest, self._rest = self._rest, b""
        out, self._out = self._out, []
        self._due, self._sent_at = math.inf, time.monotonic()
        if not out:
            return rest
        try:
            data = protocol.encode(out)
        except Exception:
            # A message that cannot be sent would leave the other end waiting for ever; it sees this end go.
            logger.exception("%s cannot send", self._name, extra={"action": "link"})
            self._end()
            return b""
        return rest + _framed(data)

    def _end(self) -> None:
        """Sends nothing more, and tells the other end so."""
        self._closed = True
        self._out.clear()
        self._rest = b""
        self._changed.notify_all()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (wait_s := self._due - time.monotonic()) > 0:
                    self._changed.wait(None if wait_s == math.inf else wait_s)
                if self._closed and not self._out and not self._rest and not self._is_writing:
                    self._end()
                    return
            self.write()


def _framed(data: bytes) -> bytes:
    """Puts the length in front, as ``multiprocessing.Connection`` reads it."""
    if len(data) <= _SHORT:
        return struct.pack("!i", len(data)) + data
    return struct.pack("!iQ", -1, len(data)) + data
