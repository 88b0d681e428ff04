"""HAND ON, where to: the queue of a link, of the next task of a chain, of a chord's body. Used by Celery's tracer.

Producers name it in their messages, and the worker pushes there with its own rights. So it may be any queue, of a
pipeline that another worker serves or of somebody's ordinary Celery tasks, and nothing but a queue: no key of pipeq's
or Celery's own, no exchange (one of them reaches every worker), and nothing is remembered of it. Which queues a
worker's user may push to is for Redis to say (deploy/redis-users.acl).
"""

from __future__ import annotations

from typing import Any

from celery.app import amqp, routes
from kombu import Queue
from pipeq.contract import keys as queues
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

#: Options of a signature that lead elsewhere than to the queue that it names.
_ELSEWHERE = ("exchange", "exchange_type", "routing_key", "declare")


class Queues(amqp.Queues):
    """The worker's own queues, and any other as a place to push to."""

    def __missing__(self, name: Any) -> Queue:
        if not queues.is_queue_name(name):
            sentence = f"the next task cannot go to {shown.line(str(name))!r}: a queue is {queues.QUEUE_NAME_WORDS}"
            raise PipeqError(ErrorCode.INVALID_MESSAGE, sentence)
        # Not kept: producers think of names without end.
        return self.new_missing(name)


class Router(routes.Router):
    """Everything goes to a queue by its name."""

    def route(self, options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The options of a message, with the queue that it goes to."""
        queue = options.get("queue")
        if queue is None and options.get("exchange"):
            sentence = f"the next task names the exchange {shown.line(str(options['exchange']))!r}: let it name a queue"
            raise PipeqError(ErrorCode.INVALID_MESSAGE, sentence)
        if queue is not None and not isinstance(queue, str | Queue):
            raise PipeqError(ErrorCode.INVALID_MESSAGE, "the queue of the next task is no text")
        options = {name: value for name, value in options.items() if name not in _ELSEWHERE}
        # Declared, it would leave a binding in Redis; a list needs none.
        return {**super().route(options, *args, **kwargs), "declare": []}


class Routes(amqp.AMQP):
    """For ``Celery(amqp=...)``."""

    queues_cls = Queues

    def Router(self, queues: Any = None, create_missing: Any = None) -> Router:  # noqa: N802 - Celery's name
        """Made anew where the routes change."""
        return Router(self.routes, queues or self.queues, True, app=self.app)
