"""The kernel's timer ends a process that computes without a turn, and no other."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SPIN = "import re; re.match('(a+)+$', 'a' * 64 + 'b')"
CASES = {
    # With Python's lock held.
    f"arm(0.3); {SPIN}": -signal.SIGPROF,
    "import time; arm(0.3); time.sleep(1)": 0,
    "import time\nfor _ in range(5):\n arm(0.3); until = time.process_time() + 0.1\n"
    " while time.process_time() < until: pass": 0,
    "arm(0.1); disarm()\nfor _ in range(10**7): pass": 0,
}


@pytest.mark.parametrize(("code", "ends"), CASES.items(), ids=["spins", "waits", "turns", "disarmed"])
def test_dead_man(code: str, ends: int) -> None:
    command = [sys.executable, "-c", f"from pipeq_worker.host.dead_man import arm, disarm\n{code}"]
    assert subprocess.run(command, timeout=60, check=False).returncode == ends
