"""KEPT: a step that a worker has seen to be due for a job, in a process of its own -> keeping. Used by __main__.

It is no method of ``client.jobs``: who submits a job leaves this to workers.
"""

from __future__ import annotations

from pipeq.client import Client
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.jobs import keeping
from pipeq.jobs.calls import JobCalls
from pipeq.protocol import Steps


class _Calls(JobCalls):
    def keep(self, step: str, job_id: str, token: str | None) -> Steps[None]:
        claim = keeping.Claim(job_id, token)
        if step == "finalize":
            yield from keeping.finalize(job_id, self._read, token)
        elif step == "expire":
            yield from keeping.expire(job_id)
            yield from claim.give_back()  # perhaps its files are to be written now
        elif step == "recover":
            yield from keeping.recover(job_id)
            yield from claim.give_back()
        else:
            raise PipeqError(
                ErrorCode.INVALID_INPUT, f"step is {shown.value(step)}, not one of finalize, expire and recover"
            )


def keep(client: Client, step: str, job_id: str, token: str | None = None) -> None:
    """Takes a step.

    Args:
        client: of the worker's Redis.
        step: ``finalize``, ``expire`` or ``recover``.
        job_id: the job.
        token: of the claim that the worker has taken for this; None for none.

    Raises:
        PipeqError: its files cannot be written, or there is no such step.
    """
    client._speaker.run(client._steps.of_jobs(_Calls).keep(step, job_id, token))
