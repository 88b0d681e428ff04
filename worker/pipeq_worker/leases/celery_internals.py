"""Everything of Celery, kombu and redis-py that pipeq uses though it is private: their authors promise nothing of it.

Functions read the private attributes of their objects. :data:`INHERITED` lists the private names that our subclasses
call or override (the transport, the pool, the result backend). ``tests/unit/pipeq_worker/leases/test_celery_internals``
says for each name whether it still exists and still means what stands here, and that no other module uses another one.
So a new version of Celery or kombu fails there first. Pinned versions: ``constraints.txt``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery.backends.redis import RedisBackend
from celery.concurrency.base import BasePool
from kombu.transport import redis as kombu_redis


def is_running(loop: Any) -> bool:
    """Whether kombu's event loop (``Hub``) is in a turn, so that what it is told to call soon is called soon."""
    return bool(loop._running)


def embed_of(request: Any) -> Any:
    """The third part of a message's body, of Celery's request: links, the rest of a chain, a chord.

    Celery has read the body once (``Request._payload``); ``request.embed`` is for messages of another form.
    """
    _, _, embed = request._payload
    return embed


def set_payload(message: Any, payload: Any) -> None:
    """Gives a kombu message its decoded body, so that ``message.payload`` does not decode it again."""
    message._decoded_cache = payload


def hand_to_consumer(transport: Any, message: dict[str, Any], queue: str) -> None:
    """Calls the consumer of a queue with a message that was taken off it.

    Raises:
        KeyError: nobody consumes the queue.
    """
    transport._deliver(message, queue)


def socket_of(connection: Any) -> Any:
    """The socket of one of redis-py's connections; None while it is not connected."""
    return connection._sock


@dataclass(frozen=True)
class Inherited:
    """A private name of a class of theirs that a class of ours uses."""

    #: What it does, or holds.
    meaning: str
    #: Its parameters as ``inspect.signature`` writes them; empty for an attribute.
    parameters: str = ""


#: Their class -> the private names that our subclasses of it use.
INHERITED: dict[type, dict[str, Inherited]] = {
    kombu_redis.QoS: {
        "_delivered": Inherited("delivery tag -> message that was handed out and has no answer yet; has `restored`"),
        "_flush": Inherited("takes those out of `_delivered` that have an answer", "(self)"),
        "_on_collect": Inherited("a finalizer that would restore messages when the process ends; `cancel` stops it"),
    },
    kombu_redis.MultiChannelPoller: {
        "_channels": Inherited("the channels that it polls"),
        "_fd_to_chan": Inherited("number of a file -> its channel, and what it is for (`LISTEN`)"),
        "_in_protected_read": Inherited("whether somebody drains events outside an event loop, one at a time"),
        "_register_LISTEN": Inherited("watches the connection of a channel's broadcasts", "(self, channel)"),
        "_unregister_from_poll": Inherited("watches a file no more", "(self, fileno)"),
    },
    kombu_redis.Channel: {
        "_basic_cancel": Inherited("ends a consumer", "(self, consumer_tag)"),
        "_connparams": Inherited("arguments of redis-py's connections", "(self, asynchronous=False)"),
        "_deliver_fanout_message": Inherited("hands a broadcast to its consumer", "(self, message, exchange)"),
        "_expires": Inherited("queue -> milliseconds after which it is removed, of those that are"),
        "_fanout_to_queue": Inherited("exchange of broadcasts -> the queue that hears them"),
        "_get": Inherited("one message of a queue, or Empty", "(self, queue)"),
        "_handle_message": Inherited("a reply to a subscription -> a mapping of its parts", "(self, client, r)"),
        "_in_listen": Inherited("the connection on which it waits for broadcasts; None while there is none"),
        "_q_for_pri": Inherited("the list of a queue for one priority", "(self, queue, pri)"),
        "_queue_bind": Inherited("stores where broadcasts go", "(self, exchange, routing_key, pattern, queue)"),
        "_receive_one": Inherited("reads one broadcast and hands it on", "(self, c)"),
        "_restore": Inherited("puts a message back on its queue", "(self, message, leftmost=False)"),
    },
    RedisBackend: {
        "_get_result_meta": Inherited(
            "the record of a result, as a dictionary",
            "(self, result, state, traceback, request, format_date=True, encode=False)",
        ),
        "_params_from_url": Inherited("arguments of redis-py's connections", "(self, url, defaults)"),
        "_store_result": Inherited(
            "stores a record under a task's id",
            "(self, task_id, result, state, traceback=None, request=None, **kwargs)",
        ),
    },
    BasePool: {
        "_get_info": Inherited("what `inspect stats` shows of the pool", "(self) -> Dict[str, Any]"),
    },
}
