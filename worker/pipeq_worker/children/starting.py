"""STARTING: starts children, with the priority and the signals that they need, and has their host step back.

Where there are fewer cores than work, the device process waits for none if another one can:

    device process 0, host +5, prepare processes +10, to the niceness with which the worker was started

A batch that is prepared, or an end that is stored, a moment later delays nothing as long as the device has work; a
forward pass that waits for a core is lost time. (A worker without a model has none to wait for, and its host stays.) On
Linux each thread has a niceness of its own, and what it starts inherits it. Nobody but root may take it back, so
children are started by a thread that has never stepped back.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

#: By how much the host, and a prepare process, step back.
HOST_NICE, PREPARE_NICE = 5, 10

#: The host decides when its children end. Ctrl-C and systemd send these to all processes of a group.
FOR_THE_HOST = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)

T = TypeVar("T")


def _hold_back_signals() -> None:
    """A child inherits what its starter blocks; so it need not hear of a signal before it can ignore it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_HOST)


#: Lives as long as the process: the kernel ends a child with the thread that has started it.
_starter = ThreadPoolExecutor(1, "start", _hold_back_signals)


def step_back(by: int) -> None:
    """Has the calling thread step back, and all that it starts from now on: call it before there are other threads."""
    with suppress(OSError):  # a sandbox may refuse it; the worker is slower then
        os.nice(by)


def host_steps_back() -> None:
    """The same for the host, without the children of :func:`started`."""
    if sys.platform != "linux":  # elsewhere the whole process would, and the device process with it
        return
    _starter.submit(int).result()  # its thread starts here, before
    step_back(HOST_NICE)


def started(start: Callable[[], T]) -> T:
    """Starts a child: calls ``start`` on the thread that has not stepped back."""
    return _starter.submit(start).result()
