"""A step of one job, for a worker that has seen that it is due: ``python -m pipeq.jobs STEP JOB TOKEN``. See keeping.

JOB is the job's id in JSON: any text may be one. Redis is where PIPEQ_REDIS_URL says; outcomes are read below the
prefixes of PIPEQ_CLIENT_ALLOW.
"""

from __future__ import annotations

import json
import sys

from pipeq.client import Client
from pipeq.contract import shown
from pipeq.contract.errors import PipeqError
from pipeq.jobs.kept import keep
from pipeq.warn import no_logs_of_libraries


def main() -> int:
    """Takes the step. Returns the exit code."""
    step, job_id, token = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    no_logs_of_libraries()
    with Client() as client:
        try:
            keep(client, step, job_id, token)
        except PipeqError as error:
            print(f"the job {shown.line(job_id)}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
