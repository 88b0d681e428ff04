"""MEMORY: out of memory at a padded cost -> a limit for the batches that follow. Used by costs.

A batch that exceeds the device's memory is halved until it fits, so it costs time, but loses no task. The limit keeps
the next batch from doing the same: it drops to half of what failed, creeps up slowly, and stays below the least cost
that failed for as long as the worker lives. So at most one more batch is halved when it creeps up to the true bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: The limit stays below this share of the least cost that failed.
HEADROOM = 0.9
#: A pass of this share of the limit raises it by ``CREEP``: from a half to the top in about 600 of them.
FULL = 0.8
CREEP = 0.001


@dataclass
class MemoryLimit:
    """What fits into the device's memory, in padded cost. Not safe for threads."""

    #: Most padded cost of a batch; infinite until a batch has failed.
    limit: float = math.inf
    #: Least padded cost at which a batch failed.
    failed: float = math.inf

    def exceeded(self, padded: float) -> None:
        """A batch of several items had too little memory. Its halves are tried next."""
        self.failed = min(self.failed, padded)
        self.limit = min(self.limit, padded / 2)

    def passed(self, padded: float) -> None:
        """A batch had enough memory."""
        if padded >= FULL * self.limit:
            self.limit = min(max(self.limit * (1 + CREEP), padded), HEADROOM * self.failed)
