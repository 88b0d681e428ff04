"""DEAD MAN: the kernel ends the host if its event loop does not turn although the process computes all the time.

Code that holds Python's lock for ever stops every thread of its process, also those that would notice it. A timer of
the kernel does not need the lock: each turn of the event loop sets it anew, and if it runs out, the signal SIGPROF ends
the process, because nobody handles it. The timer counts the CPU time of this process, so one that is stopped, or that
waits for Redis, is left alone. The children end with the host, and whoever started the worker starts it again.
"""

from __future__ import annotations

import signal


def arm(cpu_s: float) -> None:
    """Ends this process after so many seconds of CPU time, unless this is called again before."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def disarm() -> None:
    """Takes it back."""
    signal.setitimer(signal.ITIMER_PROF, 0)
