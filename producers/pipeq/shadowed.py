"""SHADOWED: a file of the user's, beside their program, that hides a package: ``redis.py``, ``celery.py``, ``json.py``.

Python finds the program's own folder first, so it then imports that file in the package's place, and fails with a
sentence about the package. Used where this package imports others at first: its public names, and its commands.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path


def sentence(error: ImportError) -> str | None:
    """Says which file hides which package; None if that is not what an error is about."""
    name = (error.name or "").partition(".")[0]
    found = error.path or getattr(sys.modules.get(name), "__file__", None)
    if not found:
        return None
    path = Path(found)
    places = (Path(place) for place in sysconfig.get_paths().values())
    is_installed = "site-packages" in path.parts or any(path.is_relative_to(place) for place in places)
    is_named_so = path.stem == name or (path.name == "__init__.py" and path.parent.name == name)
    if is_installed or not is_named_so or path.is_relative_to(Path(__file__).parent):
        return None
    return f"{path} hides the package {name!r}, which pipeq needs: give your file another name"
