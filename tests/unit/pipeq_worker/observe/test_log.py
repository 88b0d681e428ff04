"""Log lines: one for each record, whatever the record holds."""

from __future__ import annotations

import json
import logging
import re
import sys

import pytest
from pipeq_worker.observe.log import JsonFormatter, TextFormatter

#: Text that a producer may put into a content type, a name, a message: line breaks, escapes, changes of direction.
FORGED = "text\r\n12:00:00 INFO    all is well\x1b[2J\x85\u2028\u202e\x00\udc80 é"


def fail(text: str) -> None:
    raise ValueError(text)


def record(text: str, error: bool = False) -> logging.LogRecord:
    info = None
    if error:
        try:
            fail(text)
        except ValueError:
            info = sys.exc_info()
    return logging.LogRecord(
        "worker", logging.WARNING, "a.py", 1, "refused: %s", (text,), info, sinfo=f"Stack:\n{text}"
    )


def test_a_line_of_text_cannot_be_forged() -> None:
    one = record(FORGED)
    one.stack_info = None
    line = TextFormatter().format(one)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d WARNING refused: text\\r\\n12:00:00 INFO    all is well\\x1b\[2J.*\\u202e\\x00\\udc80 é", line
    )
    assert line.isprintable()


def test_nor_by_the_message_of_an_exception() -> None:
    first, *others = TextFormatter().format(record(FORGED, error=True)).split("\n")
    assert first.isprintable()
    assert "Traceback" in others[0]
    assert len(others) > 5
    for line in others:
        assert line.isprintable()
        assert line.startswith("    "), line


@pytest.mark.parametrize("error", [False, True])
def test_nor_in_json(error: bool) -> None:
    one = record(FORGED, error)
    one.pipeline = FORGED
    line = JsonFormatter().format(one)
    assert line.isprintable()
    assert json.loads(line)["pipeline"] == FORGED


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
@pytest.mark.parametrize("error", [False, True])
def test_no_secret_of_a_uri(formatter: logging.Formatter, error: bool) -> None:
    """Libraries log whole URLs, for instance urllib3 for an answer whose headers it cannot parse."""
    one = record("Failed to parse headers (url=https://u:SECRET@h/a?X-Amz-Signature=SECRET): []", error)
    one.stack_info = None
    one.uri = "redis://:SECRET@h"
    line = formatter.format(one)
    assert "SECRET" not in line
    assert "https://...@h/a?..." in line
