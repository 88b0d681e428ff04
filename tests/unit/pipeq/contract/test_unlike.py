"""What two workers say of one pipeline is compared: equal, unknown, other; and who differs from most."""

from __future__ import annotations

import pytest
from pipeq.contract import unlike
from pipeq.contract.heartbeat import Beat

ONE = {"task": "fill-mask", "name": "a/b", "model": "a/b", "revision": "1f", "params.top_k": "5"}


@pytest.mark.parametrize(
    ("theirs", "sentence"),
    [
        (ONE, None),
        ({}, None),
        ({**ONE, "name": "another name of it"}, None),
        ({**ONE, "revision": "2e"}, "revision 2e (not 1f)"),
        ({**ONE, "params.top_k": "6"}, "params.top_k 6 (not 5)"),
        ({name: ONE[name] for name in ("task", "name", "model", "revision")}, "params.top_k unset (not 5)"),
        ({**ONE, "params.targets": '["x"]'}, 'params.targets ["x"] (not unset)'),
        (
            {"task": "fill-mask", "name": "/models/b", "files": "77", "params.top_k": "5"},
            "model unset (not a/b), revision unset (not 1f), files 77 of /models/b (not unset)",
        ),
        ({**ONE, "task": "x\x1b[2J", "model": "s3://me:secret@bucket/m.tar"}, "task x�[2J (not fill-mask), model s3"),
    ],
)
def test_differences(theirs: dict[str, str], sentence: str | None) -> None:
    found = unlike.differences(ONE, theirs)
    assert (found or "").startswith(sentence or "")
    assert (found is None) == (sentence is None)
    assert "secret" not in (found or "")
    assert (unlike.differences(theirs, ONE) is None) == (found is None)


def test_a_sentence_names_a_few_and_counts_the_others() -> None:
    found = unlike.differences({"task": "a"}, {"task": "a", **{f"params.{at:02}": "1" for at in range(12)}})
    assert found is not None
    assert found.count("unset") == 5
    assert found.endswith(", and 7 more")


def test_a_long_value_is_stored_as_its_beginning_and_its_hash() -> None:
    long, other = "x" * 5000, "x" * 4999 + "y"
    assert unlike.short("x" * unlike.MOST) == "x" * unlike.MOST
    assert len(unlike.short(long)) <= unlike.MOST
    assert unlike.short(long) != unlike.short(other)
    assert unlike.short("\ud800" * 500)


def test_those_that_differ_from_most_are_named() -> None:
    other = {**ONE, "revision": "2e"}
    assert unlike.odd_ones({}) == {}
    assert unlike.odd_ones({"w1": ONE, "w2": {**ONE, "name": "z"}, "w3": {}}) == {}
    found = unlike.odd_ones({"w3": ONE, "w2": other, "w1": ONE})
    assert found == {"w2": "revision 2e (not 1f), as w1 has it"}
    # Of two, the first by name is the measure, whoever asks.
    assert list(unlike.odd_ones({"w2": ONE, "w1": other})) == ["w2"]


def test_a_heartbeat_carries_it() -> None:
    assert Beat.read(Beat(models={"p": ONE}).encode()).models == {"p": ONE}
    for wrong in (b'{"models": 1}', b'{"models": {"p": 1}}', b'{"models": {"p": {}}}', b'{"models": {"p": {"a": 1}}}'):
        assert Beat.read(wrong).models == {}
