"""The client: queues tasks, reads their statuses and results by id, and cancels them.

What its methods do is written once, as steps without I/O, for this client and the asynchronous one (async_client):
submit_calls, task_calls, operator_calls. Here the steps become methods that block.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Self

from pipeq import checks
from pipeq.contract import keys
from pipeq.contract.errors import RedisUrlError
from pipeq.contract.redis_url import connect
from pipeq.dead import DeadLetters
from pipeq.methods import handling
from pipeq.read_allow import ReadAllow
from pipeq.speaking import Speaker, blocking, iterating
from pipeq.submit_calls import Calls, NoLiveWorkerWarning
from pipeq.uploading import VARIABLE, Upload

if TYPE_CHECKING:
    from pipeq.jobs.jobs import Jobs

__all__ = ["Client", "NoLiveWorkerWarning"]


class Configured:
    """What both clients are made with.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``; by default PIPEQ_REDIS_URL, then localhost.
        allow: prefixes below which results may be read, such as ``s3://results/``, your workers' store; by default
            those of PIPEQ_CLIENT_ALLOW. The outputs of this client's own submits are added.
        max_message_bytes: larger messages are refused with ``input_too_large``; workers have the same limit.
        upload: a prefix that the workers may read, such as ``s3://inputs/`` (or ``gs://``, ``az://``, ``file://``), to
            which inputs from this machine go that are too large for a message, and all local files, up to 8 at once; by
            default that of PIPEQ_CLIENT_UPLOAD, or none.

    Raises (from the constructor):
        SettingsError: naming the argument; a RedisUrlError for the URL.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        allow: Iterable[str] | str | None = None,
        max_message_bytes: int = keys.MAX_MESSAGE_BYTES,
        upload: str | None = None,
    ) -> None:
        self.redis_url = redis_url or os.environ.get("PIPEQ_REDIS_URL") or "redis://localhost:6379/0"
        self.max_message_bytes = checks.max_bytes(max_message_bytes)
        if not isinstance(self.redis_url, str):
            raise RedisUrlError(f"redis_url is a {type(redis_url).__name__}, not a text")
        #: Where inputs from this machine go that are too large for a message, and local files; None for nowhere.
        self.upload = os.environ.get(VARIABLE) or None if upload is None else upload
        store = None if self.upload is None else Upload(self.upload)
        self._steps = Calls(self.redis_url, ReadAllow(allow), self.max_message_bytes, store)
        try:
            self._connect()
        except ValueError as error:
            raise RedisUrlError(str(error)) from None

    def _connect(self) -> None:
        """Sets `_speaker`, without connecting yet."""
        raise NotImplementedError


class Client(Configured):
    """A producer's connection to pipeq. Threads may share one; use one for each process.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``; by default PIPEQ_REDIS_URL, then localhost.
        allow: prefixes below which :meth:`result` and :meth:`read` may open files and objects, such as
            ``s3://results/``, your workers' store; by default those of PIPEQ_CLIENT_ALLOW. The outputs of this client's
            own submits are added.
        max_message_bytes: larger messages are refused with ``input_too_large``; workers have the same limit.
        upload: a prefix that the workers may read, such as ``s3://inputs/`` (or ``gs://``, ``az://``, ``file://``), to
            which inputs from this machine go that are too large for a message, and all local files, up to 8 at once; by
            default that of PIPEQ_CLIENT_UPLOAD, or none.

    Every method raises RedisUnavailableError if Redis cannot be reached, and PipeqError (``invalid_message``,
    ``invalid_input``, ``invalid_params``) for an argument that cannot be used.

    Raises (from the constructor):
        SettingsError: naming the argument; a RedisUrlError for the URL.
    """

    def _connect(self) -> None:
        self._speaker = Speaker(connect(self.redis_url, retries=0), self.redis_url)

    @cached_property
    def jobs(self) -> Jobs:
        """Jobs: many rows as one thing, from a file, a store or any iterable."""
        # Not at the top: most programs have none.
        from pipeq.jobs.calls import JobCalls
        from pipeq.jobs.jobs import Jobs

        return Jobs(self._speaker, self._steps.of_jobs(JobCalls))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. The client can be used again; it then reconnects."""
        self._speaker.close()

    ping = blocking(Calls.ping)

    submit = blocking(Calls.submit)
    submit_many = blocking(Calls.submit_many)
    submit_each = iterating(Calls.submit_each)
    map = iterating(Calls.map)
    cancel = blocking(Calls.cancel)
    cancel_many = blocking(Calls.cancel_many)
    cancel_pipeline = blocking(Calls.cancel_pipeline)

    status = blocking(Calls.status)
    status_many = blocking(Calls.status_many)
    wait = blocking(Calls.wait)
    as_completed = iterating(Calls.as_completed)
    result = blocking(Calls.result)
    read = blocking(Calls.read)
    pipelines = blocking(Calls.pipelines)
    queues = blocking(Calls.queues)
    queue = blocking(Calls.queue)
    events = iterating(Calls.events)

    # For operators.
    purge = blocking(Calls.purge)
    forget = blocking(Calls.forget)
    keep_events = blocking(Calls.keep_events)
    dead = handling(Calls.dead, DeadLetters)
