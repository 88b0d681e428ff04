"""The Celery app of ``pipeq worker``, as far as this district has to know it. broker/serving.py adds the runtime."""

from __future__ import annotations

from typing import Any

from celery import Celery


class WorkerApp(Celery):
    """The app of a worker that serves pipelines. A Celery app that only uses parts of pipeq is of another class.

    Args:
        redis_url: the URL with its options. Celery's settings hold it without them: Celery shows its settings, and an
            option may be a password.
    """

    def __init__(self, main: str, *, redis_url: str, **kwargs: Any) -> None:
        super().__init__(main, **kwargs)
        self.redis_url = redis_url
