"""The app of ``pipeq worker``, which holds the runtime, and the runtime of any Celery app, if it has one.

The pool and the consumer also work in a Celery app without pipelines (docs/decisions/pool.md), so they ask here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery

from pipeq_worker.delivery.worker_app import WorkerApp

if TYPE_CHECKING:
    from pipeq_worker.host.runtime import Runtime


class ServingApp(WorkerApp):
    """The app of ``pipeq worker``, created by :func:`pipeq_worker.broker.app.build_app`."""

    def __init__(self, runtime: Runtime, **kwargs: Any) -> None:
        super().__init__("pipeq", redis_url=runtime.settings.redis_url, **kwargs)
        self.runtime = runtime


def runtime_of(app: Celery) -> Runtime | None:
    """Returns the runtime of an app; None if the app serves no pipelines."""
    return app.runtime if isinstance(app, ServingApp) else None
