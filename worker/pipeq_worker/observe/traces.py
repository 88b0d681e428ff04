"""TRACES: an exception -> text that says where it was raised, for the log and for records. Used by stages.

An exception itself must not be kept, because its frames hold the inputs and the task (see frames.py), and it cannot
leave its process. So its text is made where it is caught, and travels with the :class:`PipeqError` that it became.
"""

from __future__ import annotations

import re
import traceback
from types import TracebackType

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

#: Exceptions of one chain that are told, the innermost causes.
MOST_CAUSES = 3
#: Frames of one exception that are told: the outermost, and the innermost.
FIRST, LAST = 3, 12
#: Most characters of a line, and of an exception's message.
LINE_CHARS, MESSAGE_CHARS = 200, 300
#: Most characters of a text that goes into a record; its end is kept, where the exception was raised.
RECORD_CHARS = 4000
_LED_TO = "This led to:"
#: What stands before the part of a path that says which library it is.
_LIBRARIES = re.compile(r".*[/\\](?:site-packages|dist-packages|python3\.[0-9]+)[/\\]")


def trace_of(error: BaseException) -> str:
    """Returns where the cause of an error was raised; empty if pipeq itself found the error.

    The text has a line ``type: message`` for each exception of the chain, the first cause first, and above it two lines
    for each frame: where it is, and its code. No values of variables are in it, but a message may quote an input; for
    others to read, see :func:`for_record`.

    Args:
        error: what was caught. Of a :class:`PipeqError`, the exception that it was raised from counts.
    """
    try:
        chain: list[BaseException] = []
        one: BaseException | None = error
        while one is not None and len(chain) < 20 and one not in chain:
            chain.append(one)
            one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        foreign = [one for one in chain if not _says_all(one)][-MOST_CAUSES:]
        texts = (_lines(one) for one in reversed(foreign))
        return f"\n{_LED_TO}\n".join("\n".join(lines) for lines in texts)
    except Exception as problem:  # an exception whose own methods raise
        return f"no traceback: {type(problem).__name__}"


def internal(error: BaseException) -> PipeqError:
    """Returns the error of a task on which pipeq itself, or a library that it did not expect to, raised something."""
    found = PipeqError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")
    found.traceback = trace_of(error)
    return found


def for_record(trace: str) -> str:
    """Cuts a text from :func:`trace_of` to a size, and removes messages of exceptions, which may quote inputs."""
    lines = (line if line.startswith(" ") or line == _LED_TO else line.partition(":")[0] for line in trace.split("\n"))
    text = "\n".join(lines)
    return text if len(text) <= RECORD_CHARS else "...\n" + text[-RECORD_CHARS:].partition("\n")[2]


def _says_all(error: BaseException) -> bool:
    """Whether pipeq itself found the error, so that its sentence says all: where that was, says nothing to a user."""
    return isinstance(error, PipeqError) or getattr(error, "is_found_by_pipeq", False) is True


def _lines(error: BaseException) -> list[str]:
    frames = _frames(error.__traceback__)
    lines = []
    left_out = len(frames) - FIRST - LAST
    for at, frame in enumerate(frames):
        if FIRST <= at < FIRST + left_out:
            if at == FIRST:
                lines.append(f"  ... {left_out} frames")
            continue
        lines.append(_cut(f'  File "{_place(frame.filename)}", line {frame.lineno}, in {frame.name}'))
        if frame.line:
            lines.append(_cut(f"    {frame.line}"))
    try:
        message = shown.line(shown.without_secrets(str(error)), MESSAGE_CHARS)
    except Exception:
        message = ""
    name = type(error).__qualname__ if type(error).__module__ == "builtins" else _qualified(type(error))
    return [*lines, f"{name}: {message}" if message else name]


def _frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(trace, limit=-(FIRST + LAST) * 10))


def _qualified(kind: type) -> str:
    return shown.line(f"{kind.__module__}.{kind.__qualname__}").replace(":", "")


def _place(path: str) -> str:
    """A file's path from its library on; of other files only the last two parts."""
    inside = _LIBRARIES.sub("", path)
    return inside if inside != path else "/".join(re.split(r"[/\\]", path)[-2:])


def _cut(line: str) -> str:
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
    return text if len(text) <= LINE_CHARS else text[: LINE_CHARS - 3] + "..."
