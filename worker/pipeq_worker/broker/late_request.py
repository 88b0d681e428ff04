"""LATE REQUEST: Celery's request of a plain message, which reads that message when somebody asks for its content.

Most tasks come in, run and end without anybody asking, and making kombu's message and Celery's request took a third of
what the host does for a task. ``inspect``, ``revoke``, events and the tracer of a task that has failed find the same
request as ever, because the first of its fields that they read fills in all of them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from celery import Celery, Task
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.worker.request import Request
from pipeq.contract import keys

_filling = threading.RLock()


class Requesting(NamedTuple):
    """What the requests of a worker have in common."""

    app: Celery
    task: Task
    hostname: str
    eventer: Any
    connection_errors: tuple[type[BaseException], ...]


class LateRequest(Request):
    """See the module.

    Args:
        task_id: the task's id.
        common: what the requests of its worker have in common.
        message: makes kombu's message, with its body decoded.
    """

    def __init__(self, task_id: str, common: Requesting, message: Callable[[], Any]) -> None:
        self.id = task_id
        self.name = self._type = keys.TASK_NAME
        # Celery reads these of each request, even if nobody asks for its content.
        self._app, self._task, self._hostname, self._eventer, self._connection_errors = common
        self._make_message: Callable[[], Any] | None = message

    def __getattr__(self, name: str) -> Any:
        """Called for a field that is not there: fills in all fields."""
        if not name.startswith("__"):  # Python asks any object for such names
            self.fill()
        return object.__getattribute__(self, name)

    @property
    def is_filled(self) -> bool:
        """Whether its message was made."""
        return self._make_message is None

    def fill(self) -> None:
        """Fills in all fields, unless that was done before."""
        with _filling:
            make, self._make_message = self._make_message, None
            if make is None:
                return
            message, known = make(), dict(self.__dict__)
            super().__init__(
                message,
                on_ack=message.ack_log_error,
                on_reject=message.reject_log_error,
                hostname=self._hostname,
                eventer=self._eventer,
                app=self._app,
                connection_errors=self._connection_errors,
                task=self._task,
            )
            # What was noted of it meanwhile holds: when it started, that it is acknowledged ...
            self.__dict__.update(known)
            # The task's status is stored even if its producer wants no result.
            self.request_dict["ignore_result"] = False

    def runs_as(self, handle: Any) -> None:
        """Sets what is told to ``terminate`` when the request is. Only weakly, because that refers to the request."""
        self._apply_result = weakref.ref(handle)

    def trace(self) -> Any:
        """Runs Celery's tracer on the task, and returns what ``on_success`` takes."""
        run = fast_trace_task if self.app.use_fast_trace_task else trace_task_ret
        return run(self.type, self.id, self.request_dict, self.body, self.content_type, self.content_encoding)
