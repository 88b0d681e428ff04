"""`pipeq run`: one command runs a pipeline over a file; whatever ends it, the same command goes on.

A worker is started for each, so that there are few of them.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.acceptance.test_dev import PIPEQ, children_of, is_alive, server_of, until
from tests.commands import run

ROWS = 3000
#: Of each batch of 64 rows: seconds remain of a run when a test has seen that it is on its way, and ends it.
TAKES_TIME = '{"seconds": 0.1}'


_running: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    """A test that fails in the middle of a run does not make the next one fail, too."""
    yield
    while _running:
        process = _running.pop()
        process.kill()
        process.wait()


def begin(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    # A stranger's module in the folder where it runs.
    (folder / "json.py").write_text("raise SystemExit('not ours')")
    with (folder / "log").open("ab") as log:
        command = [*PIPEQ, "run", *arguments]
        _running.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True))
    return _running[-1]


def done(path: Path) -> int:
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def test_whatever_ends_it_the_same_command_goes_on_and_the_rows_are_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a stranger's folder"
    folder.mkdir()
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "name"])
        for at in range(ROWS):
            writer.writerow(["only one cell"] if at in (7, ROWS - 1) else [f"text {at}, ü", f"n{at}"])
    arguments = ["constant", "rows.csv", "out.csv", "--field", "text", "--id", "name", "--plot", "speed.svg",
        "--params", TAKES_TIME, "--errors", "errors.csv"]  # fmt: skip
    partial, log = folder / "out.csv.partial", folder / "log"
    for ending, code, share in ((signal.SIGINT, 130, 0.1), (signal.SIGKILL, -9, 0.3)):
        process = begin(folder, *arguments)
        until(lambda: done(partial) > ROWS * share or process.poll() is not None)  # noqa: B023
        assert process.poll() is None, log.read_text()
        others = children_of(process.pid)
        process.send_signal(ending)
        assert process.wait(30) == code
        until(lambda: not any(map(is_alive, others)), 20)  # noqa: B023
        assert not (folder / "out.csv").exists()
        assert partial.exists()
    assert "the same command goes on with what is missing" in log.read_text()
    with partial.open("ab") as file:
        file.write(b'{"line": 99999, "resu')  # as if it had been killed while it wrote
    before, stamp = done(partial), time.monotonic()
    assert begin(folder, *arguments).wait(120) == 1, "two lines have failed"
    assert f"{before} rows are in" in log.read_text()
    assert time.monotonic() - stamp < 100
    with (folder / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"n{at}" for at in range(ROWS) if at not in (7, ROWS - 1)]
    assert {row["result"] for row in rows} == {"constant"}
    with (folder / "errors.csv").open(encoding="utf-8", newline="") as file:
        assert [row["code"] for row in csv.DictReader(file)] == ["invalid_input"] * 2
    assert ElementTree.parse(folder / "speed.svg").getroot().tag.endswith("svg")
    assert not partial.exists()
    assert not list(folder.glob("*.part"))
    assert "Traceback" not in log.read_text(), log.read_text()


def test_a_worker_that_does_not_start_and_an_empty_input(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    process = begin(tmp_path, "text-clasification", "empty.jsonl", "out.jsonl")
    assert process.wait(60) == 6
    assert "did you mean 'text-classification'" in (tmp_path / "log").read_text()
    assert begin(tmp_path, "constant", "empty.jsonl", "out.jsonl").wait(60) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_a_wrong_command_line_is_said(tmp_path: Path) -> None:
    inputs, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    inputs.write_text('"a"\n')
    table = tmp_path / "table.csv"
    table.write_text("text,id\na,1\n")
    for arguments, code, says in (
        (["constant", str(tmp_path / "none.jsonl"), str(out)], 6, "there is no file"),
        (["constant", str(tmp_path), str(out)], 6, "a folder: end it in"),
        (["constant", "-", str(out)], 2, "IN must be a file"),
        (["constant", str(inputs), str(out), "--params", "{"], 2, "no JSON"),
        (["constant", str(inputs), str(out), "--field", "a", "--field", "b=c"], 2, "FIELD=COLUMN"),
        (["constant", str(inputs), str(tmp_path / "no" / "out.jsonl")], 1, "cannot write"),
        (["constant", str(inputs), "s3://b/out.csv"], 2, "a file of this machine"),
        (["constant", str(inputs), str(tmp_path / "out.xyz")], 6, "out.xyz, and the end of its name does not say what"),
        (["constant", str(inputs), str(tmp_path / "out.csv.gz")], 6, "files of a job are not compressed"),
        (["constant", str(table), str(out), "--field", "txt"], 6, "no column 'txt'; it has text, id; did you mean 'te"),
        (["constant", str(table), str(out), "--params-column", "a"], 2, "'a' is not PARAMETER=COLUMN"),
    ):
        found = run("run", *arguments)
        assert found.exit_code == code, (arguments, found.stderr)
        assert says in found.stderr
    partial = tmp_path / "out.jsonl.partial"
    partial.write_text(json.dumps({"task": "another"}) + '\n{"line": 1, "result": 1}\n')
    found = run("run", "constant", str(inputs), str(out))
    assert found.exit_code == 6
    assert "of a run with another input" in found.stderr
    assert os.path.exists(partial)


def test_a_run_whose_redis_dies_says_so_and_goes_on_later(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"text {at}\n" for at in range(2000)))
    arguments = ["constant", "in.txt", "out.csv", "--params", TAKES_TIME]
    partial, log = tmp_path / "out.csv.partial", tmp_path / "log"
    process = begin(tmp_path, *arguments)
    until(lambda: done(partial) > 0 or process.poll() is not None)
    os.kill(server_of(process.pid), signal.SIGKILL)
    assert process.wait(30) == 6, log.read_text()
    assert "not_running: Redis was killed by signal 9" in log.read_text()
    assert "the same command goes on with what is missing" in log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    assert begin(tmp_path, *arguments).wait(60) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2001
