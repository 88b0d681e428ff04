"""WARN: a warning that names the line of the caller, however deep in pipeq it is found."""

from __future__ import annotations

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
