"""WRITING: what json would write, and nothing that it would refuse."""

import enum
import json
import math
from typing import Any

import pytest
from pipeq.contract.reading import json_value
from pipeq.contract.writing import to_json


class Text(str):
    pass


class Number(float):
    pass


class Word(enum.StrEnum):
    HI = "hi"


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -1, 2**63, 2**64, -(2**64), 10**200, 0.1, -0.0, 1e16, 1e300, 5e-324, 1e22),
        *("", "null", "ü\U0001f600\u2028", '\x00\x1f\x7f"\\/', Text("x"), Number(1.5), Word.HI),
        *(
            [],
            {},
            [[], {}],
            (1, 2),
            {"a": None, "b": [None]},
            {1: 2, 1.5: 3, None: 4, False: 5},
            {Text("k"): Text("v")},
        ),
    ],
)
def test_the_text_means_what_json_writes(value: Any) -> None:
    assert repr(json_value(to_json(value))) == repr(json.loads(json.dumps(value)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "\ud800"])
@pytest.mark.parametrize("around", [lambda one: one, lambda one: [None, one], lambda one: {"a": {"b": one}}])
def test_what_json_refuses_is_refused(bad: Any, around: Any) -> None:
    with pytest.raises(ValueError, match=r"surrogates|JSON compliant"):
        to_json(around(bad))


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        to_json([object()])


def test_it_is_text_in_utf_8() -> None:
    assert to_json({"a": "ü"}) == '{"a":"ü"}'.encode()
