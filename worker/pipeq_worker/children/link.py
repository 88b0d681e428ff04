"""LINK: one end of the connection between the host and a child. Sending never blocks the caller.

Everything that was given to :meth:`Link.send` while the last write ran goes out in one: under load messages travel in
batches, and alone at once.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TypeVar

from pipeq_worker.children import protocol

logger = logging.getLogger(__name__)

M = TypeVar("M")

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
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._send_all, name="send", daemon=True).start()

    def send(self, *messages: protocol.ToChild | protocol.ToHost) -> None:
        """Sends messages, in order, after those that were given before. To an end that is gone they are dropped."""
        with self._changed:
            if not self._closed:
                self._out.extend(messages)
                self._changed.notify()

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
            self._changed.notify()

    def release(self) -> None:
        """Gives the connection back. Call it when nobody receives any more."""
        self.close()
        self._connection.close()
        self._socket.close()

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._out or self._closed)
                if not self._out:
                    break
                out, self._out = self._out, []
            try:
                self._connection.send_bytes(protocol.encode(out))
            except GONE:
                break
            except Exception:
                # A message that cannot be sent would leave the other end waiting for ever; it sees this end go instead.
                logger.exception("%s cannot send", self._name, extra={"action": "link"})
                break
        with self._changed:
            self._closed = True
            self._out.clear()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
