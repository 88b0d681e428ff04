"""WARN: a warning that names the line of the caller, however deep in pipeq it is found; and what libraries say."""

from __future__ import annotations

import logging
import os
import sys
import warnings

_HERE = os.path.dirname(__file__) + os.sep


def warn(says: str, category: type[Warning]) -> None:
    """Warns at the line that called pipeq."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame, level = frame.f_back, level + 1
    warnings.warn(says, category, stacklevel=level)


def no_logs_of_libraries() -> None:
    """For a process that is ours alone: lets what libraries log go nowhere, unless its user has set logging up.

    Otherwise Python would write it to stderr, tracebacks included, beside the sentence that says what happened.
    """
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())
