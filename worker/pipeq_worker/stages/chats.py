"""The keys of a chat: of its turns, and of the parts of a turn; and what a misspelt one was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pipeq.contract import shown

#: What chat templates read of a turn. Others may be there, for templates that read more.
TURN = (
    "role content name tool_calls tool_call_id reasoning_content reasoning thinking channel recipient weight refusal "
    "tools documents citations".split()
)
#: How much alike two keys are of which one is a misspelling.
_ALIKE = 0.75


def is_chat(value: Any) -> bool:
    """Whether a value is a list of ``{"role", "content"}`` turns."""
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)
    )


def wrong_turn(value: Any) -> str | None:
    """What is wrong with a list that was meant to be a chat; None for a chat, and for what is none at all."""
    if not value or not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return None
    if not any(turn.keys() & {"role", "content"} for turn in value):
        return None
    for at, turn in enumerate(value):
        if (sentence := misspelt(turn, TURN)) is not None:
            return f"turn {at} of the chat: {sentence}"
        for key in ("role", "content"):
            if key not in turn:
                return f"turn {at} of the chat has no `{key}`; a turn is {{'role': ..., 'content': ...}}"
    return None


def misspelt(fields: Mapping[str, Any], known: Iterable[str]) -> str | None:
    """A sentence about the first key that is another one's misspelling; None where there is none."""
    known = tuple(known)
    for key in fields:
        if key in known or len(key) > 40:
            continue
        close = difflib.get_close_matches(key.lower(), [one for one in known if one not in fields], n=1, cutoff=_ALIKE)
        if close:
            return f"it has no key {shown.line(key, 40)!r}; did you mean {close[0]!r}?"
    return None
