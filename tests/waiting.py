"""What tests wait for. The other side (a server, another process) learns of a step a moment after it was made."""

from __future__ import annotations

import time
from collections.abc import Callable


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
