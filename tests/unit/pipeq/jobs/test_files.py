"""The files of a job: where they may go, and the columns of the input beside outcomes."""

from __future__ import annotations

import csv
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeq.contract.errors import PipeqError
from pipeq.jobs import places
from pipeq.jobs.csv_rows import LAST
from pipeq.jobs.files import Beside, OutcomeFile, OutcomeFiles
from pipeq.jobs.partial import PartialFile
from pipeq.jobs.readers import source

GOOD = {"line": 2, "custom_id": None, "result": "yes"}


def write(place: object, *outcomes: dict[str, Any], beside: Any = None) -> None:
    with OutcomeFiles(str(place), None, beside) as files:
        files.write(outcomes)


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    places.check(str(pipe), str(pipe))
    write(pipe, GOOD)
    reader.join()
    assert json.loads(found[0]) == GOOD
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_stays_one_and_the_file_behind_it_is_written(tmp_path: Path) -> None:
    link, target = tmp_path / "link.jsonl", tmp_path / "target.jsonl"
    link.symlink_to(target)
    write(link, GOOD)
    assert link.is_symlink()
    assert json.loads(target.read_text()) == GOOD


def test_a_worker_follows_no_link_at_the_end_of_a_uri(tmp_path: Path) -> None:
    link, target = tmp_path / "link.jsonl", tmp_path / "target.jsonl"
    link.symlink_to(target)
    write(f"file://{link}", GOOD)
    assert not target.exists()
    assert json.loads(link.read_text()) == GOOD


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files take 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("rows", [1, 1000])
def test_what_the_disk_does_not_take_is_said_in_a_sentence(tmp_path: Path, rows: int) -> None:
    # One row fails when the file is closed, many when they are written.
    with pytest.raises(PipeqError, match=r"cannot write .*File too large"):
        write(tmp_path / "out.jsonl", *[GOOD | {"result": "x" * 1000}] * rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_disk")
def test_a_run_whose_disk_is_full_ends_in_a_sentence(tmp_path: Path) -> None:
    def run() -> None:
        with PartialFile(tmp_path / "out.partial", {"task": "any"}) as partial:
            partial.add(GOOD | {"result": "x" * 1000})
            partial.flush()

    with pytest.raises(PipeqError, match=r"cannot write .*File too large"):
        run()


def test_standard_output_is_written_to_though_its_pipe_has_no_path(tmp_path: Path) -> None:
    link = tmp_path / "stdout"  # as /dev/stdout, which a wrong program of root's would replace
    link.symlink_to("/proc/self/fd/1")
    script = f"from pipeq.jobs.files import OutcomeFiles\nwith OutcomeFiles('{link}', None) as out: out.write([{{}}])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{}\n", "")


@pytest.mark.parametrize(
    ("results", "errors", "says"),
    [
        ("none/out.jsonl", None, "there is no folder .*none"),
        ("folder", None, "it is a folder: name a file"),
        ("folder/", None, "it is a folder: name a file"),
        ("out.jsonl", "none/e.jsonl", "there is no folder .*none"),
        ("out.jsonl", "folder/../out.jsonl", "errors and results are the same file"),
        ("in.csv", None, "and the input are the same file"),
        ("out.jsonl", "in.csv", "and the input are the same file"),
        ("https://host/out", None, "neither a path"),
    ],
)
def test_places_are_checked_in_advance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: str, errors: str | None, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("in.csv").write_text("a\n1\n")
    with pytest.raises(PipeqError, match=says):
        places.check(results, errors, "in.csv")
    assert {one.name for one in tmp_path.iterdir()} == {"folder", "in.csv"}


def test_what_cannot_be_made_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: Any) -> Any:
        raise PipeqError("internal", "no package")

    monkeypatch.setattr("pipeq.jobs.files.ParquetRows", fails)
    with pytest.raises(PipeqError, match="no package"):
        OutcomeFile(str(tmp_path / "out.parquet")).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_columns_are_those_of_the_first_row_that_has_some(tmp_path: Path) -> None:
    given, out = tmp_path / "in.csv", tmp_path / "out.csv"
    given.write_text("id,text\nshort\n2,b\n")
    wrong = {"line": 2, "custom_id": None, "error": {"code": "invalid_input", "message": "1 column"}}
    write(out, wrong, GOOD | {"line": 3}, beside=Beside(source(str(given))))
    assert list(csv.reader(out.read_text().splitlines())) == [
        ["id", "text", "result", "code", "message"],
        ["", "", "", "invalid_input", "line 2: 1 column"],
        ["2", "b", "yes", "", ""],
    ]
    write(tmp_path / "out.jsonl", wrong, GOOD | {"line": 3}, beside=Beside(source(str(given))))
    first, second = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert first == wrong
    assert second == {"id": "2", "text": "b", "result": "yes"}


