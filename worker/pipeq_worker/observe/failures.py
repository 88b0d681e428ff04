"""FAILURES: a line of the log for each task that failed, within bounds. Used by delivery and broker.

A broken store fails thousands of tasks a second for one reason. So of each error code, some failures are logged in each
span of time, and then how many more there were.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from pipeq.contract import shown
from pipeq.contract.errors import PipeqError

from pipeq_worker.observe.traces import for_record

logger = logging.getLogger(__name__)

#: Length of a span in seconds, and failures of one code that are logged in it.
SPAN_S, SHOWN = 10.0, 10
#: Most characters of an error's message in the log.
MESSAGE_CHARS = 1000


@dataclass
class _Span:
    began: float
    count: int = 0
    left_out: int = 0
    #: The last task that was left out.
    task_id: str | None = None


class Failures:
    """The failures of this process. Safe for any number of threads.

    Args:
        span_s: length of a span in seconds.
        most: failures of one code that are logged in a span.
    """

    def __init__(self, span_s: float = SPAN_S, most: int = SHOWN) -> None:
        self._span_s, self._most = span_s, most
        self._spans: dict[str, _Span] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def failed(
        self, task_id: str | None, pipeline: str | None, error: PipeqError, *, worker: str | None, attempt: int
    ) -> None:
        """Logs that a task failed, or counts it.

        Args:
            task_id: its id; None for a message without one.
            pipeline: its pipeline, or its queue; None if that is not known.
            error: why.
            worker: the worker's name.
            attempt: how often workers have begun to run it.
        """
        with self._lock:
            now = time.monotonic()
            span = self._spans.get(error.code)
            over = span if span is not None and now - span.began >= self._span_s else None
            if span is None or over is not None:
                span = self._spans[error.code] = _Span(now)
            span.count += 1
            is_left_out = span.count > self._most
            if is_left_out:
                span.left_out += 1
                span.task_id = task_id
                if self._timer is None:
                    self._timer = threading.Timer(self._span_s, self._ended)
                    self._timer.name, self._timer.daemon = "failures", True
                    self._timer.start()
        if over is not None:
            self._tell(error.code, over)
        if is_left_out:
            return
        extra = {
            "action": "failed",
            "task_id": task_id,
            "pipeline": pipeline,
            "code": error.code,
            "worker": worker,
            "attempts": attempt,
        }
        if error.traceback:
            extra["traceback"] = error.traceback
        logger.warning(
            "%s of %s failed on %s in attempt %d: %s: %s",
            *("a message" if task_id is None else f"task {shown.line(task_id)}", shown.line(pipeline or "no pipeline")),
            *(worker, attempt, error.code, shown.line(error.message, MESSAGE_CHARS)),
            extra=extra,
        )

    def close(self) -> None:
        """Says what was left out, at the end of the process."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
        self._say(everything=True)

    def _ended(self) -> None:
        with self._lock:
            self._timer = None
        self._say(everything=False)

    def _say(self, *, everything: bool) -> None:
        with self._lock:
            now = time.monotonic()
            over = {code: one for code, one in self._spans.items() if everything or now - one.began >= self._span_s}
            for code in over:
                del self._spans[code]
            left = [one for one in self._spans.values() if one.left_out]
            if left and self._timer is None and not everything:
                first = min(one.began for one in left)
                self._timer = threading.Timer(max(0.0, first + self._span_s - now) + 0.01, self._ended)
                self._timer.name, self._timer.daemon = "failures", True
                self._timer.start()
        for code, span in over.items():
            self._tell(code, span)

    def _tell(self, code: str, span: _Span) -> None:
        if span.left_out:
            logger.warning(
                "%d more tasks failed with %s within %.0f s, the last one was %s: `pipeq dead list --code %s`",
                *(span.left_out, code, self._span_s, shown.line(span.task_id or "without an id"), code),
                extra={"action": "failed", "code": code, "left_out": span.left_out, "task_id": span.task_id},
            )


def recorded(error: PipeqError) -> PipeqError:
    """Returns an error as its record may have it: where it was raised, without what may quote inputs."""
    found = error.bare()
    found.traceback = for_record(error.traceback)
    return found


#: The one of this process.
failures = Failures()
