"""PROCESS: the host's side of one child: starts it, speaks to it, and knows when it is dead.

    new -> loading -> serving -> dead

A child is a fresh interpreter, never a fork: a fork of a process with threads may inherit locks that nobody will ever
release, and CUDA does not survive one.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from pipeq_worker.children import board, protocol, starting
from pipeq_worker.children.link import GONE, Link
from pipeq_worker.settings.read import Settings

logger = logging.getLogger(__name__)

#: How long a child that was told to end may take, in seconds.
END_S = 5.0


class Member(Protocol):
    """What the dispatcher needs of a child."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def send(self, *messages: protocol.ToChild) -> None:
        """Sends messages. Returns at once; to a child that is dead nothing is sent."""

    def gather(self, *messages: protocol.ToChild) -> None:
        """Sends messages soon, together with others: see :meth:`pipeq_worker.children.link.Link.gather`."""

    def doing(self) -> list[board.Entry]:
        """What each of its threads is doing, or was when it died."""

    def kill(self) -> None:
        """Ends it at once, whatever it does."""

    def close(self) -> None:
        """Ends it, and waits for that."""


@dataclass(frozen=True)
class End:
    """How a child ended."""

    #: In words that begin with a verb.
    how: str
    #: Whether somebody killed it from outside: SIGKILL, while the kernel killed nobody for lack of memory.
    is_from_outside: bool = False


#: Starts a child. Gets its number (0: the device process, others: prepare processes), and the functions that are called
#: with its messages, and with its end.
Starter = Callable[[int, Callable[[Sequence[protocol.ToHost]], None], Callable[[End], None]], Member]


class ChildProcess:
    """One child process.

    Args:
        settings: the worker's settings, which the child gets.
        slabs: descriptors of the memory that children share; the child writes into the one with its number.
        number: 0 for the device process; any other for a prepare process.
        heard: called with its messages, in order, on a thread of its own.
        died: called once, after the last message, with the way in which it ended.
    """

    def __init__(
        self,
        settings: Settings,
        slabs: Sequence[int],
        number: int,
        heard: Callable[[Sequence[protocol.ToHost]], None],
        died: Callable[[End], None],
    ) -> None:
        self._heard = heard
        self._died = died
        self._oom_kills = _oom_kills()
        self._was_ended = False
        self._board = board.make()
        self._reader = board.Reader(self._board)
        ours, theirs = socket.socketpair()
        # -P: the folder that the worker was started in may hold a stranger's modules with the names of ours.
        command = [sys.executable, "-P", "-m", "pipeq_worker.children.main"]
        arguments = [theirs.fileno(), self._board, os.getpid(), number, *slabs]
        self._process = starting.started(
            partial(
                subprocess.Popen,
                [*command, *map(str, arguments)],
                pass_fds=(theirs.fileno(), self._board, *slabs),
                stdin=subprocess.DEVNULL,
            )
        )
        theirs.close()
        self._link = Link(ours, f"child-{self._process.pid}")
        self._link.send(protocol.Start(protocol.packed(settings), is_preparer=number > 0))
        self._thread = threading.Thread(target=self._run, name="child", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, *messages: protocol.ToChild) -> None:
        """Sends messages. Returns at once; to a child that is dead nothing is sent."""
        self._link.send(*messages)

    def gather(self, *messages: protocol.ToChild) -> None:
        """Sends messages soon, together with others: see :meth:`pipeq_worker.children.link.Link.gather`."""
        self._link.gather(*messages)

    def doing(self) -> list[board.Entry]:
        """What each of its threads is doing, or was when it died."""
        return self._reader.read()

    def kill(self) -> None:
        """Ends it at once, whatever it does."""
        self._was_ended = True
        self._process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Ends it, and waits for that. It is killed if it takes long."""
        self._link.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def _run(self) -> None:
        reason = ""
        while True:
            try:
                messages = self._link.receive(protocol.for_host)
            except GONE:
                break
            except msgspec.DecodeError as error:
                reason = f"sent what is no message ({error})"
                break
            try:
                self._heard(messages)
            except Exception as error:
                # What the child knows and what the host knows may differ now. All that it had starts over in another.
                logger.exception("a child's messages cannot be heard", extra={"action": "child"})
                reason = f"was ended after an error of the host ({type(error).__name__}: {error})"
                self.kill()
                break
        # Its end of the connection is closed, so it is about to end by itself, unless its memory is damaged.
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        self._link.release()
        is_killed = code == -signal.SIGKILL and not self._was_ended
        self._died(End(reason or _ended(code), is_killed and _oom_kills() == self._oom_kills))
        os.close(self._board)


def _oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory, of this machine or of a container; 0 if unknown."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def _ended(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"
