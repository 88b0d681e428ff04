"""The asynchronous client: the methods of Client, awaited. What they do is written once for both, see client."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Self

from pipeq.async_speaking import CONNECTIONS, AsyncSpeaker, async_iterating, awaiting
from pipeq.client import Configured
from pipeq.contract.redis_url import TIMEOUT_S, connect_async, options
from pipeq.dead import Letters
from pipeq.methods import handling
from pipeq.submit_calls import Calls

if TYPE_CHECKING:
    from pipeq.jobs.async_jobs import AsyncJobs


class AsyncDeadLetters:
    """Chosen dead letters, from :meth:`pipeq.AsyncClient.dead`: iterate over them, send them again, or drop them.

    Nothing is read before that. All of it needs the rights of an operator who may write.
    """

    def __init__(self, speaker: AsyncSpeaker, letters: Letters) -> None:
        self._speaker = speaker
        self._steps = letters

    __aiter__ = async_iterating(Letters.each)
    list = awaiting(Letters.list)
    retry = awaiting(Letters.retry)
    drop = awaiting(Letters.drop)


class AsyncClient(Configured):
    """A producer's connection to pipeq, for asyncio. Tasks of an event loop share one; it belongs to that loop.

    The methods, their arguments and their errors are those of :class:`pipeq.Client`: ``await client.submit(...)``,
    ``async for status in client.as_completed(ids)``. Made outside of a loop, for instance when a module is imported, it
    belongs to the loop of its first call. A call that is cancelled leaves what it has submitted.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``; by default PIPEQ_REDIS_URL, then localhost. The client
            uses up to 8 connections and one for its waits, or the URL's ``max_connections``.
        allow: as for :class:`pipeq.Client`.
        max_message_bytes: larger messages are refused with ``input_too_large``; workers have the same limit.
        upload: as for :class:`pipeq.Client`.

    Raises (from the constructor):
        SettingsError: naming the argument; a RedisUrlError for the URL.
    """

    def _connect(self) -> None:
        found = options(self.redis_url)
        url = self.redis_url
        self._speaker = AsyncSpeaker(
            lambda: connect_async(url),
            url,
            found.get("socket_timeout", TIMEOUT_S),
            found.get("max_connections", CONNECTIONS),
        )

    @cached_property
    def jobs(self) -> AsyncJobs:
        """Jobs: many rows as one thing, from a file, a store or any iterable."""
        from pipeq.jobs.async_jobs import AsyncJobs  # not at the top: most programs have none
        from pipeq.jobs.calls import JobCalls

        return AsyncJobs(self._speaker, self._steps.of_jobs(JobCalls))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections. The client can be used again; it then reconnects."""
        await self._speaker.close()

    ping = awaiting(Calls.ping)

    submit = awaiting(Calls.submit)
    submit_many = awaiting(Calls.submit_many)
    submit_each = async_iterating(Calls.submit_each)
    map = async_iterating(Calls.map)
    cancel = awaiting(Calls.cancel)
    cancel_many = awaiting(Calls.cancel_many)
    cancel_pipeline = awaiting(Calls.cancel_pipeline)

    status = awaiting(Calls.status)
    status_many = awaiting(Calls.status_many)
    wait = awaiting(Calls.wait)
    as_completed = async_iterating(Calls.as_completed)
    result = awaiting(Calls.result)
    read = awaiting(Calls.read)
    pipelines = awaiting(Calls.pipelines)
    queues = awaiting(Calls.queues)
    queue = awaiting(Calls.queue)
    events = async_iterating(Calls.events)

    # For operators.
    purge = awaiting(Calls.purge)
    forget = awaiting(Calls.forget)
    keep_events = awaiting(Calls.keep_events)
    dead = handling(Calls.dead, AsyncDeadLetters)
