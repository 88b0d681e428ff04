"""FORESEEN: what one decoded input becomes, computed before it does. Used by quirks; stages/bounds.py compares.

Some inputs become all of their rows in one call: a tokenizer that cuts a text into chunks that overlap by all tokens
but one makes as many chunks as there are tokens, each of them as long as the model can read. Other inputs are small and
have large answers: a thousand words for each mask of a text, each with the whole text. Rows that are made one by one
need nothing here, because they are counted while they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: Bytes that a tokenizer takes for each token of a chunk: its id, type, mask, offsets and text, and Python's lists of
#: them. Measured: 276 with a fast tokenizer of BERT.
TOKEN_BYTES = 300
#: Bytes of one entry of an answer (a dictionary with a score, a word, positions), without longer texts in it.
ENTRY_BYTES = 400
#: What is smaller than this even in the worst case is not computed exactly.
HARMLESS_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Foreseen:
    """What one input becomes."""

    #: Rows, at least.
    rows: int = 1
    #: Bytes that its preparation takes at once, and gives back.
    passing: int = 0
    #: Bytes that its answer takes until the task ends.
    kept: int = 0


#: Nothing that needs a bound of its own.
NOTHING = Foreseen()


def chunks(
    most: int, count: Callable[[], int], room: Callable[[], int], stride: int, length: int, entries: int
) -> Foreseen:
    """A text that is cut into overlapping chunks.

    Args:
        most: upper bound of its tokens.
        count: returns its tokens; called only if the upper bound would be too much.
        room: returns how many tokens of it are in one chunk; called only then, too.
        stride: tokens by which two chunks overlap.
        length: tokens of a chunk, with all others.
        entries: entries of the answer for each chunk.
    """
    each = length * TOKEN_BYTES, entries * ENTRY_BYTES
    if (most + 1) * sum(each) < HARMLESS_BYTES:
        return NOTHING
    own = room()
    step = own - stride
    if step < 1:
        return NOTHING  # the tokenizer refuses it
    rows = 1 + max(0, -(-(most - own) // step))
    if rows * sum(each) >= HARMLESS_BYTES:
        rows = 1 + max(0, -(-(count() - own) // step))
    return Foreseen(rows, rows * each[0], rows * each[1])
