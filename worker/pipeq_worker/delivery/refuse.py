"""REFUSE: ends a message that cannot be used, as a dead letter, and as a FAILURE under its task's id if it has one."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import Celery
from pipeq.contract import keys
from pipeq.contract.errors import PipeqError
from pipeq.contract.record import Part
from redis.exceptions import ResponseError

from pipeq_worker.delivery.backend import Annotation, annotation
from pipeq_worker.delivery.dead_letter import MOST, dead_letter, push
from pipeq_worker.observe.failures import failures
from pipeq_worker.observe.outage import is_wrong_type

logger = logging.getLogger(__name__)


def refuse(
    app: Celery,
    worker: str,
    queue: str,
    task_id: object,
    error: PipeqError,
    message: Any,
    attempts: int = 0,
) -> None:
    """Stores the end of a message. The caller then removes the message.

    Args:
        app: its backend stores the error.
        worker: this worker's name.
        queue: the queue of the message.
        task_id: the id found in it, or None. Without a readable id, only the dead letter is stored.
        error: why it cannot be used.
        message: the frame; text if it is not a frame.
        attempts: how often workers have tried.
    """
    known_id = task_id if keys.is_readable_id(task_id) else None
    failures.failed(known_id, queue, error, worker=worker, attempt=attempts)
    key = keys.dead_letter_key(queue)
    if keys.is_readable_id(task_id):
        letter = dead_letter(task_id, error.code, error.message, message, worker=worker, attempts=attempts)
        part = Part(finished_at=time.time(), worker=worker, error=error, attempts=attempts or None)
        token = annotation.set(Annotation(part, key, letter))
        try:
            app.backend.mark_as_failure(task_id, error)
        finally:
            annotation.reset(token)
        return
    letter = dead_letter(None, error.code, error.message, message, worker=worker, attempts=attempts)
    try:
        push(app.backend.client, queue, letter, app.conf.get("pipeq_dead_letter_max", MOST))
    except ResponseError as problem:
        if not is_wrong_type(problem):
            raise
        logger.warning("a dead letter is lost: %s: %s", key, problem, extra={"action": "dead_letter"})
