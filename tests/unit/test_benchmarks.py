"""The page of the benchmarks is made from the results that were kept; what a benchmark found is judged rightly."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from pipeq import State, TaskStatus

from benchmarks import batching, death, page, report
from benchmarks.__main__ import BENCHMARKS
from benchmarks.report import Ratio, Result, against, alternate, best

RESULT = Result(
    "z",
    "A race",
    "m/s",
    {"hare": [9.0, 10.0, 11.0], "tortoise": [1.0, 1.0, 2.0]},
    [Ratio("hare / tortoise", [9.0, 10.0, 5.5], ">= 2"), Ratio("pause", [7.0], "<= 6", " ms"), Ratio("share", [0.1])],
    "On a track.",
    {"cores": "2"},
)


def test_the_page_is_made_from_the_results_that_were_kept() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run `python -m benchmarks --save`"
    assert page.PLOT.read_text(encoding="utf-8") == page.plot(), "run `python -m benchmarks --save`"


def test_every_benchmark_is_on_the_page_and_its_file_is_there() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| \(?(\w?)\)? ?\| `benchmarks/(\w+)\.py` \|", text, re.MULTILINE)
    for name, run in BENCHMARKS.items():
        letter = name if len(name) == 1 else ""  # those with a word for a name only print
        assert (letter, run.__module__.rpartition(".")[2]) in rows
    assert {one.letter for one in page.results()} <= BENCHMARKS.keys()


def test_a_result_is_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RESULT.save(tmp_path)
    assert Result.load(tmp_path / "z.json") == RESULT
    RESULT.show()
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    made = page.page()
    assert "| (z) | A race | hare / tortoise | 9 | 5.5 to 10 | >= 2 | yes |" in made
    assert "|  |  | pause | 7 ms | 7 to 7 | <= 6 ms | no |" in made
    assert "|  |  | share | 0.1 | 0.1 to 0.1 |  |  |" in made
    bars = ET.fromstring(page.plot()).findall("{http://www.w3.org/2000/svg}rect")[1:]
    # 9 is 4.5 times as much as wanted, beyond the end of the axis; 7 ms are 6/7 as good as wanted.
    assert [bar.get("fill") for bar in bars] == [page.GOOD, page.BAD]
    whole = page._x(page.MOST) - page.LEFT
    assert [float(bar.get("width") or 0) / whole for bar in bars] == pytest.approx([1, 6 / 7 / page.MOST], abs=0.01)


@pytest.mark.parametrize(
    ("values", "wanted", "met"),
    [
        ([1.0, 2.0, 9.0], ">= 2", True),
        ([1.9], ">= 2", False),
        ([0.0], "<= 0", True),
        ([1.0], "<= 0", False),
        ([1], "", True),
    ],
)
def test_what_is_wanted(values: list[float], wanted: str, met: bool) -> None:
    assert Ratio("x", values, wanted).is_met is met


def test_arms_take_turns() -> None:
    ran: list[str] = []

    def arm(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    found = alternate({"a": lambda: arm("a"), "b": lambda: arm("b")}, 3)
    assert ran == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert best(found) == [1, 4, 5]
    assert against("a / b", found["a"], found["b"], "").values == [1 / 2, 4 / 3, 5 / 6]


def test_texts_and_machine() -> None:
    lengths = sorted(len(text.split()) for text in batching.texts(1000))
    assert lengths[500] == pytest.approx(batching.MEDIAN_WORDS, abs=3)
    assert lengths[-1] <= batching.MOST_WORDS
    assert {"cores", "load", "torch", "date"} <= report.machine().keys()


def test_the_sort_keeps_its_budget() -> None:
    class Pipe:
        @staticmethod
        def tokenizer(texts: list[str]) -> dict[str, list[list[int]]]:
            return {"input_ids": [[0] * len(text.split()) for text in texts]}

    batches = batching.sorted_batches(Pipe, texts := batching.texts(300), 512)
    assert sorted(text for batch in batches for text in batch) == sorted(texts)
    for batch in batches:
        assert len(batch) == 1 or max(len(text.split()) for text in batch) * len(batch) <= 512


def test_a_death_is_judged() -> None:
    ends = [(1.0, State.SUCCEEDED, 1), (10.1, State.SUCCEEDED, 1), (14.1, State.SUCCEEDED, 2), (14.2, State.FAILED, 1)]
    statuses = [TaskStatus(id="t", state=state, finished_at=at, attempts=tries) for at, state, tries in ends]
    assert death._judged(statuses, 10.0) == {"pause": pytest.approx(4.0), "lost": 1.0, "run again": 1.0}
