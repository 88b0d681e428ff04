"""DISPLAY: how far a job is, for people and programs: a live line, plain lines, or JSON. Used by commands."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import click

from pipeq.contract import shown
from pipeq.contract.job import JobStatus
from pipeq.terminal import is_terminal

#: How often a plain line says how far a job is, in seconds; and a live one.
LINE_S, LIVE_S = 5.0, 0.2
#: Codes of errors that a line shows.
CODES = 4


class Display:
    """Says how far a job is, on stderr: in one line that changes, on a terminal; otherwise in a line now and then.

    Args:
        in_json: whether each line is JSON, on stdout.
    """

    def __init__(self, *, in_json: bool = False) -> None:
        self._in_json = in_json
        self._is_live = not in_json and is_terminal(sys.stderr)
        #: The id of the job that was shown last.
        self.job_id: str | None = None
        self._next_at = 0.0
        self._said = ""
        self._width = 0

    def is_due(self) -> bool:
        """Whether a status would be shown now."""
        return time.monotonic() >= self._next_at

    def show_first_error(self, outcomes: Iterable[Mapping[str, Any]]) -> None:
        """Shows what was wrong with the first of these rows that has failed, to people: often it is so with all."""
        error = next((one for one in outcomes if "error" in one), None)
        if error is not None and not self._in_json:
            click.echo(f"line {error.get('line')}: {shown.line(str(error['error'].get('message')), 500)}", err=True)

    def show(self, status: JobStatus, *, is_last: bool = False) -> None:
        """Shows a status, unless the last one is too young."""
        self.job_id = status.id
        now = time.monotonic()
        if now < self._next_at and not is_last:
            return
        self._next_at = now + (LIVE_S if self._is_live else LINE_S)
        if self._in_json:
            click.echo(json.dumps(status.to_json()))
            return
        text = line_of(status)
        if text == self._said and not self._is_live:
            return
        self._said = text
        if self._is_live:
            click.echo(f"\r{text.ljust(self._width)}", nl=is_last, err=True)
            self._width = len(text)
        else:
            click.echo(text, err=True)


def line_of(status: JobStatus) -> str:
    """A status in one line: rows, rate, time left, failures by code."""
    total = str(status.submitted) if status.is_sealed else f"{status.submitted}+"
    parts = [f"{shown.line(status.id, 60)}  {status.state.replace('_', ' ')}  {status.done}/{total} rows"]
    if status.rate is not None:
        parts.append(f"{status.rate:.0f}/s")
    if status.left_s is not None and not status.state.is_final:
        parts.append(f"{_duration(status.left_s)} left")
    if status.failed:
        codes = sorted(status.codes.items(), key=lambda one: -one[1])[:CODES]
        said = ", ".join(f"{shown.line(code, 40)} {count}" for code, count in codes)
        parts.append(f"{status.failed} failed ({said})")
    if status.error:
        parts.append(shown.line(status.error, 300))
    if status.device_s:
        parts.append(f"device {_duration(status.device_s)}")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f}m" if minutes < 60 else f"{hours:.1f}h"
