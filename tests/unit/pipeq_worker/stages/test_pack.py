"""What a child says of the rows of a pack: bounded where it is to stay in Redis."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.pack import PackMessage, PackOf, PackRow
from pipeq_worker.stages.pack import MESSAGE_CHARS, Pack

ROWS = 200


def failed(retryable: bool, sentence: str, asked: str = "x") -> Pack:
    """A pack whose rows have all failed."""
    rows = tuple(PackRow(asked, line=at + 1, custom_id=f"c{at}") for at in range(ROWS))
    pack = Pack(PackMessage("constant", rows, PackOf("nightly", 3), include_inputs=True))
    for at in range(ROWS):
        pack.fail(at, PipeqError(ErrorCode.INPUT_UNAVAILABLE, f"{at}: {sentence}", retryable))
    return pack


def listed(data: bytes) -> list[dict[str, Any]]:
    found = json.loads(data)
    assert [(one["row"], one["line"], one["custom_id"]) for one in found] == [
        (at, at + 1, f"c{at}") for at in range(ROWS)
    ]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(("sentence", "asked"), [("s" * 5000, "x"), ("the store is away", "y" * 1000)])
def test_rows_that_are_left_stay_small(sentence: str, asked: str) -> None:
    pack = failed(True, sentence, asked)
    assert pack.end(64 * 2**10) is pack.errors[0]
    assert pack.outcomes is not None
    assert len(pack.outcomes.left_done) <= 64 * 2**10
    found = listed(pack.outcomes.left_done)
    assert all("inputs" not in one for one in found), "it is what takes most"
    assert all(one["error"]["message"].startswith(f"{at}: {sentence[:80]}") for at, one in enumerate(found))


def test_few_rows_that_are_left_keep_all_of_it() -> None:
    pack = failed(True, "the store is away")
    pack.end(64 * 2**10)
    assert pack.outcomes is not None
    assert {one["inputs"] for one in listed(pack.outcomes.left_done)} == {"x"}


def test_what_goes_to_the_store_has_all_but_endless_sentences() -> None:
    pack = failed(False, "s" * 5000, "y" * 1000)
    assert pack.end(64 * 2**10) is None
    assert pack.outcomes is not None
    found = listed(pack.outcomes.done)
    assert {(one["inputs"], len(one["error"]["message"])) for one in found} == {("y" * 1000, MESSAGE_CHARS)}
