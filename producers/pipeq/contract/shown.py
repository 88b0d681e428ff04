"""CONTRACT: makes foreign text safe for errors, logs and records. Any text -> uri, line -> a part of a sentence.

These functions do not decide what may be read. They also show text that no parser accepts, and then hide more rather
than less of it.
"""

from __future__ import annotations

import os
import re
import time
from functools import lru_cache
from urllib.parse import unquote

from pipeq.contract.schemes import SCHEMES

#: Most characters of one URI, or of one foreign text, that are shown.
MOST = 300

# A scheme must be followed by a slash; otherwise the user in "user:password@host" would be one.
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*):([/\\]+)", re.IGNORECASE)
# The length is bounded, because an unbounded search takes quadratic time on a long text.
_INSIDE = re.compile(r"[a-z][a-z0-9+.-]{0,30}:[/\\]{2}[^\s\"'<>]+", re.IGNORECASE)
_HOST = r"(?:\[[0-9a-f:.]*\]|[^/?#@:;,\\\s\[\]]*)(?::[0-9]*)?"
_USUAL = re.compile(rf"(?P<user>[^/?#@\\\s]*@)?(?P<host>{_HOST})(?=[/?#]|$)", re.IGNORECASE)
_REDIS = re.compile(
    rf"(?:(?P<user>[^:@/?#]*)(?P<password>:[^@/?#]*)?@)?(?P<host>{_HOST}(?:[,;]{_HOST})*)"
    r"(?P<path>/[0-9]*)?(?:\?(?P<query>[^#]*))?(?:#.*)?",
    re.IGNORECASE | re.DOTALL,
)
_SOCKET = re.compile(
    r"(?:(?P<user>[^:@/?#]*)(?P<password>:[^@/?#]*)?@)?(?P<host>)(?P<path>/[^?#]*)(?:\?(?P<query>[^#]*))?(?:#.*)?",
    re.DOTALL,
)
_SECRET_VARIABLE = re.compile("PASSW|PWD$|SECRET|TOKEN|_KEY$|CREDENTIAL|AUTH$", re.IGNORECASE)
#: Schemes whose URIs have no query.
_STORED = frozenset(name for name, scheme in SCHEMES.items() if scheme.stored)
#: Shortest value that counts as a secret; a shorter one may be a word of any sentence.
_LEAST_SECRET = 8
_SECRET_NAME = re.compile("pass|pwd|cred|secret|token|key|auth|sig", re.IGNORECASE)
_HARMLESS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?|true|false|yes|no|none|required|optional", re.IGNORECASE)


def count(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def uri(text: str) -> str:
    """Shows a URI without its secrets: user, password, query and fragment, if its scheme has them.

    A Redis URL keeps its user and the harmless part of its query. A text that is no URI is shown from its last ``@`` up
    to its question mark.

    Args:
        text: a URI of any scheme, well-formed or not.

    Returns:
        One line of at most 300 characters, without control characters; it is for reading, not for opening.
    """
    match = _SCHEME.match(text)
    if match is None:
        if text.lstrip()[:5].lower() == "data:":
            return _printable(text.strip().partition(",")[0] + ",...", MOST)
        return _printable(_after_at(text, "") if "@" in text else _without_query(text), MOST)
    scheme, slashes, rest = match[1].lower(), match[2], text[match.end() :]
    begin = f"{scheme}:{slashes}"
    if "redis" in scheme or scheme in ("unix", "sentinel", "valkey", "valkeys"):
        # The slashes after the first two belong to the path of a socket.
        return _printable(f"{scheme}:{slashes[:2]}" + _redis(scheme, slashes[2:] + rest), MOST)
    if scheme in _STORED:
        return _printable(begin + (rest if len(slashes) > 2 else _stored(rest)), MOST)
    return _printable(begin + _usual(rest), MOST)


def line(text: str, most: int = MOST) -> str:
    """Shows foreign text (a name, a content type, a server's message) as a part of one line.

    URIs in it are shown as by :func:`uri`. Line breaks become spaces; other control characters, and characters that
    change the direction of text, become a replacement character.

    Args:
        text: any text.
        most: most characters of the result; a text that was cut ends in ``...``.
    """
    return _printable(" ".join(_without_uris(text).split()), most)


def without_secrets(text: str) -> str:
    """Returns a text of any length and number of lines with URIs as by :func:`uri`, without environment secrets."""
    return without_environment(_without_uris(text))


def _without_uris(text: str) -> str:
    return _INSIDE.sub(lambda match: uri(match[0]), text) if "://" in text or ":\\\\" in text else text


def without_environment(text: str) -> str:
    """Replaces each secret of this process's environment by ``***``.

    A secret is the value of a variable whose name says so (``AWS_SECRET_ACCESS_KEY``, ``HF_TOKEN``), or the password in
    a URL (``PIPEQ_REDIS_URL``). Values of fewer than 8 characters, and paths, do not count.
    """
    for secret in _secrets(int(time.monotonic())):
        text = text.replace(secret, "***")
    return text


@lru_cache(maxsize=1)
def _secrets(second: int) -> tuple[str, ...]:
    # Recomputed once a second, because errors may come by the thousands, and an environment hardly changes.
    found = set()
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name) and not value.startswith(("/", ".")):
            found.add(value)
        elif "://" in value and "@" in value:
            password = value.partition("://")[2].rpartition("@")[0].partition(":")[2]
            found |= {password, unquote(password)}
    # The longest first, because one secret may contain another.
    return tuple(sorted((one for one in found if len(one) >= _LEAST_SECRET), key=len, reverse=True))