def test_a_column_with_the_name_of_ours_is_not_lost(tmp_path: Path) -> None:
    given, out = tmp_path / "in.csv", tmp_path / "out.csv"
    given.write_text("text,result,error\na,old,e\n")
    write(out, GOOD, beside=Beside(source(str(given))))
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert row == {"text": "a", "input_result": "old", "error": "e", "result": "yes", "code": "", "message": ""}
    write(tmp_path / "out.jsonl", GOOD, beside=Beside(source(str(given))))
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "text": "a", "input_result": "old", "input_error": "e", "result": "yes",
    }  # fmt: skip


KEYS = ({"text": "a"}, {"text": "b", "lang": 'dé\r\n,"'}, {"n": 3}, {"text": "d", "result": "old"})
WHOLE = [
    {"text": "a", "lang": "", "n": "", "input_result": "", "result": "yes", "code": "", "message": ""},
    {"text": "b", "lang": "dé\r\n,\"", "n": "", "input_result": "", "result": "yes", "code": "", "message": ""},
    {"text": "", "lang": "", "n": "3", "input_result": "", "result": "yes", "code": "", "message": ""},
    {"text": "d", "lang": "", "n": "", "input_result": "old", "result": "yes", "code": "", "message": ""},
]  # fmt: skip


def differing(tmp_path: Path, between: int) -> tuple[Beside, list[dict[str, Any]]]:
    """Lines of JSON with other keys each; so many lines like the first one lie behind it."""
    lines = [KEYS[0]] * between + [*KEYS]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return Beside(source(str(tmp_path / "in.jsonl"))), [GOOD | {"line": at + 1} for at in range(len(lines))]


@pytest.mark.parametrize("name", ["out.csv", "out.tsv"])
def test_no_column_of_lines_with_differing_keys_is_lost(tmp_path: Path, name: str) -> None:
    beside, outcomes = differing(tmp_path, 3000)
    write(tmp_path / name, *outcomes, beside=beside)
    with open(tmp_path / name, newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file, delimiter="\t" if name == "out.tsv" else ","))
    assert found == [WHOLE[0]] * 3000 + WHOLE
    assert list(found[0]) == list(WHOLE[0]), "ours are the last"
    assert {one.name for one in tmp_path.iterdir()} == {"in.jsonl", name}


@pytest.mark.parametrize("between", [0, 3000])
def test_nor_in_parquet(tmp_path: Path, between: int) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    beside, outcomes = differing(tmp_path, between)
    write(tmp_path / "out.parquet", *outcomes, beside=beside)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert sorted(table.column_names) == sorted(WHOLE[0])
    rows = [{name: "" if value is None else str(value) for name, value in row.items()} for row in table.to_pylist()]
    assert rows == [WHOLE[0]] * between + WHOLE


def test_a_table_goes_to_a_pipe_when_its_columns_are_known(tmp_path: Path) -> None:
    beside, outcomes = differing(tmp_path, 0)
    os.mkfifo(tmp_path / "pipe.csv")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe.csv").read_bytes().decode()))
    reader.start()
    write(tmp_path / "pipe.csv", *outcomes, beside=beside)
    reader.join()
    assert list(csv.DictReader(found[0].splitlines(keepends=True))) == WHOLE


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.parquet"])
@pytest.mark.parametrize("given", [None, "id,text\n", ""])
def test_a_table_without_rows_has_the_names_of_its_columns(tmp_path: Path, name: str, given: str | None) -> None:
    if name == "out.parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / "in.csv").write_text(given or "")
    write(tmp_path / name, beside=None if given is None else Beside(source(str(tmp_path / "in.csv"))))
    expected = [*(["line", "custom_id"] if given is None else ["id", "text"] if given else []), *LAST]
    if name == "out.parquet":
        from pyarrow import parquet

        table = parquet.read_table(tmp_path / name)
        assert (table.column_names, table.num_rows) == (expected, 0)
    else:
        assert (tmp_path / name).read_text().strip().split("\t" if name == "out.tsv" else ",") == expected
