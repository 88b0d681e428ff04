"""ARGUMENTS: what callers give for a job -> checked. Used by submit_calls and calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeq import checks, uploading
from pipeq.contract import schemes, shown
from pipeq.contract.job import JobStatus
from pipeq.envelope import new_id
from pipeq.jobs import places

#: Longest id of a job: those of its rows are a few characters longer.
ID_CHARS = 200


def job_id(value: Any) -> str:
    """The id of a job, made if none is given."""
    if value is None:
        return f"job-{new_id()}"
    if len(checks.new_task_id(value, "job_id")) > ID_CHARS:
        count = len(value)
        checks.refuse(f"job_id has {count} characters, and at most {ID_CHARS} are allowed: {shown.value(value, 60)}")
    return str(value)


def output(value: Any, include_inputs: Any) -> tuple[dict[str, Any] | None, bool]:
    """Where outcomes go that are too large for Redis, or each row's result; and whether inputs go beside them."""
    found, is_included = checks.output(value, many=True), checks.flag("include_inputs", include_inputs)
    if found is not None and found.pop("include_inputs", False):
        is_included = True
    return found, is_included


def row_order(value: Any) -> str:
    """The order of rows in results."""
    if value not in ("input", "completed"):
        checks.refuse(f"order is {shown.value(value)}, not input or completed")
    return str(value)


def files(results: Any, errors: Any, order: Any) -> dict[str, str]:
    """The fields of a job with the files that a worker is to write."""
    found = {}
    for name, place in (("results", results), ("errors", errors)):
        if place is None:
            continue
        if not isinstance(place, str) or schemes.of(place) not in uploading.SCHEMES or place.endswith("/"):
            checks.refuse(f"{name} is {shown.value(place)}, not a URI like s3://bucket/out.jsonl or file:///out.csv")
        places.check_name(name, place)
        found[name] = place
    if errors is not None and results is None:
        checks.refuse("errors needs results: give both, or results alone")
    if row_order(order) == "completed" and found:
        found["order"] = order
    return found


def progress(value: Any) -> Callable[[JobStatus], None]:
    """What is called with the job's status."""
    return function("progress", value, "the job's status") or (lambda _: None)


def function(name: str, value: Any, of: str) -> Any:
    """A function that may be missing."""
    if value is not None and (not callable(value) or isinstance(value, type)):
        checks.refuse(f"{name} is {shown.value(value)}, not a function of {of}")
    return value


def at_least_one(name: str, value: Any, most: int) -> int:
    """A number of rows."""
    if checks.count(name, value, most) == 0:
        checks.refuse(f"{name} is 0, and must be 1 at least")
    return int(value)