def value(anything: object, most: int = 100) -> str:
    """Shows a caller's value as a part of one line: its ``repr``, or its type if that raises."""
    try:
        return line(repr(anything), most)
    except Exception:  # an object's own repr, an integer of 5,000 digits, a list of 50,000 levels
        return f"a {type(anything).__name__}"


def _printable(text: str, most: int) -> str:
    if len(text) > most:
        text = text[: max(0, most - 3)] + "..."
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _usual(rest: str) -> str:
    match = _USUAL.match(rest)
    if match is not None:
        return ("...@" if match["user"] else "") + match["host"] + _without_query(rest[match.end() :])
    if "@" in rest:
        return _after_at(rest, "")
    # Without "@" and without a host this may be a user and a password, with nothing after them.
    host = re.match(r"[^/?#:;,\\\s\[\]&]*", rest)
    return (host[0] if host else "") + ":***"


def _stored(rest: str) -> str:
    """Shows the URI of an object or a file. Its name may contain any character; its bucket or host may not."""
    place, slash, name = rest.partition("/")
    if "@" in place:
        return "...@" + place.rpartition("@")[2] + slash + name
    if ":" in place and not place.lower().startswith("arn:"):
        # A secret key often has a slash.
        return "...@" + rest.rpartition("@")[2] if "@" in rest else place.partition(":")[0] + ":***"
    return rest


def _redis(scheme: str, rest: str) -> str:
    socket = scheme == "unix" or "socket" in scheme
    match = (_SOCKET if socket else _REDIS).fullmatch(rest)
    if match is None:
        user = re.match(r"([^:@/?#]*):", rest)
        return _after_at(rest, f"{user[1]}:***" if user else "***") if "@" in rest else _usual(rest)
    who = "" if match["user"] is None else f"{match['user']}:***@" if match["password"] else "***@"
    if match["query"] is None:
        return who + match["host"] + (match["path"] or "")
    query = "&".join(_parameter(part) for part in match["query"].split("&"))
    return f"{who}{match['host']}{match['path'] or ''}?{query}"


def _parameter(text: str) -> str:
    name, equals, value = text.partition("=")
    if not equals:
        return "***" if name else ""
    return text if _HARMLESS.fullmatch(value) and not _SECRET_NAME.search(name) else f"{name}=***"


def _after_at(text: str, who: str) -> str:
    # Everything before the last "@" may be part of an unquoted password.
    return (who or "...") + "@" + _without_query(text.rpartition("@")[2], "?#&")


def _without_query(text: str, ends: str = "?#") -> str:
    at = min((found for end in ends if (found := text.find(end)) >= 0), default=len(text))
    return text[:at] + ("?..." if "?" in text[at:] else "")
