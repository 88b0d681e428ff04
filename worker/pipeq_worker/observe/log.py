"""Logging: one line for each record, as text or as JSON; each of our own records has an ``action``."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from pipeq.contract import shown

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class TextFormatter(logging.Formatter):
    """For people: ``20:15:03 INFO    loaded text-embedding``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, and below it the traceback of an error of another process, if it has one."""
        text = super().format(record)
        trace = getattr(record, "traceback", None)
        return f"{text}\n{_indented(shown.without_secrets(trace))}" if isinstance(trace, str) else text

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The record's line. Line breaks are escaped, because a producer could otherwise forge log lines."""
        return _escaped(shown.without_secrets(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's own name
        """A traceback. Its lines are indented, so that none of them looks like a record."""
        return _indented(shown.without_secrets(super().formatException(ei)))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's own name
        """A stack, formatted as a traceback is."""
        return _indented(super().formatStack(stack_info))


def _escaped(text: str) -> str:
    """Escapes control characters, and characters that change the direction of text, as Python's repr does."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _indented(text: str) -> str:
    return "\n".join("    " + _escaped(line) for line in text.splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the record's ``action`` and other extras."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats the record as one line of JSON."""
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": shown.without_secrets(record.getMessage()),
        }
        more = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        fields |= {name: shown.without_secrets(one) if isinstance(one, str) else one for name, one in more.items()}
        if record.exc_info:
            fields["exception"] = shown.without_secrets(self.formatException(record.exc_info))
        return json.dumps(fields, default=str)


def set_up(level: str, form: str) -> None:
    """Sends every log record to stderr; those of Celery and transformers only from warnings upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Celery logs a line with the result for each task, which is neither cheap nor private. Our log observer logs
    # batches.
    for name in (
        "celery.worker.strategy",
        "celery.apps.worker",
        "celery.worker.consumer.mingle",
        "celery.app.trace",
        "celery.redirected",
        "kombu",
        "botocore",
        "urllib3",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
