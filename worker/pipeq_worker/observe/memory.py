"""MEMORY: what the processes of a worker hold, from /proc. Read for the metrics; on other systems there is nothing."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """What one process uses. None where the system does not tell."""

    #: Resident set size: everything that it has in memory, shared pages included.
    rss_bytes: int | None
    #: Proportional set size: of each shared page only its share. The sum over all processes counts no page twice.
    pss_bytes: int | None
    #: CPU time, of all its threads, since it started.
    cpu_s: float | None


def usage(pid: int) -> Usage:
    """Reads what a process uses; a process that is gone uses nothing that could be told. Never raises."""
    rss = pss = cpu = None
    with suppress(OSError, ValueError, IndexError):
        rss = int((_PROC / f"{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    with suppress(OSError):
        if (found := _PSS.search((_PROC / f"{pid}/smaps_rollup").read_bytes())) is not None:
            pss = int(found[1]) * 1024
    with suppress(OSError, ValueError, IndexError):
        # The name of the program is in brackets, and may have spaces and brackets itself.
        fields = (_PROC / f"{pid}/stat").read_bytes().rpartition(b")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / _TICKS
    return Usage(rss, pss, cpu)
