"""JOBS: ``client.jobs``: many rows as one thing. Its methods are those of calls, which block.

job = client.jobs.submit("text-classification", "reviews.jsonl", field="text", id="review_id")
client.jobs.wait(job)
client.jobs.save(job, "results.jsonl", errors="errors.jsonl")
"""

from __future__ import annotations

from pipeq.jobs.calls import JobCalls
from pipeq.speaking import Speaker, blocking, iterating


class Jobs:
    """The jobs of a Redis, from :attr:`pipeq.Client.jobs`."""

    def __init__(self, speaker: Speaker, calls: JobCalls) -> None:
        self._speaker = speaker
        self._steps = calls

    submit = blocking(JobCalls.submit)
    status = blocking(JobCalls.status)
    wait = blocking(JobCalls.wait)
    results = iterating(JobCalls.results)
    save = blocking(JobCalls.save)
    cancel = blocking(JobCalls.cancel)
    retry = blocking(JobCalls.retry)
    list = blocking(JobCalls.list)
