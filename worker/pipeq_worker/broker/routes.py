"""HAND ON: checks the queue of a link, of the next task of a chain, or of a chord's body. Used by Celery's tracer.

Producers name this queue in their messages, and the worker pushes to it with its own permissions. It may be any queue:
of a pipeline that another worker serves, or of ordinary Celery tasks. It cannot be anything else: not a key of pipeq or
Celery, and not an exchange (one of them reaches every worker). The worker does not store the name. Which queues a
worker may push to is a matter of its Redis user (deploy/redis-users.acl).
"""

from __future__ import annotations

from typing import Any

from celery.app import amqp, routes
from kombu import Queue
from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError

#: Options of a signature that would send it to another place than the queue it names.
_ELSEWHERE = ("exchange", "exchange_type", "routing_key", "declare")


class Queues(amqp.Queues):
    """The worker's own queues; any other queue can be pushed to."""

    def __missing__(self, name: Any) -> Queue:
        if not keys.is_queue_name(name):
            sentence = f"the next task cannot go to {shown.line(str(name))!r}: a queue is {keys.QUEUE_NAME_WORDS}"
            raise PipeqError(ErrorCode.INVALID_MESSAGE, sentence)
        # Not kept, because producers may name any number of queues.
        return self.new_missing(name)


class Router(routes.Router):
    """Sends every message to the queue that it names."""

    def route(self, options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Returns the options of a message, with its queue."""
        queue = options.get("queue")
        if queue is None and options.get("exchange"):
            sentence = f"the next task names the exchange {shown.line(str(options['exchange']))!r}: let it name a queue"
            raise PipeqError(ErrorCode.INVALID_MESSAGE, sentence)
        if queue is not None and not isinstance(queue, str | Queue):
            raise PipeqError(ErrorCode.INVALID_MESSAGE, "the queue of the next task is no text")
        options = {name: value for name, value in options.items() if name not in _ELSEWHERE}
        # Declaring the queue would leave a binding in Redis, which a list does not need.
        return {**super().route(options, *args, **kwargs), "declare": []}


class Routes(amqp.AMQP):
    """The class for ``Celery(amqp=...)``."""

    queues_cls = Queues

    def Router(self, queues: Any = None, create_missing: Any = None) -> Router:  # noqa: N802 - Celery's name
        """Creates a router; called again when the routes change."""
        return Router(self.routes, queues or self.queues, True, app=self.app)
