"""LOCAL PATHS: a name with wildcards -> the files of this machine that it stands for. Used by jobs and commands.

What is there under exactly that name counts first: a folder may be called ``photos [1]``.
"""

from __future__ import annotations

import glob
import os

from pipeq.s3_listing import WILDCARDS


def is_pattern(name: str) -> bool:
    """Whether a name stands for several files."""
    return WILDCARDS.search(name) is not None and not os.path.exists(os.path.expanduser(name))


def matching(pattern: str) -> list[str]:
    """The files that a name with wildcards stands for, in the order of their names, so that the n-th stays the same.

    Args:
        pattern: as shells have it, with ``**`` for any folders; with a ``/`` at its end, all files of a folder.
    """
    pattern = os.path.expanduser(pattern)
    folder, name = os.path.split(pattern)
    plain: list[str] = []
    while folder and not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder, last = os.path.split(folder)
        plain.insert(0, last)
    if not name and not plain:
        return sorted(one.path for one in os.scandir(folder or ".") if one.is_file()) if os.path.isdir(folder) else []
    found = glob.iglob(os.path.join(glob.escape(folder), *plain, name or "*"), recursive=True)
    return sorted(path for path in found if os.path.isfile(path))
