"""What tests wait for. The other side (a server, another process) learns of a step a moment after it was made."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def until(met: Callable[[], object], within_s: float = 60, every_s: float = 0.02) -> float:
    """Waits until `met()` is true. Returns for how long, in seconds.

    Raises:
        AssertionError: it was not true within that time.
    """
    began = time.monotonic()
    while not met():
        assert time.monotonic() - began < within_s, f"not within {within_s:g} s"
        time.sleep(every_s)
    return time.monotonic() - began


def promptly(met: Callable[[], object], within_s: float, every_s: float = 0.02) -> tuple[float, float]:
    """Waits until `met()` is true, for something that has a limit in time, on a machine that may be busy.

    This thread notes how much longer it slept than it asked for. The others wait for the machine, too, and several
    threads after each other, so that they get thrice as much more.

    Returns:
        For how long, and how much of that was the machine's, in seconds.

    Raises:
        AssertionError: it was not true within that time.
    """
    began, late_s = time.monotonic(), 0.0
    while not met():
        now = time.monotonic()
        assert now - began - 3 * late_s < within_s, f"not within {within_s:g} s, and {late_s:.2f} s of the machine"
        time.sleep(every_s)
        late_s += time.monotonic() - now - every_s
    return time.monotonic() - began, late_s


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    """Checks that a block takes no longer, as :func:`promptly` does: for a call that waits by itself.

    Another thread notes how late it is each time that it sleeps. After a block that raised, nothing is checked.
    """
    began, late_s, is_over = time.monotonic(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal late_s
        while True:
            now = time.monotonic()
            if is_over.wait(0.02):
                return
            late_s += time.monotonic() - now - 0.02

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
        took_s = time.monotonic() - began
    finally:
        is_over.set()
        watching.join()
    assert took_s - 3 * late_s < limit_s, f"{took_s:.2f} s, not {limit_s:g} s, and {late_s:.2f} s of the machine"
