"""The keys of a chat's turns and of their parts, and suggestions for misspelt keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pipeq.contract import shown

#: Keys of a turn that chat templates read. Other keys are allowed, for templates that read more.
TURN = (
    "role content name tool_calls tool_call_id reasoning_content reasoning thinking channel recipient weight refusal "
    "tools documents citations".split()
)
#: Similarity from which on a key counts as a misspelling of another.
_ALIKE = 0.75


def is_chat(value: Any) -> bool:
    """Whether a value is a list of ``{"role", "content"}`` turns."""
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)
    )


def wrong_turn(value: Any) -> str | None:
    """Describes the error in a list that was meant to be a chat; None for a correct chat, and for any other list."""
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
    """A sentence about the first key that is a misspelling of a known one; None if there is none."""
    known = tuple(known)
    for key in fields:
        if key in known or len(key) > 40:
            continue
        close = difflib.get_close_matches(key.lower(), [one for one in known if one not in fields], n=1, cutoff=_ALIKE)
        if close:
            return f"it has no key {shown.line(key, 40)!r}; did you mean {close[0]!r}?"
    return None
