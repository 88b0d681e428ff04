r"""HISTORY: what the blanks in front of a message tell: whether it was delivered before, and what died meanwhile.

    blanks  " "   it went back on its list: two if to its end (see requeue.lua)
    tabs    \t     so many hosts died, or were cut off, while they had it among others
    returns \r     so many of them died while they had just this one in their hands

All of these keep the message valid JSON, so that any consumer can read it, and they are written in the step that puts
it back. Why: docs/decisions/blame.md.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_FRONT = re.compile(rb" *(\t*)(\r*)")


class History(NamedTuple):
    """What a message went through."""

    #: Hosts that died, or were cut off, while they had it.
    lapses: int
    #: Those of them that died while they had this message alone in their hands.
    charged: int

    @property
    def deaths(self) -> int:
        """How many deaths it may be the cause of: one that it shares with others, and those that it is charged with."""
        return self.charged + 1 if self.lapses else 0


def history_of(raw: bytes) -> History:
    """Reads the front of a message; nothing of its content."""
    found = _FRONT.match(raw)
    assert found is not None
    return History(len(found[1]), len(found[2]))


def front_of(charged: int) -> str:
    """The front of a message that so many hosts have died of, and nothing else; empty for none."""
    return f" {charged * chr(9)}{charged * chr(13)}" if charged else ""
