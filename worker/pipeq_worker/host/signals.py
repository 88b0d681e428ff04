"""How a process is told to stop: SIGTERM or SIGINT drains it; a second one, or SIGQUIT, ends it with what it has.

A signal handler runs on the main thread in the middle of whatever that is doing, locks held and all. Celery's own does
the whole shutdown in there, and so waits for ever for a lock that the main thread holds, or finds its thread pools
gone when it returns. Here a handler only notes the signal; a thread of its own acts on it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue


def on_stop(drain: Callable[[], None], hurry: Callable[[], None]) -> None:
    """Installs the handlers; call it on the main thread.

    Args:
        drain: called for the first signal: finish what fits into the grace period.
        hurry: called for SIGQUIT and for every further signal: stop with what there is. ``drain`` may not have been
            called before.
    """
    # Its put() may interrupt itself, unlike that of queue.Queue or the set() of an Event.
    noted: SimpleQueue[int] = SimpleQueue()

    def run() -> None:
        first = noted.get()
        if first != signal.SIGQUIT:
            drain()
            noted.get()
        while True:
            hurry()
            noted.get()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda number, _: noted.put(number))
    threading.Thread(target=run, name="signals", daemon=True).start()
