"""The outcomes of a pack that failed as a whole, which the host writes into Redis."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from pipeq.contract import job
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.pack import PackMessage, PackOf, PackRow
from pipeq_worker.delivery.packs import Packs

ROWS = 50
SENTENCE = "its worker died " + "again " * 300


def ended(
    inputs: str, *, include_inputs: bool, sentence: str = SENTENCE, message: bytes | None = None
) -> tuple[dict[str, Any], bytes]:
    """What its job gets of a pack that has failed."""
    rows = tuple(PackRow(inputs, line=at + 1, custom_id=f"c{at}") for at in range(ROWS))
    of, error = PackOf("nightly", 3), PipeqError(ErrorCode.WORKER_LOST, sentence)
    pack = PackMessage("constant", rows, of, include_inputs=include_inputs)
    delivery: Any = SimpleNamespace(
        id="nightly-3", pack_of=of, pack_end=None, error=error, rows=ROWS, queue="constant", lane=None,
        message=message if message is not None else json.dumps([[], pack.to_kwargs(), {}]).encode(),
    )  # fmt: skip
    found = Packs(retries=None, inline_max_bytes=64 * 2**10).ended(delivery)  # type: ignore[arg-type] - it asks for none
    assert found is not None
    return json.loads(found.about), found.outcomes


@pytest.mark.parametrize("include_inputs", [False, True])
@pytest.mark.parametrize("inputs", ["x", "x" * 4000])
def test_its_rows_have_one_error_and_stay_small(inputs: str, include_inputs: bool) -> None:
    about, data = ended(inputs, include_inputs=include_inputs)
    assert (about["failed"], about["codes"]) == (ROWS, {"worker_lost": ROWS})
    assert len(data) <= 64 * 2**10
    found, uri = job.outcomes(data)
    assert uri is None
    assert [(one["row"], one["line"], one["custom_id"], one["error"]["message"]) for one in found] == [
        (at, at + 1, f"c{at}", SENTENCE) for at in range(ROWS)
    ]


def test_what_was_asked_is_there_where_it_fits() -> None:
    found, _ = job.outcomes(ended("x" * 100, include_inputs=True, sentence="it died")[1])
    assert {one["inputs"] for one in found} == {"x" * 100}


def test_of_a_message_that_cannot_be_read_the_rows_have_no_lines() -> None:
    found, _ = job.outcomes(ended("x", include_inputs=True, message=b"[nonsense")[1])
    assert [(one["line"], one["error"]["code"]) for one in found] == [(None, "worker_lost")] * ROWS
