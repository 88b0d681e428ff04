"""The observer that writes the log. It is always the first observer."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pipeq.contract import shown

from pipeq_worker.observe.observer import Ended, Observer

logger = logging.getLogger(__name__)


class Log(Observer):
    """Logs one line for each event. Lines about single tasks are logged at ``DEBUG`` only, because there are many."""

    def batch_ran(self, pipeline: str, size: int, padding: float, seconds: float, cost: int) -> None:
        """Logs at ``DEBUG``."""
        logger.debug(
            "batch of %d, %.0f%% padding, %.1f ms",
            size,
            padding * 100,
            seconds * 1000,
            extra={"action": "batch", "pipeline": pipeline, "size": size, "ms": seconds * 1000},
        )

    def child_died(self, reason: str, task_ids: list[str]) -> None:
        """Logs the cause; the tasks are tried again or end, and are logged then."""
        logger.error(
            "%s; %s; starting another one",
            reason,
            f"it was working on {shown.count(len(task_ids), 'task')}, each of which runs alone now"
            if task_ids
            else "it was working on no task",
            extra={"action": "child_died", "tasks": task_ids[:100]},
        )

    def task_ended(
        self, task_id: str, pipeline: str | None, ended: Ended, code: str | None, timing_ms: Mapping[str, float]
    ) -> None:
        """Logs at ``DEBUG``."""
        logger.debug(
            "task %s %s%s",
            task_id,
            ended,
            f": {code}" if code else "",
            extra={"action": "end", "pipeline": pipeline, "ended": ended, "code": code, "task_id": task_id},
        )
