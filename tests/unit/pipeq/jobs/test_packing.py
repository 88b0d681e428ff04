"""PACKING: rows of the input -> packs that fit into a message, whatever letters they have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pipeq.contract import keys, pack
from pipeq.contract.errors import PipeqError
from pipeq.contract.pack import PackMessage, PackOf, PackRow
from pipeq.envelope import Envelope
from pipeq.jobs import packing
from pipeq.jobs.columns import columns
from pipeq.jobs.packing import Line

CHOSEN = columns(None, None, None)


def lines(records: list[Any]) -> Iterator[Line]:
    return (CHOSEN.line(number, record, keys.MAX_MESSAGE_BYTES) for number, record in enumerate(records, 1))


@pytest.mark.parametrize("letter", ["a", "ä", "語", "\U0001f600", "\x00", '"', "[", "\\"])
def test_a_pack_has_so_many_bytes_at_most_whatever_its_letters_are(letter: str) -> None:
    records = [letter * 1000] * 500
    found = list(packing.packs(lines(records), 256))
    assert [row.inputs for one in found for row in one.rows] == records
    for at, one in enumerate(found):
        message = PackMessage("any", tuple(one.rows), PackOf("job", at), {"k": letter})
        body = Envelope.body_of(message.to_text(one.texts))
        assert len(body.encode()) < packing.BYTES + 1024
        assert json.loads(body) == json.loads(Envelope("job-0", message).body())
        assert pack.parse(json.loads(body)[1]) == message


@pytest.mark.parametrize(
    "record",
    [
        "text",
        7,
        None,
        ["a"],
        {"inputs": "a"},
        {"inputs": 2**70, "params": {"k": 1}, "custom_id": "ü"},
        {"a": {"b": []}},
    ],
)
def test_a_row_is_written_once_as_it_is_read(record: Any) -> None:
    (one,) = packing.packs(lines([record]), 256)
    assert json.loads(one.texts[0]) == one.rows[0].to_json()


def test_references_count_more_than_their_text() -> None:
    (line,) = lines([{"image": {"uri": "s3://b/a.png"}}])
    assert line.cost == line.nbytes + packing.REF_BYTES
    few = list(packing.packs(lines([{"image": {"uri": "s3://b/a.png"}}] * 40), 256))
    assert [len(one.rows) for one in few] == [15, 15, 10]


@pytest.mark.parametrize(("nbytes", "most"), [(0, 1000), (1000, 1000), (20_000, 104), (150_000, 13), (3 * 2**20, 1)])
def test_rows_of_a_pack_are_few_where_each_has_many_parameters(nbytes: int, most: int) -> None:
    params = {"labels": ["x" * nbytes]}
    assert pack.most_rows_with(params) == most

    def sent(rows: int) -> dict[str, Any]:
        return PackMessage("any", (PackRow("a"),) * rows, PackOf("job", 0), params).to_kwargs()

    assert len(PackMessage.parse(sent(most)).rows) == most
    if most < pack.ROWS_MAX:
        with pytest.raises(
            PipeqError, match=f"params: .* {most} rows? may have them, and {most + 1} have: send smaller packs"
        ):
            PackMessage.parse(sent(most + 1))
