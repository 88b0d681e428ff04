"""PREPARERS: how many prepare processes a worker has. Used by the host, and by the device process."""

from __future__ import annotations

import os

from pipeq_worker.models.loading import any_needs_torch
from pipeq_worker.settings.read import Settings

#: Most prepare processes where the settings say "auto": each takes memory for torch and transformers.
MOST_PREPARERS = 4


def preparers_of(settings: Settings) -> int:
    """Number of prepare processes of a worker."""
    if not any_needs_torch(settings.pipelines):
        return 0  # their ends are so cheap that going to another process costs more
    if settings.prepare_processes != "auto":
        return settings.prepare_processes
    cores = len(os.sched_getaffinity(0))
    return 0 if cores < 2 else min(MOST_PREPARERS, max(1, cores // 4))
