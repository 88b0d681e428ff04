"""CONTRACT: foreign text as errors, logs and records may show it. Any text -> uri, line -> part of a sentence.

Nothing here decides what may be read: a text that no parser takes is shown, too, and then hides more rather than less.
"""

from __future__ import annotations

import os
import re
import time
from functools import lru_cache
from urllib.parse import unquote

from pipeq.contract.schemes import SCHEMES

#: Most characters that are shown of one URI, or of one foreign text.
MOST = 300

# No scheme without a slash: in "user:password@host" the user would be one.
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*):([/\\]+)", re.IGNORECASE)
# Bounded, as an unbounded one would look at every letter of a long text from every letter before it.
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
#: Schemes without a query.
_STORED = frozenset(name for name, scheme in SCHEMES.items() if scheme.stored)
#: A shorter value may be a word of any sentence.
_LEAST_SECRET = 8
_SECRET_NAME = re.compile("pass|pwd|cred|secret|token|key|auth|sig", re.IGNORECASE)
_HARMLESS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?|true|false|yes|no|none|required|optional", re.IGNORECASE)


def uri(text: str) -> str:
    """A URI without what only its owner may know: user, password, query and fragment, where its scheme has them.

    A Redis URL keeps its user and the harmless part of its query. What is no URI is shown up to its question mark, and
    from its last ``@`` on.

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
        # The slashes beyond two are the path of a socket.
        return _printable(f"{scheme}:{slashes[:2]}" + _redis(scheme, slashes[2:] + rest), MOST)
    if scheme in _STORED:
        return _printable(begin + (rest if len(slashes) > 2 else _stored(rest)), MOST)
    return _printable(begin + _usual(rest), MOST)


def line(text: str, most: int = MOST) -> str:
    """Foreign words (a name, a content type, what a server said) as part of one line.

    URIs inside are shown as :func:`uri` shows them; line breaks become spaces, other control characters and what
    changes the direction of text a replacement character.

    Args:
        text: anything.
        most: characters of the answer at most; a text that was cut ends in ``...``.
    """
    return _printable(" ".join(_without_uris(text).split()), most)


def without_secrets(text: str) -> str:
    """A text of any length and many lines, its URIs as :func:`uri` shows them, and no secret of the environment."""
    return without_environment(_without_uris(text))


def _without_uris(text: str) -> str:
    return _INSIDE.sub(lambda match: uri(match[0]), text) if "://" in text or ":\\\\" in text else text


def without_environment(text: str) -> str:
    """The same text, with ``***`` in the place of each secret of this process's environment.

    A secret is the value of a variable whose name says so (``AWS_SECRET_ACCESS_KEY``, ``HF_TOKEN``), or the password in
    a URL (``PIPEQ_REDIS_URL``); values of fewer than 8 characters, and paths, are none.
    """
    for secret in _secrets(int(time.monotonic())):
        text = text.replace(secret, "***")
    return text


@lru_cache(maxsize=1)
def _secrets(second: int) -> tuple[str, ...]:
    # Once a second: errors come by thousands, and an environment hardly changes.
    found = set()
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name) and not value.startswith(("/", ".")):
            found.add(value)
        elif "://" in value and "@" in value:
            password = value.partition("://")[2].rpartition("@")[0].partition(":")[2]
            found |= {password, unquote(password)}
    # The longest first: one may hold another.
    return tuple(sorted((one for one in found if len(one) >= _LEAST_SECRET), key=len, reverse=True))


def value(anything: object, most: int = 100) -> str:
    """A value that somebody gave, as part of one line: its ``repr``, or its type where that cannot be had."""
    try:
        return line(repr(anything), most)
    except Exception:  # an object's own, an integer of 5,000 digits, a list of 50,000 levels
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
    # No "@", and yet no host: perhaps a user and a password, and nothing behind them.
    host = re.match(r"[^/?#:;,\\\s\[\]&]*", rest)
    return (host[0] if host else "") + ":***"


def _stored(rest: str) -> str:
    """An object or a file: any character may be part of its name, but none of its bucket or host."""
    place, slash, name = rest.partition("/")
    if "@" in place:
        return "...@" + place.rpartition("@")[2] + slash + name
    if ":" in place and not place.lower().startswith("arn:"):
        # A secret key often holds a slash.
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
    # Whatever came before the last "@" may be part of a password that nobody quoted.
    return (who or "...") + "@" + _without_query(text.rpartition("@")[2], "?#&")


def _without_query(text: str, ends: str = "?#") -> str:
    at = min((found for end in ends if (found := text.find(end)) >= 0), default=len(text))
    return text[:at] + ("?..." if "?" in text[at:] else "")
