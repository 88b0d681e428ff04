"""PLAIN: a task that has succeeded, or was not tried -> its record, without Celery's tracer. Used by deliver.

Celery's tracer starts links and the rest of a chain, counts a chord's parts, calls receivers of signals and hooks of
the task, and stores the result. For most tasks only the last is left, and the tracer took half of a small task's time.
Such a task is ended here, with the same record. Its events are sent as ever, because Celery's Request sends them.

A task that was not tried, because its store is known to be away, goes back to wait. While a store is away there may be
many, and other tasks must not be slowed down by them; the tracer takes eight times as long for it.
"""

from __future__ import annotations

import logging

from celery import Celery, Task, signals
from celery.loaders.base import BaseLoader
from pipeq.contract import keys
from pipeq.contract.errors import Blame
from pipeq.contract.record import Part, retrying, succeeded

from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.messages import has_events
from pipeq_worker.delivery.part import part_of
from pipeq_worker.leases import celery_internals

#: Signals that the tracer sends when a task succeeds.
SIGNALS = (signals.task_prerun, signals.task_success, signals.task_postrun)
#: Those that it sends when a task is retried, besides.
RETRY_SIGNALS = (signals.task_retry,)
#: Methods that the tracer calls when a task succeeds or is retried, and the classes whose own do nothing.
HOOKS: dict[type, tuple[str, ...]] = {
    Task: ("__call__", "before_start", "on_success", "on_retry", "after_return"),
    BaseLoader: ("on_task_init", "on_process_cleanup"),
}


class Plain:
    """Knows which tasks need nothing of the tracer but their record.

    Args:
        app: the worker's app, with all packages of its users imported.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        task = app.tasks[keys.TASK_NAME]
        self._is_stock = (
            celery_internals.has_stock_tracer()
            and not any(
                getattr(type(one), name) is not getattr(base, name)
                for one, base in ((task, Task), (app.loader, BaseLoader))
                for name in HOOKS[base]
            )
            # The tracer logs the result then.
            and not logging.getLogger("celery.app.trace").isEnabledFor(logging.INFO)
        )

    def is_possible(self) -> bool:
        """Whether nobody listens to the tracer now. Receivers of signals may come and go."""
        conf = self._app.conf
        return (
            self._is_stock
            and not any(signal.receivers for signal in (*SIGNALS, *RETRY_SIGNALS))
            # Records with names and arguments, or in another format than JSON, are Celery's to make.
            and not conf.result_extended
            and conf.result_serializer == "json"
        )

    def record(self, delivery: Delivery) -> tuple[bytes, Part]:
        """Returns the record that the tracer would store, and pipeq's part of it."""
        ids, part = {"group_id": delivery.group_id, "parent_id": delivery.parent_id}, part_of(delivery)
        return succeeded(delivery.id, delivery.result_json, part, **ids), part

    def put_off(self, delivery: Delivery, next_try_at: float) -> tuple[bytes, Part]:
        """Returns the record of a task that was not tried, and pipeq's part of it."""
        part = part_of(delivery, next_try_at=next_try_at)
        return retrying(delivery.id, part), part


def is_plain(delivery: Delivery) -> bool:
    """Whether a task has succeeded, and nothing follows from that: no link, no error link, no chain, no chord.

    Or whether it was not tried, from which nothing follows, either.
    """
    if delivery.error is not None:
        return delivery.error.blame is Blame.NOT_TRIED and not has_events(delivery.request.eventer)
    return not delivery.has_followers
