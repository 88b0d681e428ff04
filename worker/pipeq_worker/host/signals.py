"""Handles signals to stop: SIGTERM or SIGINT drains the process; a second one, or SIGQUIT, ends it at once.

A signal handler runs on the main thread, which may hold locks at that moment. Celery's own handler does the whole
shutdown there; it can wait for ever for a lock that the main thread holds, or find its thread pools gone when it
returns. Our handler only notes the signal, and a thread of its own acts on it.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue

logger = logging.getLogger(__name__)


def on_stop(drain: Callable[[], None], hurry: Callable[[], None]) -> None:
    """Installs the handlers. Call it on the main thread.

    Args:
        drain: called for the first signal: finish what fits into the grace period.
        hurry: called for SIGQUIT and for every further signal: stop at once. ``drain`` may not have been called before.
    """
    # SimpleQueue.put() is safe in a signal handler that interrupts itself; queue.Queue.put() and Event.set() are not.
    noted: SimpleQueue[int] = SimpleQueue()

    def heard() -> int:
        number = noted.get()
        logger.info("got %s", signal.Signals(number).name, extra={"action": "signal", "signal": number})
        return number

    def run() -> None:
        if heard() != signal.SIGQUIT:
            drain()
            heard()
        while True:
            hurry()
            heard()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda number, _: noted.put(number))
    threading.Thread(target=run, name="signals", daemon=True).start()
