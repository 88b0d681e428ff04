"""Which test files a test process runs together: those whose tests share one worker, which takes long to start.

Any other file is by itself, as pytest-xdist's ``--dist loadfile`` has it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parents[1]
#: What a file imports whose tests use that worker (tests/acceptance/conftest.py).
SHARING = "from tests.acceptance.conftest import"


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """As ``loadfile``, with one group more."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return SHARING if shares(file) else file


@cache
def shares(file: str) -> bool:
    """Whether the tests of a file use that worker."""
    return SHARING in (ROOT / file).read_text()
