"""The Celery app of ``pipeq worker``, with what this district needs of it. broker/serving.py adds the runtime."""

from __future__ import annotations

from typing import Any

from celery import Celery


class WorkerApp(Celery):
    """The app of a worker that serves pipelines. A Celery app that only uses parts of pipeq has another class.

    Args:
        redis_url: the URL with its options. Celery's settings hold it without the options, because Celery shows its
            settings, and an option may be a password.
    """

    def __init__(self, main: str, *, redis_url: str, **kwargs: Any) -> None:
        super().__init__(main, **kwargs)
        self.redis_url = redis_url
