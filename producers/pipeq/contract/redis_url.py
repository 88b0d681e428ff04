"""Redis URLs: a URL -> the arguments of a connection. Used by client and worker, so that both accept the same URLs.

The options in a URL's query are redis-py's. Options that would change what is read, name code, or have no effect are
refused by name, before anything connects.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from pipeq.contract import shown

if TYPE_CHECKING:
    import redis.asyncio

#: Defaults of timeouts that the URL does not set, in seconds.
CONNECT_S = 5.0
TIMEOUT_S = 30.0

#: Scheme -> kind of connection.
KINDS: dict[str, type[Any]] = {
    "redis": redis.Connection,
    "rediss": redis.SSLConnection,
    "unix": redis.UnixDomainSocketConnection,
    # Celery's schemes.
    "redis+socket": redis.UnixDomainSocketConnection,
    "socket": redis.UnixDomainSocketConnection,
}


def _number(least: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not least <= (value := float(text)) < 1e9:
            raise ValueError
        return value

    return parse


def _integer(least: int) -> Callable[[str], int]:
    return lambda text: int(_number(least)(str(int(text))))


def _flag(text: str) -> bool:
    known = {**dict.fromkeys(("true", "yes", "1", "on"), True), **dict.fromkeys(("false", "no", "0", "off"), False)}
    if text.lower() not in known:
        raise ValueError
    return known[text.lower()]


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return parse


def _name(text: str) -> str:
    if not text or any(char.isspace() or not char.isprintable() for char in text):
        raise ValueError
    return text


def _requirement(text: str) -> str:
    return _one_of("required", "optional", "none")(text.lower().removeprefix("cert_"))


def _file(text: str) -> str:
    if not Path(text).exists():
        raise ValueError
    return text


#: Option -> what it must be, in words, and the function that parses it.
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "db": ("a database's number", _integer(0)),
    "username": ("a user", str),
    "password": ("a password", str),
    **dict.fromkeys(("socket_timeout", "socket_connect_timeout", "timeout"), ("seconds", _number(0.001))),
    **dict.fromkeys(("socket_keepalive", "retry_on_timeout"), ("true or false", _flag)),
    "health_check_interval": ("whole seconds", _integer(0)),
    "socket_read_size": ("bytes", _integer(1)),
    "max_connections": ("a count from 1", _integer(1)),
    "protocol": ("2 or 3", lambda text: int(_one_of("2", "3")(text))),
    "client_name": ("a name without blanks", _name),
}
_SSL_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "ssl_cert_reqs": ("required, optional or none", _requirement),
    **dict.fromkeys(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"), ("a file that is there", _file)),
    "ssl_ca_path": ("a folder that is there", _file),
    "ssl_check_hostname": ("true or false", _flag),
    "ssl_ciphers": ("a list of OpenSSL's", _name),
}


def options(url: str) -> dict[str, Any]:
    """Returns the arguments of redis-py's connection pool for a URL; only those that the URL sets.

    Args:
        url: ``redis://user:password@host:6379/0?option=value``, ``rediss://`` for TLS, ``unix:///path?db=0`` for a
            socket; also Celery's scheme for the latter, ``redis+socket://``.

    Raises:
        ValueError: the URL cannot be parsed, or asks for something that pipeq cannot do; the message shows no secret.
    """
    scheme = url.partition("://")[0].lower()
    if "sentinel" in scheme:
        raise ValueError(
            f"{shown.uri(url)}: pipeq does not ask Sentinel; give the address of the primary itself, or of something "
            "that leads there (HAProxy, a service of Kubernetes)"
        )
    kind = KINDS.get(scheme)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        kind, parts, port = None, urlsplit(""), None
    if kind is None or parts.fragment:
        # Without the parser's reason, because it would quote a part of a password with an unquoted `/` or `#`.
        raise ValueError(
            f"{shown.uri(url)} is no Redis URL like redis://host:6379/0, rediss:// or unix:///path "
            "(in a password, write / # ? @ as %2F %23 %3F %40)"
        )
    found: dict[str, Any] = {"connection_class": kind}
    if kind is redis.UnixDomainSocketConnection:
        found["path"] = unquote(parts.path)
    else:
        if "," in (parts.hostname or ""):
            raise ValueError(f"{shown.uri(url)} names several servers; pipeq uses one")
        found |= _server(url, parts)
        found["port"] = port or 6379
    found |= {name: unquote(value) for name in ("username", "password") if (value := getattr(parts, name))}
    return found | _query(url, parts, kind is redis.SSLConnection, found)


def _server(url: str, parts: SplitResult) -> dict[str, Any]:
    found: dict[str, Any] = {"host": unquote(parts.hostname or "localhost")}
    try:
        # Python's name look-up raises UnicodeError, not a network error, for a label that is empty or over 63
        # characters.
        found["host"].encode("idna")
    except UnicodeError:
        raise ValueError(f"{shown.uri(url)}: what stands before the port is no name of a host") from None
    if path := unquote(parts.path).strip("/"):
        if not path.isdecimal() or len(path) > 9:
            raise ValueError(f"{shown.uri(url)}: what follows the slash is the database's number")
        found["db"] = int(path)
    return found


def _query(url: str, parts: SplitResult, has_tls: bool, said: dict[str, Any]) -> dict[str, Any]:
    known = {**_OPTIONS, **(_SSL_OPTIONS if has_tls else {})}
    found: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        name = {"virtual_host": "db"}.get(name, name)
        if name not in known:
            raise ValueError(f"{shown.uri(url)}: {_why_not(name)}")
        words, parse = known[name]
        try:
            found[name] = parse(value)
        except ValueError:
            raise ValueError(f"{shown.uri(url)}: the option {name!r} is not {words}") from None
    # As in redis-py: user and password before the host win, and so does the database in the query.
    found = {name: value for name, value in found.items() if name not in ("username", "password") or name not in said}
    if found.get("ssl_cert_reqs") == "none":
        found.setdefault("ssl_check_hostname", False)
    return found


def _why_not(name: str) -> str:
    quoted = repr(shown.line(name, 60))
    if name in _SSL_OPTIONS:
        return f"the option {quoted} is for TLS: write rediss://"
    if name in ("decode_responses", "encoding", "encoding_errors"):
        return f"the option {quoted} would change what pipeq reads"
    if name == "credential_provider":
        return f"the option {quoted} names code"
    close = get_close_matches(name, [*_OPTIONS, *_SSL_OPTIONS], 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join([*_OPTIONS, *_SSL_OPTIONS])}"
    return f"pipeq does not know the option {quoted}; {hint}"


def plain_url(arguments: dict[str, Any]) -> str:
    """A URL with only those parts that Celery itself reads: user, password, host, port, database."""
    user, password = (quote(arguments.get(name) or "", safe="") for name in ("username", "password"))
    who = f"{user}:{password}@" if password else f"{user}@" if user else ""
    host = arguments.get("host", "localhost")
    return f"redis://{who}{f'[{host}]' if ':' in host else host}:{arguments.get('port', 6379)}/{arguments.get('db', 0)}"


def connect(url: str, *, retries: int = 1, timeout_s: float = TIMEOUT_S) -> redis.Redis:
    """Makes a client with its own connection pool; it connects at first use.

    Args:
        url: see :func:`options`.
        retries: number of reconnects before a command fails; the pool's connections go stale when Redis restarts.
        timeout_s: how long a reply may take, unless the URL says it.

    Raises:
        ValueError: see :func:`options`.
    """
    arguments = {
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": timeout_s,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), retries),
        **options(url),
    }
    wait_s = arguments.pop("timeout", TIMEOUT_S)
    if "max_connections" in arguments:
        # A caller that finds all connections in use waits.
        make: Callable[..., redis.ConnectionPool] = redis.BlockingConnectionPool
        return redis.Redis.from_pool(make(timeout=wait_s, **arguments))
    # The client owns the pool, so closing the client closes its connections.
    return redis.Redis.from_pool(redis.ConnectionPool(**arguments))


def refusal(error: Exception, what: str = "user or password") -> str:
    """What a server that refuses to know us says, as the end of a sentence that begins with its URL."""
    text = str(error)
    # redis-py's first command is HELLO, whose error does not name the password.
    if "HELLO must be called" in text or "NOAUTH" in text or "Authentication required" in text:
        return "asks for a password, and the URL has none: write user, colon, password and @ before the host"
    return f"refuses {what}: {shown.line(text)}"


def connect_async(url: str) -> redis.asyncio.Redis:
    """Makes a client for an event loop, with its own connection pool; it connects at first use.

    It sends nothing again by itself, and waits for a reply for ever: who asks sets the limits.

    Raises:
        ValueError: see :func:`options`.
    """
    from redis import asyncio  # not at the top: most processes never need it
    from redis.asyncio.retry import Retry as AsyncRetry

    kinds: dict[Any, type[Any]] = {
        redis.Connection: asyncio.Connection,
        redis.SSLConnection: asyncio.SSLConnection,
        redis.UnixDomainSocketConnection: asyncio.UnixDomainSocketConnection,
    }
    arguments = {"socket_connect_timeout": CONNECT_S, "retry": AsyncRetry(NoBackoff(), 0), **options(url)}
    for name in ("timeout", "max_connections", "socket_read_size"):
        arguments.pop(name, None)
    arguments["connection_class"] = kinds[arguments["connection_class"]]
    arguments["socket_timeout"] = None
    return asyncio.Redis.from_pool(asyncio.ConnectionPool(**arguments))


def without_password(url: str) -> str:
    """The URL with its password replaced by ``***``, in whatever form it is given."""
    return shown.uri(url)
