"""The form of a task's status."""

import json

from pipeq.contract import record
from pipeq.contract.status import CELERY_STATES, State, TaskStatus


def test_every_known_state_has_celerys_word() -> None:
    assert set(CELERY_STATES) == set(State) - {State.UNKNOWN}


def test_the_json_form_has_every_field_always() -> None:
    fields = json.loads(record.read("t", None).model_dump_json())
    assert set(fields) == set(TaskStatus.model_fields)
    assert fields["state"] == "unknown"
