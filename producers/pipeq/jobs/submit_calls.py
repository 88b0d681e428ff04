"""SUBMIT a job, as steps: arguments -> checks -> producing. Base of calls."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from redis.exceptions import RedisError

from pipeq import checks
from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError, RedisUnavailableError
from pipeq.contract.job import VERSION, JobStatus
from pipeq.contract.pack import ROWS_MAX
from pipeq.jobs import arguments, packing, store
from pipeq.jobs.columns import Columns, columns
from pipeq.jobs.local_rows import LocalRows
from pipeq.jobs.producing import Plan, produce
from pipeq.jobs.readers import Source, source
from pipeq.local_inputs import Store
from pipeq.protocol import Run, Steps
from pipeq.read_allow import ReadAllow
from pipeq.submission import unknown_pipeline

#: Most rows of a job that may wait or run by default, and most that a caller may ask for.
BACKLOG, MOST_BACKLOG = 50_000, 10**9


class SubmitCalls:
    """What makes jobs.

    Args:
        pipelines: what workers have registered.
        allow: what this client may read.
        max_message_bytes: the client's.
        store: where rows go that are too large for a message; None if the client has none.
    """

    def __init__(
        self,
        pipelines: Callable[[], Steps[dict[str, dict[str, Any]]]],
        allow: ReadAllow,
        max_message_bytes: int,
        store: Store | None = None,
    ) -> None:
        self._pipelines = pipelines
        self._allow = allow
        self._max_message_bytes = max_message_bytes
        self._store = store

    def submit(
        self,
        pipeline: str,
        inputs: Any,
        *,
        field: str | Mapping[str, str] | None = None,
        id: str | None = None,  # noqa: A002 - what users call the column
        params: Mapping[str, Any] | None = None,
        params_columns: Mapping[str, str] | None = None,
        format: str | None = None,  # noqa: A002 - what users call it
        job_id: str | None = None,
        output: str | Mapping[str, Any] | None = None,
        include_inputs: bool = False,
        results: str | None = None,
        errors: str | None = None,
        order: str = "input",
        priority: int = keys.JOB_PRIORITY,
        fair_key: str | None = None,
        timeout_s: float | None = None,
        expires_s: float | None = None,
        max_backlog: int = BACKLOG,
        pack_rows: int | None = None,
        lines: Callable[[int], bool] | None = None,
        check: bool = True,
        progress: Callable[[JobStatus], None] | None = None,
    ) -> Steps[str]:
        """Submits all rows of an input as one job, and returns its id.

        It reads the input once, and returns when the last row is queued. With a ``job_id``, a submit that broke off, or
        whose process was killed, may be repeated, on another machine, too: it goes on behind what was queued. A row
        that cannot be used is one of the job's errors, with its line number.

        Args:
            pipeline: the pipeline's name.
            inputs: a path or ``s3://`` URI of JSON lines (also those of OpenAI's Batch API), CSV, Parquet or text
                (``.jsonl``, ``.csv``, ``.tsv``, ``.parquet``, ``.txt``; also with ``.gz``); a prefix or a name with
                wildcards, each object or file of which is an input; ``-`` for standard input; an open file; or any
                iterable of inputs, such as a generator or a ``datasets.Dataset``; in an AsyncClient an asynchronous
                one, too.
            field: the column that is the input; or the pipeline's fields, each with its column.
            id: the column with the rows' names, which become ``custom_id``.
            params: parameters of the pipeline's call, for all rows.
            params_columns: parameters that rows have of their own, each with its column.
            format: ``jsonl``, ``csv``, ``tsv``, ``parquet``, ``lines`` or ``refs`` (each file is an input), where the
                name does not say it.
            job_id: a name of your own.
            output: a prefix below which workers write outcomes that are too large for Redis; by default their store.
                With fields to fill in (``s3://bucket/{stem}-{id}.json``), each row's result is an object of its own.
            include_inputs: whether each row's inputs and parameters stand beside its result.
            results: an ``s3://``, ``gs://``, ``az://`` or ``file://`` URI, to which a worker writes the results when
                all rows have ended; its settings must allow that. JSON lines, or CSV or Parquet by the name.
            errors: the same for errors; None to write them among the results.
            order: of the rows there: ``input``, or ``completed`` for the order in which they ended.
            priority: 0 is served first, 9 last.
            fair_key: whose job it is; see :meth:`pipeq.Client.submit`.
            timeout_s: seconds that a row may take.
            expires_s: seconds from now in which the job may run: then rows that have not ended fail as ``expired``.
            max_backlog: rows that wait or run at most: then the submit waits.
            pack_rows: rows that travel in one message at most; by default as many as suit the task type.
            lines: says of the number of a line, from 1, whether it is meant; None for all.
            check: whether to refuse a pipeline that no worker has ever served, or whose workers do not know jobs.
            progress: called with the job's status now and then.

        Raises:
            PipeqError: an argument cannot be used; the input cannot be read; ``in_use``: another process submits this
                job at the same time.
        """
        now = time.time()
        place, is_included = arguments.output(output, include_inputs)
        return self._submit(
            checks.pipeline(pipeline),
            source(inputs, format, uploads=self._store is not None),
            columns(field, id, params_columns),
            arguments.job_id(job_id),
            {
                "params": checks.params(params),
                "output": place,
                "include_inputs": is_included,
                "local": LocalRows(self._store, self._max_message_bytes),
                "priority": checks.priority(priority),
                "headers": checks.urgency(None, fair_key, timeout_s),
                "expires_at": None if (limit_s := checks.seconds("expires_s", expires_s)) is None else now + limit_s,
                "max_backlog": arguments.at_least_one("max_backlog", max_backlog, MOST_BACKLOG),
                "lines": arguments.function("lines", lines, "the number of a line"),
            },
            arguments.files(results, errors, order),
            None if pack_rows is None else arguments.at_least_one("pack_rows", pack_rows, ROWS_MAX),
            check=checks.flag("check", check),
            progress=arguments.progress(progress),
        )

    def _submit(
        self,
        pipeline: str,
        from_: Source,
        chosen: Columns,
        job_id: str,
        about: dict[str, Any],
        files: dict[str, str],
        pack_rows: int | None,
        *,
        check: bool,
        progress: Callable[[JobStatus], None],
    ) -> Steps[str]:
        if about["output"] is not None:
            self._allow.remember(about["output"])
        from_ = yield Run(from_.begun)
        chosen.check(from_.names)
        most_rows = pack_rows or packing.most_rows((yield from self._registered(pipeline, check=check)))
        plan = Plan(job_id, pipeline, chosen, most_rows, self._max_message_bytes, **about)
        yield from self._make(plan, from_, files)
        try:
            yield from produce(plan, from_, progress)
        except (RedisError, RedisUnavailableError):
            raise
        except Exception as error:
            if getattr(error, "code", None) != ErrorCode.IN_USE:
                yield from store.fail(job_id, shown.line(getattr(error, "message", None) or shown.value(error), 500))
            raise
        return job_id

    def _registered(self, pipeline: str, *, check: bool) -> Steps[str | None]:
        """The task type of a pipeline, as its workers have registered it."""
        known = yield from self._pipelines()
        if check and pipeline not in known:
            raise unknown_pipeline(pipeline, known)
        about = known.get(pipeline)
        if check and about is not None and about.get("jobs") != VERSION:
            raise PipeqError(
                ErrorCode.UNKNOWN_PIPELINE,
                f"the workers of {pipeline!r} have not said that they know jobs, so they are of another version than "
                "this client: update them, or submit single tasks with `submit_many`",
            )
        found = (about or {}).get("task")
        return found if isinstance(found, str) else None

    def _make(self, plan: Plan, from_: Source, files: Mapping[str, str]) -> Steps[None]:
        """Makes the job, or finds the one that is to go on."""
        spec = {
            "pipeline": plan.pipeline,
            "input": [from_.name, from_.kind],
            "columns": [dict(plan.columns.fields), plan.columns.id, dict(plan.columns.params)],
            "params": plan.params,
            "output": plan.output,
            **({"include_inputs": True} if plan.include_inputs else {}),
            **files,
        }
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
        fields = {"pipeline": plan.pipeline, "input": f"{from_.name} ({from_.kind})", "spec": digest, **files}
        if plan.include_inputs:
            fields["columns"] = json.dumps(spec["columns"])
        if plan.expires_at is not None:
            fields["expires_at"] = str(plan.expires_at)
        if not (yield from store.create(plan.job_id, fields)):
            known = yield from store.spec_of(plan.job_id)
            if known is not None and known != digest:
                checks.refuse(
                    f"job_id {plan.job_id!r} is that of another job: with other inputs, columns, params or pipeline it "
                    "needs another id"
                )
            yield from store.go_on(plan.job_id)
