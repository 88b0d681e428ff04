"""A child that is a thread of the test's own process: the same messages, the same stages, pipelines of the test's own.

What it cannot show is death: ``kill`` only cuts the connection. Real deaths are in tests/acceptance/test_children.py.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence

from pipeq_worker.children import board, protocol, slab
from pipeq_worker.children.child import Child
from pipeq_worker.children.link import GONE, Link
from pipeq_worker.children.process import End, Starter
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.fetch import Fetcher

Heard = Callable[[Sequence[protocol.ToHost]], None]


class ThreadChild:
    """See the module. ``pid`` is that of the test."""

    def __init__(
        self,
        pipelines: dict[str, Pipeline],
        settings: Settings,
        fetcher: Fetcher,
        number: int,
        heard: Heard,
        died: Callable[[End], None],
    ) -> None:
        self.pid = os.getpid()
        self._heard, self._died = heard, died
        ours, theirs = socket.socketpair()
        self._ours = ours
        self._board = board.make()
        self._reader = board.Reader(self._board)
        self._link = Link(ours, "host")
        child = Child(
            Link(theirs, "child"),
            board.Writer(self._board),
            slab.Slabs([slab.make()], 0),
            lambda name, _: pipelines[name],
            lambda *_: fetcher,
        )
        self.send(protocol.Start(protocol.packed(settings), is_preparer=number > 0))
        for target in (child.serve, self._run):
            threading.Thread(target=target, daemon=True).start()

    def send(self, *messages: protocol.ToChild) -> None:
        self._link.send(*messages)

    def gather(self, *messages: protocol.ToChild) -> None:
        self._link.gather(*messages)

    def doing(self) -> list[board.Entry]:
        return self._reader.read()

    def kill(self) -> None:
        self._ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._link.close()

    def _run(self) -> None:
        while True:
            try:
                self._heard(self._link.receive(protocol.for_host))
            except GONE:
                break
        self._died(End("was cut off"))


def starter(pipelines: dict[str, Pipeline], settings: Settings, fetcher: Fetcher) -> Starter:
    """Starts such children."""
    return lambda number, heard, died: ThreadChild(pipelines, settings, fetcher, number, heard, died)
