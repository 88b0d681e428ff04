"""Every key that keys.py and job.py can name stands in the table, as part of the contract or as private."""

from __future__ import annotations

import inspect
import re

from pipeq.contract import job, key_table, keys


def test_every_key_is_in_the_table_once() -> None:
    names = [one.name for one in key_table.KEYS] + list(key_table.PRIVATE)
    assert len(names) == len(set(names))
    made = {
        value
        for module in (keys, job)
        for value in vars(module).values()
        if isinstance(value, str) and re.match("pipeq:", value)
    }
    stands = {"queue": "<pipeline>", "pipeline": "<pipeline>", "task_id": "<id>", "idempotency_key": "<key>"}
    stands["job_id"] = "<job>"
    for name, make in [*inspect.getmembers(keys, inspect.isfunction), *inspect.getmembers(job, inspect.isfunction)]:
        if name.endswith("_key"):
            (argument, *_) = inspect.signature(make).parameters
            made.add(make(stands.get(argument, f"<{argument.removesuffix('_name')}>")))
    made |= set(keys.list_keys("<pipeline>"))
    assert set(names) == made
