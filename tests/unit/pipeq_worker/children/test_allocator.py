"""What a process frees stays with it: counted in page faults, in a process of its own and on another thread."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import numpy as np
if sys.argv[1] != "as it is":
    from pipeq_worker.children.allocator import keep_freed_memory
    keep_freed_memory(one_arena=sys.argv[1] == "one heap")

def pass_over(count):
    for _ in range(count):
        parts = [np.ones(2**18) for _ in range(8)]  # 2 MiB each
        del parts

def measure():
    pass_over(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pass_over(20)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)

thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


def faults(how: str) -> float:
    """Page faults of one pass over 16 MiB that are freed again."""
    # Pages of 4 KiB, whatever the machine's settings of large pages are.
    env = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    command = [sys.executable, "-c", PROGRAM, how]
    return float(subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=60).stdout)


@pytest.mark.parametrize("how", ["one heap", "a heap for each thread"])
def test_memory_that_is_freed_is_used_again(how: str) -> None:
    assert faults(how) < 50
    assert faults("as it is") > 500
