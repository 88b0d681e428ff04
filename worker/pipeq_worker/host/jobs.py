"""JOBS: jobs that have nobody -> a process that does what is left to do. Before: finish.lua. After: pipeq.jobs.keeping.

No worker is the coordinator of a job: each looks, and whoever sees first that something is due takes a claim in Redis.

    its files    all of its rows have ended, and its producer has asked for files of results and errors
    its expiry   its time is over
    lost packs   nothing has happened to it for a while: perhaps somebody has removed messages from Redis

The host only looks. What is due is done by a process of its own, with the client's code, one at a time: it reads
outcomes, which may be large, and writes files, which may take long. It ends with the worker; then another worker begins
anew when the claim has lapsed.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Container
from contextlib import suppress
from typing import Any, NamedTuple

import redis
from pipeq.contract import job, keys, shown
from pipeq.contract.errors import PipeqError
from redis.exceptions import RedisError

from pipeq_worker.leases import lua
from pipeq_worker.observe.outage import outage
from pipeq_worker.settings.read import Settings
from pipeq_worker.stores.allow import AllowList
from pipeq_worker.stores.base import StoreError

logger = logging.getLogger(__name__)

#: How often jobs with files to write are looked for, in seconds; and the others.
LOOK_S, LOOK_AT_OPEN_S = 1.0, 10.0
#: A job that nothing has happened to for so long is searched for lost packs, once in this time, in seconds.
QUIET_S = 120.0
#: The same while messages wait: its packs are probably among them. To know it, all are read, so that many take longer.
BUSY_S, MESSAGE_S = 600.0, 0.01
#: How long a step may take, in seconds.
STEP_S = 4 * 3600.0
#: Most jobs of one look, and most bytes of what it reads of each field: the places of files are the longest.
MOST_JOBS, MOST_BYTES = 100, 16 * 2**10
#: What it reads.
FIELDS = "state stop rows sealed pipeline last_at searched_at expires_at results errors".split()


class _Seen(NamedTuple):
    """What a look has found of one job."""

    id: str
    #: Packs that have not ended.
    packs: int
    #: Its fields of :data:`FIELDS`, as they stand in Redis.
    fields: dict[bytes, bytes]

    def text(self, name: str) -> str:
        """One of them; empty if it has none."""
        return self.fields.get(name.encode(), b"").decode("utf-8", "replace")


class JobKeeper:
    """A thread that the runtime owns, and at most one process.

    Args:
        client: Redis.
        settings: the worker's.
        pipelines: names of those that this worker serves.
    """

    def __init__(self, client: redis.Redis, settings: Settings, pipelines: Container[str]) -> None:
        self._redis = client
        self._read = client.register_script(lua.source("jobs", job.lua()))
        self._settings = settings
        self._pipelines = pipelines
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._ends_at = 0.0
        self._look_at_open_at = 0.0
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self, timeout_s: float = 0.0) -> None:
        """Ends the thread, and the process, after the files that are due were written: no other worker may be left."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            self._finish(time.monotonic() + timeout_s)
        if (process := self._process) is not None:
            process.kill()
            process.wait()

    def _finish(self, until: float) -> None:
        try:
            while time.monotonic() < until:
                if self._is_busy():
                    time.sleep(0.1)
                elif not self._write_files():
                    return
        except RedisError as error:
            outage.noticed("jobs", error)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                if not self._is_busy():
                    self._look()
                outage.over("jobs")
            except RedisError as error:
                outage.noticed("jobs", error)
            except Exception:
                logger.exception("jobs", extra={"action": "jobs"})

    def _is_busy(self) -> bool:
        """Whether the process runs. It is ended if it takes too long."""
        if (process := self._process) is None:
            return False
        if process.poll() is None:
            if time.monotonic() > self._ends_at:
                process.kill()
            return True
        self._process = None
        return False

    def _look(self) -> None:
        """Does the first thing that is due."""
        if self._write_files():
            return
        if (now := time.monotonic()) < self._look_at_open_at:
            return
        self._look_at_open_at = now + LOOK_AT_OPEN_S
        for seen in self._jobs(job.OPEN):
            if (step := self._due(seen)) is not None and self._step(step, seen.id):
                return

    def _write_files(self) -> bool:
        """Begins to write the files of a job. Returns whether it does."""
        return any(self._may_write(seen) and self._step("finalize", seen.id) for seen in self._jobs(job.FINAL))

    def _jobs(self, key: str) -> list[_Seen]:
        """Some jobs of a set, drawn at random. What is no job leaves the set, or nobody would come to the others."""
        found: list[_Seen] = []
        rows: Any = self._read(keys=[key], args=[MOST_JOBS, keys.TASK_ID_MAX_BYTES, MOST_BYTES, *FIELDS])
        for job_id, packs, *values in rows:
            fields = {name.encode(): value for name, value in zip(FIELDS, values, strict=True) if value}
            try:
                found.append(_Seen(job_id.decode(), packs, fields))
            except UnicodeDecodeError:
                self._redis.srem(key, job_id)
        return found

    def _may_write(self, seen: _Seen) -> bool:
        """Whether this worker's settings allow the files of a job. If they do not, the job has failed."""
        if seen.text("state") != job.JobState.FINALIZING:
            self._redis.srem(job.FINAL, seen.id)
            return False
        if seen.text("pipeline") not in self._pipelines:
            return False  # those who serve it may have other settings
        allow = AllowList(self._settings.results.allow, "[results] allow")
        for place in filter(None, (seen.text("results"), seen.text("errors"))):
            try:
                allow.check(place)
            except (StoreError, PipeqError) as error:
                sentence = str(error.of_output() if isinstance(error, StoreError) else error)
                self._fail(seen.id, f"its files cannot be written: {sentence}")
                return False
        return True

    def _fail(self, job_id: str, sentence: str) -> None:
        with self._redis.pipeline() as pipe:
            pipe.hset(job.job_key(job_id), mapping={"state": "failed", "error": sentence, "ended_at": time.time()})
            pipe.srem(job.FINAL, job_id)
            pipe.srem(job.OPEN, job_id)
            pipe.execute()
        with suppress(RedisError):  # this user may lack the channel; then those who wait look now and then
            self._redis.publish(job.job_key(job_id), "failed")
        logger.warning("the job %s has failed: %s", shown.line(job_id), sentence, extra={"action": "jobs"})

    def _due(self, seen: _Seen) -> str | None:
        """What is due for a job that has not ended."""
        status = job.read(seen.id, seen.fields)
        if status is None or status.state.is_final:
            self._redis.srem(job.OPEN, seen.id)
            return None
        now = time.time()
        if status.expires_at is not None and status.expires_at < now:
            return "expire"
        quiet_s = now - max(status.last_at or now, status.searched_at or 0.0)
        if status.pipeline not in self._pipelines or quiet_s < QUIET_S or not seen.packs:
            return None
        waiting = self._waiting(status.pipeline)
        return None if waiting and quiet_s < BUSY_S + MESSAGE_S * waiting else "recover"

    def _waiting(self, pipeline: str) -> int:
        """Number of messages of a pipeline; a key of another type has none."""
        with self._redis.pipeline(transaction=False) as pipe:
            for name in keys.list_keys(pipeline):
                pipe.llen(name)
            return sum(one for one in pipe.execute(raise_on_error=False) if isinstance(one, int))

    def _step(self, step: str, job_id: str) -> bool:
        """Begins a step, unless somebody takes one for this job, or has just done so. Returns whether it did."""
        token, lasts_s = secrets.token_hex(8), job.CLAIM_S if step == "finalize" else max(job.CLAIM_S, int(QUIET_S))
        if not self._redis.set(job.claim_key(job_id), token, nx=True, ex=lasts_s):
            return False
        self._process = subprocess.Popen(
            # -P: the folder that this runs in may hold a stranger's modules with the names of ours.
            # The id in JSON: it may hold what no argument can.
            [sys.executable, "-P", "-m", "pipeq.jobs", step, json.dumps(job_id), token],
            env={**os.environ, **self._environment()},
            stdin=subprocess.DEVNULL,
        )
        self._ends_at = time.monotonic() + STEP_S
        logger.info("%s the job %s", step, shown.line(job_id), extra={"action": "jobs"})
        return True

    def _environment(self) -> dict[str, str]:
        """What the process must know: Redis, S3, and where outcomes lie."""
        settings, found = self._settings, {"PIPEQ_REDIS_URL": self._settings.redis_url}
        places = [*settings.results.allow, *([settings.results.store] if settings.results.store else [])]
        found["PIPEQ_CLIENT_ALLOW"] = ",".join(places)
        if settings.s3.endpoint_url:
            found["AWS_ENDPOINT_URL_S3"] = settings.s3.endpoint_url
        if settings.s3.region:
            found["AWS_REGION"] = found["AWS_DEFAULT_REGION"] = settings.s3.region
        return found
