"""PREPARE of texts: refuses words for which a tokenizer written in Python would take minutes.

Byte-pair encoding in Python (CTRL's, XLM's) passes over a word once for each kind of pair that it joins. With 10,000
pairs, a word of 500 letters takes 0.03 s and one of 4,000 takes 1.2 s; each further doubling takes about three times as
long. A message full of words of 500 letters takes 13 s. Tokenizers written in Rust, and those by words or characters,
are not limited here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeq.contract.errors import ErrorCode, PipeqError

#: Most characters of a word.
MOST_CHARACTERS = 500
_TOO_LONG = re.compile(rf"\S{{{MOST_CHARACTERS + 1}}}")


def check(tokenizer: Any, value: Any) -> None:
    """Raises ``invalid_input`` if a decoded input has a word that is too long for its tokenizer."""
    if tokenizer is None or getattr(tokenizer, "is_fast", True) or not hasattr(tokenizer, "bpe"):
        return
    for text in _texts(value):
        if found := _TOO_LONG.search(text):
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                f"the text has a word of more than {MOST_CHARACTERS} characters, {found[0][:20]!r}..., for which this "
                "model's tokenizer takes too long: put spaces into it, or take a model with a fast tokenizer",
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
