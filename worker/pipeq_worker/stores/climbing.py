"""CLIMBING: does a path lead up, as somebody might read it? Asked of the URIs of https and of objects."""

from __future__ import annotations

from urllib.parse import unquote


def climbs(path: str, separators: str = "/") -> bool:
    """Whether a path, as it is or decoded, has a segment that leads up, or a backslash that separates none for us."""
    # A server behind a proxy may decode twice; a path that still changes after that many rounds is an attack.
    for _ in range(4):
        # Some servers cut parameters off before they resolve: "..;x" is ".." to them.
        parts = path.replace("\\", "/").split("/") if "\\" in separators else path.split("/")
        if any(part.partition(";")[0] in (".", "..") for part in parts) or ("\\" in path and "\\" not in separators):
            return True
        decoded = unquote(path)
        if decoded == path:
            return False
        path = decoded
    return True
