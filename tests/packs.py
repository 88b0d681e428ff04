"""Packs as a job's producer queues them, for tests of what workers make of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import redis
from msgspec.structs import replace
from pipeq.contract.job import JobState, JobStatus
from pipeq.contract.message import Output
from pipeq.contract.pack import PackMessage, PackOf, PackRow
from pipeq.envelope import Envelope
from pipeq.jobs import store
from pipeq.jobs.ending import status_of
from pipeq.jobs.outcomes import outcomes
from pipeq.jobs.store import Cursor, Parcel
from pipeq.speaking import Speaker


class PacksOf:
    """One job. Its packs have the rows that a test gives them."""

    def __init__(self, url: str, job_id: str) -> None:
        self.id = job_id
        self.redis = redis.Redis.from_url(url)
        self.run = Speaker(self.redis, url).run
        self.iterate = Speaker(self.redis, url).iterate
        assert self.run(store.create(job_id, {"pipeline": "any"}))
        self._cursor = Cursor()
        #: How long a try of a row may take.
        self.timeout_s: float | None = None

    def put(self, pipeline: str, *packs: list[Any], output: str | None = None, **params: Any) -> None:
        """Queues packs. A row is its inputs, or a PackRow."""
        envelopes, lines, number = [], self._cursor.lines, self._cursor.packs
        for at, rows in enumerate(packs, number):
            made = []
            for row in rows:
                lines += 1
                row = row if isinstance(row, PackRow) else PackRow(row)
                made.append(replace(row, line=lines, custom_id=f"row-{lines}"))
            place = Output(uri=output) if output else None
            message = PackMessage(pipeline, tuple(made), PackOf(self.id, at), params, place)
            headers = {} if self.timeout_s is None else {"timeout_s": self.timeout_s}
            envelopes.append(Envelope(f"{self.id}-{at}", message, headers=headers))  # type: ignore[arg-type]
        cursor = Cursor(lines, self._cursor.rows + sum(map(len, packs)), number + len(packs), "test")
        parcel = Parcel(envelopes, [one.body() for one in envelopes], {}, cursor)
        assert self.run(store.put(self.id, self._cursor, parcel))
        self._cursor = cursor

    def seal(self) -> None:
        self.run(store.seal(self.id))

    @property
    def status(self) -> JobStatus:
        found = self.run(status_of(self.id))
        assert found is not None
        return found

    def wait(self, timeout_s: float = 60) -> JobStatus:
        """Waits until all rows have ended."""
        until = time.monotonic() + timeout_s
        while (status := self.status).state is not JobState.COMPLETED:
            assert time.monotonic() < until, (status, self.redis.hgetall(f"pipeq:job-outcomes:{self.id}"))
            time.sleep(0.05)
        return status

    def outcomes(self, read: Any = None) -> list[dict[str, Any]]:
        return [one for found in self.iterate(outcomes(self.id, read or _read)) for one in found or ()]

    def brief(self) -> list[Any]:
        """Of each row its result, or its error's code."""
        return [one["error"]["code"] if "error" in one else one["result"] for one in self.outcomes()]


def _read(uri: str) -> Any:
    return json.loads(Path(uri.removeprefix("file://")).read_text())
