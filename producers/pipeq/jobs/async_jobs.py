"""ASYNC JOBS: ``client.jobs`` of an AsyncClient. What its methods do is written once for both, see jobs."""

from __future__ import annotations

from pipeq.async_speaking import AsyncSpeaker, async_iterating, awaiting
from pipeq.jobs.calls import JobCalls


class AsyncJobs:
    """The jobs of a Redis, from :attr:`pipeq.AsyncClient.jobs`. Files and iterables are read in a thread."""

    def __init__(self, speaker: AsyncSpeaker, calls: JobCalls) -> None:
        self._speaker = speaker
        self._steps = calls

    submit = awaiting(JobCalls.submit)
    status = awaiting(JobCalls.status)
    wait = awaiting(JobCalls.wait)
    results = async_iterating(JobCalls.results)
    save = awaiting(JobCalls.save)
    cancel = awaiting(JobCalls.cancel)
    retry = awaiting(JobCalls.retry)
    list = awaiting(JobCalls.list)
