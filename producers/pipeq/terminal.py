"""TERMINAL: what is known of stdin, stdout and stderr, any of which may be closed, or speak an old encoding."""

from __future__ import annotations

import codecs
import sys
from typing import TextIO

#: Our handler of characters that an encoding lacks.
_ESCAPED = "pipeq.escaped"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody sits at it. Python has None for one that was closed before it began."""
    return stream is not None and stream.isatty()


def escape_what_it_cannot_show() -> None:
    """Lets stdout write what its encoding lacks as JSON writes it, so that a line of JSON stays one."""
    codecs.register_error(_ESCAPED, _escaped)
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # what tests put there may have none
    if reconfigure is not None and getattr(sys.stdout, "errors", "") == "strict":
        reconfigure(errors=_ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    pairs = zip(units[::2], units[1::2], strict=True)
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in pairs), error.end
