"""CONSUME: kombu's Redis transport, which a message that cannot be read does not stop. After: pool.

Kombu's own raises out of the event loop on a message that is no JSON or lacks its frame, after it was taken off the
list: the worker stops and the message is gone. Here it goes to the dead-letter list with the reason.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

from kombu.asynchronous import get_event_loop
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis

from producers.errors import ErrorCode
from worker.dead_letter import dead_letter, push

logger = logging.getLogger(__name__)

#: What kombu knows this transport by once this module is imported.
NAME = "pipeq"
TRANSPORT_ALIASES[NAME] = f"{__name__}:Transport"


@contextmanager
def _quietly(what: str) -> Iterator[None]:
    """At the end of a connection that Redis has already cut: what cannot be said now, the next delivery says.

    Kombu raises more than connection errors here (an AttributeError on what it has closed itself), and nobody above
    would catch those: the worker would end.
    """
    try:
        yield
    except Exception as error:
        logger.warning("could not %s: %s: %s", what, type(error).__name__, error, extra={"action": "disconnect"})


class QoS(kombu_redis.QoS):
    """Kombu's acknowledgements, all those of one turn of the event loop in one round trip."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unsent: list[str] = []

    def ack(self, delivery_tag: str) -> None:
        """Frees the message's credit now; Redis hears of it at the end of this turn."""
        virtual.QoS.ack(self, delivery_tag)
        self._unsent.append(delivery_tag)
        loop = get_event_loop()
        if loop is None or not loop._running:
            with _quietly("acknowledge"):
                self.flush()
        elif len(self._unsent) == 1:
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends what is unsent. What does not arrive is delivered again, and then dropped as ended already."""
        tags, self._unsent = self._unsent, []
        if tags and not self.channel.closed:
            with self.channel.conn_or_acquire() as client, client.pipeline() as pipe:
                pipe.zrem(self.unacked_index_key, *tags).hdel(self.unacked_key, *tags).execute()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """At the end, what was done must not be put back with what was not."""
        with _quietly("acknowledge"):
            self.flush()
        with _quietly("put back what is unfinished"):
            super().restore_unacked_once(stderr)


class Channel(kombu_redis.Channel):
    """Kombu's channel, with a look at each message before it is handed on."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> bool:
        try:
            try:
                reply = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                # Disconnected, the next iteration reconnects.
                self.client.connection.disconnect()
                raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if not reply:
            raise Empty
        key, raw = reply
        queue = key.decode().rsplit(self.sep, 1)[0]
        self._queue_cycle.rotate(queue)
        message = _read(raw, queue)
        if isinstance(message, str):
            self._dead_letter(queue, raw, message)
        else:
            self.connection._deliver(message, queue)
        return True

    def _dead_letter(self, queue: str, raw: bytes, reason: str) -> None:
        letter = dead_letter(None, ErrorCode.INVALID_MESSAGE, reason, raw.decode("utf-8", "backslashreplace"))
        logger.error("a message on %s cannot be read: %s", queue, reason, extra={"action": "dead_letter"})
        with self.conn_or_acquire() as client:
            push(client, queue, letter)


class Transport(kombu_redis.Transport):
    """See the module."""

    Channel = Channel


def _read(raw: bytes, queue: str) -> dict[str, Any] | str:
    """The message's frame, or why it is none."""
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return f"it is no JSON: {error}"
    if not isinstance(message, dict):
        return f"it is a JSON {type(message).__name__}, not Celery's frame"
    properties = message.get("properties")
    if not isinstance(properties, dict) or not isinstance(properties.get("delivery_tag"), str):
        return "it has no properties with a delivery_tag: send it with Celery or pipeq's client"
    if not isinstance(message.get("headers", {}), dict):
        return "its headers are no object"
    # Where it lay counts, not where it says it was going: a retry goes back there.
    properties["delivery_info"] = {"exchange": "", "routing_key": queue}
    return _check_body(message.get("body"), properties.get("body_encoding")) or message


def _check_body(body: Any, encoding: Any) -> str | None:
    """Why kombu could not decode the body; None where it can."""
    if not body or encoding is None:
        return None
    if encoding != "base64":
        return f"its body_encoding is {encoding!r}, not base64"
    try:
        base64.b64decode(body)
    except (ValueError, TypeError) as error:
        return f"its body is no base64: {error}"
    return None


def celery_url(redis_url: str) -> str:
    """A Redis URL as Celery and kombu read it behind the name of a backend or transport of ours.

    To them ``unix://`` is ``socket://``, and TLS must say whether it checks the server's certificate: it does.
    """
    scheme, _, rest = redis_url.partition("://")
    if scheme in ("unix", "redis+socket"):
        return f"socket://{rest.replace('db=', 'virtual_host=')}"
    if scheme == "rediss" and "ssl_cert_reqs=" not in rest:
        return f"{redis_url}{'&' if '?' in rest else '?'}ssl_cert_reqs=required"
    return redis_url
