from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from pipeq_worker.observe.memory import Usage, usage

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="only Linux has /proc")


def test_of_this_process() -> None:
    used = usage(os.getpid())
    assert used.rss_bytes is not None
    assert used.pss_bytes is not None
    assert used.cpu_s is not None
    assert 2**20 < used.pss_bytes <= used.rss_bytes * 1.1
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    later = usage(os.getpid()).cpu_s
    assert later is not None
    assert 0.05 <= later - used.cpu_s < 10


def test_of_another_one_that_holds_more_and_then_is_gone() -> None:
    code = "block = bytearray(b'x' * (64 << 20)); print('there', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        used = usage(child.pid)
        assert (used.rss_bytes or 0) > 64 << 20
        assert (used.pss_bytes or 0) > 64 << 20
        child.communicate(b"\n")
    assert usage(child.pid) == Usage(None, None, None)
