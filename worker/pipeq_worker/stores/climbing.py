"""CLIMBING: tells whether a path leads upwards in any reading of it. Used for URIs of https and of object stores."""

from __future__ import annotations

from urllib.parse import unquote


def climbs(path: str, separators: str = "/") -> bool:
    """Whether a path, as it is or decoded, has a ``.`` or ``..`` segment, or a backslash that is no separator here."""
    # A server behind a proxy may decode twice. A path that still changes after this many rounds is an attack.
    for _ in range(4):
        # Some servers remove parameters before they resolve a path, so "..;x" is ".." to them.
        parts = path.replace("\\", "/").split("/") if "\\" in separators else path.split("/")
        if any(part.partition(";")[0] in (".", "..") for part in parts) or ("\\" in path and "\\" not in separators):
            return True
        decoded = unquote(path)
        if decoded == path:
            return False
        path = decoded
    return True
