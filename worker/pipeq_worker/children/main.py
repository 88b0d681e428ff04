"""MAIN: the program of a child process. Started by :mod:`.process`, never forked.

    python -P -m pipeq_worker.children.main SOCKET BOARD PARENT OWN SLAB...

It speaks :mod:`.protocol` over the socket, and notes on the board what its threads do. It ends when its parent does.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import threading

#: How long a thread of a child keeps Python's lock while another one waits for it, in seconds.
SWITCH_S = 0.001
#: A child's exit code after ``lost``.
EXIT_LOST = 75
#: How long the reason may take to get out then, in seconds.
_SAID_S = 0.2
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Runs the process."""
    from pipeq_worker.children.starting import FOR_THE_HOST

    for number in FOR_THE_HOST:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_HOST)  # one that came meanwhile is dropped
    # Here, so that the collector does not walk through what modules are made of: an eighth of the time of a start.
    gc.disable()
    from pipeq_worker.children import board, protocol
    from pipeq_worker.children.allocator import bound_kernels, keep_freed_memory
    from pipeq_worker.children.child import Child
    from pipeq_worker.children.link import Link
    from pipeq_worker.children.slab import Slabs
    from pipeq_worker.children.starting import PREPARE_NICE, step_back
    from pipeq_worker.observe import log
    from pipeq_worker.settings.read import Settings

    gc.enable()
    end, board_fd, parent, own, *slabs = map(int, sys.argv[1:])
    _end_with(parent)
    if own != 0:
        step_back(PREPARE_NICE)
    link = Link(socket.socket(fileno=end), "host")
    messages = link.receive(protocol.for_child)
    start = messages[0]
    assert isinstance(start, protocol.Start)
    settings: Settings = protocol.unpacked(start.settings)
    bound_kernels()
    keep_freed_memory(one_arena=own == 0, process_max_bytes=settings.process_max_bytes)
    if (most := settings.process_max_bytes) is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    log.set_up(settings.log_level, settings.log_format)
    # A task makes some hundred small objects and frees them all when it ends; see pipeq_worker.process.cli.
    gc.set_threshold(50_000, 10, 10)
    # A pass gives Python's lock up and wants it back many times. Python's own 5 ms would be a quarter of a short pass.
    sys.setswitchinterval(SWITCH_S)
    child = Child(link, board.Writer(board_fd), Slabs(slabs, own), lost=_end_soon)
    for message in messages:
        child.take(message)
    child.serve()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that still read from a slow store would delay the exit.
    os._exit(0)


def _end_soon() -> None:
    threading.Timer(_SAID_S, os._exit, (EXIT_LOST,)).start()


def _end_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, also while Python's lock is held."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    main()
