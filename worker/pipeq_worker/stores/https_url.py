"""HTTPS URL: parses only those https:// URLs that every parser reads in the same way. Used by https."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from pipeq_worker.stores.climbing import climbs

# Only characters that a URI may hold, and no "\" and no "@" before the path: parsers disagree on where the host ends
# then.
_HTTPS = re.compile(
    r"https://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(#.*)?",
    re.IGNORECASE | re.ASCII,
)
_PRINTABLE = re.compile(r"[!-~]*")


@dataclass(frozen=True)
class HttpsUrl:
    """An https:// URL that every parser reads in the same way."""

    #: In lower case; an IPv6 address has no brackets.
    host: str
    port: int
    #: Percent-encoded, as given; begins with a slash.
    path: str
    #: With its question mark, or empty.
    query: str = ""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parses a URL.

        Raises:
            ValueError: says what is wrong: another scheme, user information, a backslash, ``..`` in any encoding, ...
        """
        match = _HTTPS.fullmatch(url)
        if match is None or not _PRINTABLE.fullmatch(url):
            raise ValueError("it is no plain https://host/path (user, password, spaces and non-ASCII are not taken)")
        path = match["path"] or "/"
        if climbs(path):
            raise ValueError('its path holds "." or ".." segments or a backslash')
        port = int(match["port"] or 443)
        if not 0 < port < 65536:
            raise ValueError(f"there is no port {port}")
        return cls(match["host"].lower().strip("[]"), port, path, match["query"] or "")

    @property
    def netloc(self) -> str:
        """Host and port in the form of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """Path and query, the target of a request."""
        return self.path + self.query

    def __str__(self) -> str:
        return f"https://{self.netloc}{self.target}"
