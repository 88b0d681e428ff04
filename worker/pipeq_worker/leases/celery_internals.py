"""All private names of Celery, kombu and redis-py that pipeq uses. Their authors may change them in any release.

The functions read private attributes of objects. :data:`INHERITED` lists the private names that our subclasses (the
transport, the pool, the result backend) call or override. The unit test ``leases/test_celery_internals.py`` checks that
each name still exists and has the meaning stated here, and that no other module uses further ones. An incompatible
version of Celery or kombu therefore fails there first. Pinned versions: ``constraints.txt``.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import FunctionType
from typing import Any

from celery.app import trace
from celery.backends.redis import RedisBackend
from celery.concurrency.base import BasePool
from celery.worker.request import Request
from kombu.transport import redis as kombu_redis


def is_running(loop: Any) -> bool:
    """Whether kombu's event loop (``Hub``) is running a turn, so that a callback given to it runs soon."""
    return bool(loop._running)


def embed_of(request: Any) -> Any:
    """Returns the third part of a message's body, from Celery's request: links, the rest of a chain, a chord.

    Celery has already read the body (``Request._payload``); ``request.embed`` is for messages of another form.
    """
    _, _, embed = request._payload
    return embed


def has_stock_tracer() -> bool:
    """Whether Celery's tracer is its own. Packages that watch tasks (Sentry, New Relic) replace what builds it."""
    built_by = trace.build_tracer
    return isinstance(built_by, FunctionType) and built_by.__code__.co_filename == trace.__file__


def set_payload(message: Any, payload: Any) -> None:
    """Sets the decoded body of a kombu message, so that ``message.payload`` does not decode it again."""
    message._decoded_cache = payload


def hand_to_consumer(transport: Any, message: dict[str, Any], queue: str) -> None:
    """Calls the consumer of a queue with a message that was taken from it.

    Raises:
        KeyError: the queue has no consumer.
    """
    transport._deliver(message, queue)


def socket_of(connection: Any) -> Any:
    """Returns the socket of a redis-py connection; None if it is not connected."""
    return connection._sock


@dataclass(frozen=True)
class Inherited:
    """A private name of a class of Celery or kombu that one of our subclasses uses."""

    #: What the method does, or what the attribute holds.
    meaning: str
    #: Its parameters as ``inspect.signature`` writes them; empty for an attribute.
    parameters: str = ""


#: Class of Celery or kombu -> the private names that our subclasses of it use.
INHERITED: dict[type, dict[str, Inherited]] = {
    kombu_redis.QoS: {
        "_delivered": Inherited("delivery tag -> message passed to a consumer, not answered yet; has `restored`"),
        "_flush": Inherited("removes answered messages from `_delivered`", "(self)"),
        "_on_collect": Inherited("a finalizer that restores messages when the process ends; `cancel` stops it"),
    },
    kombu_redis.MultiChannelPoller: {
        "_channels": Inherited("the channels that it polls"),
        "_fd_to_chan": Inherited("file descriptor -> its channel, and its purpose (`LISTEN`)"),
        "_in_protected_read": Inherited("whether a caller drains events outside an event loop, one at a time"),
        "_register_LISTEN": Inherited("watches the connection of a channel's broadcasts", "(self, channel)"),
        "_unregister_from_poll": Inherited("stops watching a file descriptor", "(self, fileno)"),
    },
    kombu_redis.Channel: {
        "_basic_cancel": Inherited("ends a consumer", "(self, consumer_tag)"),
        "_connparams": Inherited("arguments of redis-py's connections", "(self, asynchronous=False)"),
        "_deliver_fanout_message": Inherited("passes a broadcast to its consumer", "(self, message, exchange)"),
        "_expires": Inherited("queue -> milliseconds after which it expires, for queues that do"),
        "_fanout_to_queue": Inherited("exchange of broadcasts -> the queue that receives them"),
        "_get": Inherited("returns one message of a queue, or raises Empty", "(self, queue)"),
        "_handle_message": Inherited("parses a reply to a subscription into a dictionary", "(self, client, r)"),
        "_in_listen": Inherited("the connection on which it waits for broadcasts; None while there is none"),
        "_q_for_pri": Inherited("the list of a queue for one priority", "(self, queue, pri)"),
        "_delete": Inherited("deletes a queue", "(self, queue, exchange, routing_key, pattern, *args, **kwargs)"),
        "_has_queue": Inherited("whether a queue has messages", "(self, queue, **kwargs)"),
        "_purge": Inherited("deletes the messages of a queue, and returns their number", "(self, queue)"),
        "_size": Inherited("number of messages of a queue", "(self, queue)"),
        "_queue_bind": Inherited("stores where broadcasts go", "(self, exchange, routing_key, pattern, queue)"),
        "_receive_one": Inherited("reads one broadcast and passes it on", "(self, c)"),
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
    Request: {
        "_app": Inherited("the app"),
        "_apply_result": Inherited("a weak reference to what the pool returned, whose `terminate` it calls"),
        "_connection_errors": Inherited("exceptions of a broken connection"),
        "_eventer": Inherited("sends events"),
        "_hostname": Inherited("the worker's name"),
        "_task": Inherited("the Celery task"),
        "_type": Inherited("the name of the Celery task"),
    },
    BasePool: {
        "_get_info": Inherited("what `inspect stats` shows of the pool", "(self) -> Dict[str, Any]"),
    },
}
