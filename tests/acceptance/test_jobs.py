"""Jobs from their producers' side: every form of input, resumed and repeated submits, results in order, the commands.

One worker with the pipeline ``constant`` for all of them. ``ROWS`` (see the Makefile) is the size of the story with
kills; ``make test`` runs a small one.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner
from pipeq import AsyncClient, Client, PipeqError, Ref, WaitTimeoutError
from pipeq.cli import main
from pipeq.contract.job import JobState
from pipeq.demo import embedded
from pipeq.jobs import producing, store

from tests.worker_process import WorkerProcess, worker

ROWS = int(os.environ.get("JOB_ROWS", "4000"))


@dataclass
class Served:
    client: Client
    url: str
    folder: Path
    process: WorkerProcess


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("jobs")
    with (
        embedded.valkey() as url,
        Client(url) as client,
        worker(
            folder, url, "constant", lease_s=2, sweep_s=0.5, results__allow=json.dumps([f"{folder.as_uri()}/"])
        ) as process,
    ):
        process.wait_ready(client, "constant")
        yield Served(client, url, folder, process)


def done(served: Served, job_id: str) -> list[Any]:
    """Of each row its line, its name, and its result or its error's code."""
    served.client.jobs.wait(job_id, 60)
    return [
        (one["line"], one["custom_id"], one["error"]["code"] if "error" in one else one["result"])
        for one in served.client.jobs.results(job_id)
    ]


OPENAI = {"method": "POST", "url": "/v1/embeddings"}
#: Name of a file -> its content, arguments of the submit, and what becomes of its rows.
FILES: dict[str, tuple[bytes, dict[str, Any], list[Any]]] = {
    "openai.jsonl": (
        b"\n".join(
            [
                json.dumps({"custom_id": "a", **OPENAI, "body": {"model": "m", "input": "hello"}}).encode(),
                json.dumps({"custom_id": "b", **OPENAI, "body": {"messages": [{"role": "user"}]}}).encode(),
                json.dumps({"custom_id": "c", **OPENAI, "body": {"input": "x", "temperature": 1}}).encode(),
                json.dumps({"custom_id": "d", **OPENAI, "body": {"model": "m"}}).encode(),
            ]
        ),
        {},
        [(1, "a", "constant"), (2, "b", "invalid_input"), (3, "c", "invalid_params"), (4, "d", "invalid_input")],
    ),
    "rows.jsonl": (
        b'{"prompt": "x", "key": 7}\n\nno json\n{"prompt": "y", "key": "k"}\n{"other": 1, "key": "z"}\n[1]\n',
        {"field": "prompt", "id": "key"},
        [
            (1, "7", "constant"), (3, None, "invalid_input"), (4, "k", "constant"), (5, "z", "invalid_input"),
            (6, None, "invalid_input"),
        ],
    ),
    "own.jsonl": (
        b'{"inputs": "x", "custom_id": "q", "params": {"seconds": 0}}\n"plain"\n{"inputs": "x", "params": {"n": 1}}\n',
        {},
        [(1, "q", "constant"), (2, None, "constant"), (3, None, "invalid_params")],
    ),
    "params.csv": (
        b'text,s\na,0\nb,0.0\nc,\nd,null\ne,no number\n',
        {"field": "text", "params_columns": {"seconds": "s"}},
        [(2, None, "constant"), (3, None, "constant"), (4, None, "constant"), (5, None, "constant"),
         (6, None, "invalid_params")],
    ),
    "rows.csv": (
        b'text,name\n"a, b",first\nlone\n"two\nlines",second\n',
        {"field": "text", "id": "name"},
        [(2, "first", "constant"), (3, None, "invalid_input"), (4, "second", "constant")],
    ),
    "rows.tsv": (b"text\tn\na\t0\nb\tx\n", {"field": "text", "params_columns": {"seconds": "n"}},
        [(2, None, "constant"), (3, None, "invalid_params")]),
    "texts.txt": (b"one\ntwo\n", {}, [(1, None, "constant"), (2, None, "constant")]),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_each_format_of_a_file(served: Served, name: str, packed: bool) -> None:
    data, options, expected = FILES[name]
    path = served.folder / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    job_id = served.client.jobs.submit("constant", path, **options)
    assert done(served, job_id) == expected
    status = served.client.jobs.status(job_id)
    assert (status.state, status.is_sealed, status.submitted) == (JobState.COMPLETED, True, len(expected))
    assert status.failed == sum(one[2] != "constant" for one in expected) == sum(status.codes.values())


def test_parquet(served: Served) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = served.folder / "rows.parquet"
    parquet.write_table(pa.table({"text": ["a", "b", None], "n": [1, 2, 3]}), path)
    job_id = served.client.jobs.submit("constant", str(path), field="text", id="n")
    found = done(served, job_id)
    assert [one[:2] for one in found] == [(1, "1"), (2, "2"), (3, "3")]
    (served.folder / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(PipeqError, match=r"broken\.parquet is no Parquet"):
        served.client.jobs.submit("constant", served.folder / "broken.parquet", field="text")


class Columns:
    """As a Dataset of `datasets` is read: rows are dictionaries."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([{"text": "a", "label": 0}, {"text": object(), "label": 1}, {"text": "c", "label": 2}])


def test_iterables_generators_datasets_and_open_files(served: Served) -> None:
    jobs = served.client.jobs
    every = [(1, None, "constant"), (2, None, "constant")]
    assert done(served, jobs.submit("constant", ["a", 5])) == every
    assert done(served, jobs.submit("constant", (text for text in "ab"))) == every
    assert done(served, jobs.submit("constant", [Ref.from_bytes(b"x"), "b"])) == every
    assert done(served, jobs.submit("constant", io.BytesIO(b'"a"\n"b"\n'))) == every
    assert done(served, jobs.submit("constant", io.StringIO("a\nb\n"), format="lines")) == every
    codes = [one[2] for one in done(served, jobs.submit("constant", Columns(), field="text"))]
    assert codes == ["constant", "invalid_input", "constant"]
    assert done(served, jobs.submit("constant", [])) == []


def test_s3_files_prefixes_and_files_of_a_folder(
    served: Served, s3_server: embedded.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    s3 = boto3.client("s3")
    for at in range(3):
        s3.put_object(Bucket="inputs", Key=f"jobs/{at}.bin", Body=b"x")
    s3.put_object(Bucket="inputs", Key="rows/all.jsonl", Body=b'"a"\n"b"\n')
    jobs = served.client.jobs
    found = done(served, jobs.submit("constant", "s3://inputs/jobs/"))
    assert [one[1] for one in found] == [f"s3://inputs/jobs/{at}.bin" for at in range(3)]
    assert len(done(served, jobs.submit("constant", "s3://inputs/jobs/*.bin"))) == 3
    job_id = jobs.submit("constant", "s3://inputs/rows/all.jsonl")
    assert [one[2] for one in done(served, job_id)] == ["constant"] * 2
    assert jobs.save(job_id, "s3://results/jobs/all.jsonl") == (2, 0)
    body = s3.get_object(Bucket="results", Key="jobs/all.jsonl")["Body"].read()
    assert [json.loads(line)["result"] for line in body.splitlines()] == ["constant"] * 2
    with pytest.raises(PipeqError, match="no object is below"):
        jobs.submit("constant", "s3://inputs/none/")
    with pytest.raises(PipeqError, match="NoSuchKey"):
        jobs.submit("constant", "s3://inputs/none.jsonl")
    folder = served.folder / "pictures"
    folder.mkdir()
    for at in range(2):
        (folder / f"{at}.png").write_bytes(b"x")
    assert [one[1] for one in done(served, jobs.submit("constant", f"{folder}/*.png"))] == [
        str(folder / f"{at}.png") for at in range(2)
    ]


def test_a_wrong_argument_is_named(served: Served) -> None:
    jobs = served.client.jobs
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"inputs": 5}, "inputs"), ({"inputs": {"a": 1}}, "inputs"), ({"inputs": b"x"}, "inputs"),
        ({"inputs": "https://x/y.jsonl"}, "inputs"), ({"inputs": "no/such.jsonl"}, "no/such.jsonl"),
        ({"inputs": str(served.folder)}, "inputs"), ({"format": "xls"}, "format"), ({"field": 5}, "field"),
        ({"field": {"a": 1}}, "field"), ({"id": 5}, "id"), ({"params": 5}, "params"),
        ({"params_columns": "x"}, "params_columns"), ({"job_id": ""}, "job_id"), ({"job_id": "x" * 201}, "job_id"),
        ({"output": "s3://results/x"}, "output"), ({"priority": 10}, "priority"), ({"fair_key": ""}, "fair_key"),
        ({"timeout_s": 0}, "timeout_s"), ({"max_backlog": 0}, "max_backlog"), ({"pack_rows": 1001}, "pack_rows"),
        ({"check": 1}, "check"), ({"progress": 5}, "progress"), ({"pipeline": ""}, "pipeline"),
        ({"pipeline": "nobody-serves-this"}, "nobody-serves-this"),
    ]  # fmt: skip
    for options, named in wrong:
        with pytest.raises(PipeqError) as caught:
            jobs.submit(**{"pipeline": "constant", "inputs": ["a"], **options})
        assert named in caught.value.message, (options, caught.value)
    for call in (
        jobs.status,
        jobs.wait,
        lambda one: list(jobs.results(one)),
        jobs.cancel,
        lambda one: jobs.save(one, "x.jsonl"),
    ):
        with pytest.raises(PipeqError, match="no job 'nobody'"):
            call("nobody")
    with pytest.raises(PipeqError, match="results"):
        jobs.save(jobs.submit("constant", []), 5)  # type: ignore[arg-type]


def test_the_same_job_again_changes_nothing_and_another_is_refused(served: Served) -> None:
    jobs, path = served.client.jobs, served.folder / "same.jsonl"
    path.write_bytes(b'"x"\n' * 600)
    job_id = jobs.submit("constant", path, job_id="same")
    jobs.wait(job_id, 60)
    before = list(jobs.results(job_id))
    assert jobs.submit("constant", path, job_id="same") == "same"
    assert list(jobs.results(job_id)) == before
    assert jobs.status(job_id).submitted == 600
    with pytest.raises(PipeqError, match="another job"):
        jobs.submit("constant", path, job_id="same", params={"seconds": 0})


def test_a_submit_that_broke_off_goes_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, path = served.client.jobs, served.folder / "broken-off.jsonl"
    path.write_bytes(b"".join(b'{"inputs": "x", "custom_id": "%d"}\n' % at for at in range(1000)))
    monkeypatch.setattr(producing, "TOGETHER", 1)
    put = store.put
    calls = 0

    def breaks(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        found = yield from put(*args)
        if calls in (2, 3):
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(store, "put", breaks)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            jobs.submit("constant", path, job_id="broken-off", pack_rows=100)
    assert not jobs.status("broken-off").is_sealed
    jobs.submit("constant", path, job_id="broken-off", pack_rows=100)
    found = done(served, "broken-off")
    assert [one[:2] for one in found] == [(at + 1, str(at)) for at in range(1000)]
    assert jobs.status("broken-off").submitted == 1000


def test_the_backlog_is_bounded_and_a_wait_may_end(served: Served) -> None:
    jobs, most = served.client.jobs, 0

    def look(status: Any) -> None:
        nonlocal most
        most = max(most, status.submitted - status.done)

    job_id = jobs.submit("constant", ("x" for _ in range(3000)), max_backlog=400, pack_rows=50, progress=look)
    assert most <= 400 + 50 * producing.TOGETHER
    jobs.wait(job_id, 60)
    slow = jobs.submit("constant", ["x"], params={"seconds": 3})
    with pytest.raises(WaitTimeoutError, match="0 of 1 rows"):
        jobs.wait(slow, 0.1)
    assert jobs.cancel(slow).state is JobState.CANCELLED
    assert slow in [one.id for one in jobs.list()]


def test_files_of_results_and_errors_and_a_retry(served: Served) -> None:
    jobs, folder = served.client.jobs, served.folder
    path = folder / "some.jsonl"
    path.write_bytes(b'"a"\nno json\n{"inputs": "x", "params": {"n": 1}, "custom_id": "p"}\n"d"\n')
    job_id = jobs.submit("constant", path)
    jobs.wait(job_id, 60)
    assert jobs.save(job_id, str(folder / "r.jsonl"), str(folder / "e.jsonl")) == (2, 2)
    good, bad = ([json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in "re")
    assert [one["line"] for one in good] == [1, 4]
    assert [(one["line"], one["custom_id"], one["error"]["code"]) for one in bad] == [
        (2, None, "invalid_input"),
        (3, "p", "invalid_params"),
    ]
    jobs.save(job_id, str(folder / "r.csv"))
    rows = list(csv.reader((folder / "r.csv").read_text().splitlines()))
    assert rows[0] == ["line", "custom_id", "result", "code", "message"]
    assert rows[1][:3] == ["1", "", "constant"]
    assert rows[2][3] == "invalid_input"
    assert not list(folder.glob("*.part"))
    path.write_bytes(b'"a"\n"now"\n{"inputs": "x", "custom_id": "p"}\n"d"\n')
    again = jobs.retry(job_id, path)
    assert again is not None
    assert done(served, again) == [(2, None, "constant"), (3, "p", "constant")]
    assert jobs.retry(again, path) is None
    with pytest.raises(PipeqError, match="cannot write"):
        jobs.save(job_id, str(folder / "no" / "such" / "folder.jsonl"))


def test_a_worker_writes_the_files_of_a_job(served: Served) -> None:
    path, out = served.folder / "by-worker.jsonl", served.folder / "by-worker-out.jsonl"
    path.write_bytes(b'"a"\nno json\n' + b'"b"\n' * 600)
    command = ["job", "submit", "constant", str(path), "--job-id", "by-worker", "--results", out.as_uri(),
        "--worker-writes", "--redis-url", served.url]  # fmt: skip
    assert CliRunner().invoke(main, command).exit_code == 0
    status = served.client.jobs.wait("by-worker", 60)
    assert (status.state, status.results) == (JobState.COMPLETED, out.as_uri())
    assert [json.loads(line)["line"] for line in out.read_text().splitlines()] == list(range(1, 603))
    follows = served.client.jobs.submit("constant", ["x"] * 600)
    found = served.client.jobs.results(follows, order="completed", follow=True)
    assert sorted(one["line"] for one in found) == list(range(1, 601))


def test_each_row_s_result_is_an_object_with_a_name(served: Served) -> None:
    folder = served.folder / "named"
    rows: list[Any] = [{"inputs": f"text {at}", "custom_id": f"row/{at}"} for at in range(300)]
    rows[7] = {"inputs": "x", "params": {"no_such": 1}, "custom_id": "bad"}
    jobs = served.client.jobs
    job_id = jobs.submit("constant", rows, job_id="named", output=f"{folder.as_uri()}/{{custom_id}}-{{id}}.json")
    found = done(served, job_id)
    assert found[7][2] == "invalid_params"
    for at, (line, name, result) in enumerate(found):
        if at != 7:
            place = folder / f"row~2F{at}-named-line{at + 1}.json"
            assert (line, name, result) == (at + 1, f"row/{at}", {"uri": place.as_uri()})
            assert json.loads(place.read_text()) == "constant"
    assert len(list(folder.iterdir())) == 299
    # With what was asked in front of it, without what nobody may see; and only where the worker may write.
    with_inputs = {"uri": f"{folder.as_uri()}/asked/{{date}}/", "include_inputs": True}
    rows = [{"inputs": {"uri": "https://user:secret@host/a.png"}, "params": {"seconds": 0}, "custom_id": "q"}]
    [(_, _, result)] = done(served, jobs.submit("constant", rows, job_id="asked", output=with_inputs, params={}))
    said = json.loads(Path(result["uri"].removeprefix("file://")).read_text())
    assert said["result"] == "constant"
    assert said["pipeq"] == {
        "version": 1, "id": "asked-line1", "pipeline": "constant", "custom_id": "q", "params": {"seconds": 0},
        "inputs": {"uri": "https://...@host/a.png"},
    }  # fmt: skip
    found = done(served, jobs.submit("constant", ["a"], output="file:///elsewhere/{id}.json"))
    assert [one[2] for one in found] == ["input_forbidden"]


def test_what_was_asked_stands_beside_what_was_answered(served: Served) -> None:
    jobs, folder = served.client.jobs, served.folder
    path = folder / "asked.jsonl"
    path.write_text(
        '{"text": "a, b", "n": 1, "s": 0, "other": "x"}\n{"text": "ü", "n": 2, "s": "no number", "other": "y"}\n'
        'broken\n{"text": "c", "n": 3, "s": 0.0, "other": "z"}\n',
        encoding="utf-8",
    )
    out, columns = folder / "asked-out.csv", {"field": "text", "id": "n", "params_columns": {"seconds": "s"}}
    job_id = jobs.submit("constant", path, include_inputs=True, results=out.as_uri(), **columns)  # type: ignore[arg-type]
    assert jobs.wait(job_id, 60).state is JobState.COMPLETED
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["text", "n", "s", "result", "code", "message"]
    assert [list(row.values())[:5] for row in rows] == [
        ["a, b", "1", "0", "constant", ""],
        ["ü", "2", "no number", "", "invalid_params"],
        ["", "", "", "", "invalid_input"],
        ["c", "3", "0.0", "constant", ""],
    ]
    first, second, *_ = jobs.results(job_id)
    assert first == {"line": 1, "custom_id": "1", "inputs": "a, b", "params": {"seconds": 0}, "result": "constant"}
    assert (second["inputs"], second["error"]["code"]) == ("ü", "invalid_params")
    # The same columns where the client writes the file; and JSON lines have inputs and params.
    jobs.save(job_id, str(folder / "asked-here.csv"))
    assert (folder / "asked-here.csv").read_text() == out.read_text()
    jobs.save(job_id, str(folder / "asked-here.jsonl"))
    assert json.loads((folder / "asked-here.jsonl").read_text().splitlines()[0])["inputs"] == "a, b"
    # A row without columns is a column of its own, and one that nobody has read has none of them.
    job_id = jobs.submit("constant", ["a", "b"], include_inputs=True, check=False, pack_rows=1)
    done(served, job_id)
    jobs.save(job_id, str(folder / "plain.csv"))
    assert (folder / "plain.csv").read_text().splitlines() == [
        "inputs,result,code,message", "a,constant,,", "b,constant,,"
    ]  # fmt: skip


def test_the_commands(served: Served) -> None:
    path = served.folder / "commands.jsonl"
    path.write_bytes(b'{"q": "a", "n": 1}\n{"q": "b", "n": 2}\nbroken\n')
    out = served.folder / "commands-out.jsonl"

    def run(*arguments: str, code: int = 0) -> str:
        found = CliRunner().invoke(main, ["job", *arguments, "--redis-url", served.url])
        assert found.exit_code == code, found.output
        return found.stdout

    listed = run("submit", "constant", str(path), "--field", "q", "--id", "n", "--job-id", "cmd", "--results", str(out),
        code=1)  # fmt: skip
    assert listed.split() == ["cmd"]
    assert len(out.read_text().splitlines()) == 3
    assert "completed" in run("status", "cmd")
    assert json.loads(run("status", "cmd", "--json"))["done"] == 3
    assert [json.loads(line)["line"] for line in run("results", "cmd").splitlines()] == [1, 2, 3]
    assert "cmd" in run("list")
    assert json.loads(run("wait", "cmd", "--json", code=1).splitlines()[-1])["codes"] == {"invalid_input": 1}
    assert "completed" in run("cancel", "cmd")
    assert run("retry", "cmd", str(path), "--code", "timeout") == ""
    for command in ("status", "wait", "results", "cancel"):
        run(command, "nobody", code=4)
    run("retry", "nobody", str(path), code=4)
    assert run("status", "nobody", "cmd", code=4).startswith("cmd  completed"), "the others are shown"
    # Results with names, what was asked, and files of this machine.
    (served.folder / "here").mkdir()
    for at in range(2):
        (served.folder / "here" / f"{at}.bin").write_bytes(b"x" * 20_000)
    here = served.folder.as_uri()
    run("submit", "constant", f"{served.folder}/here/*.bin", "--job-id", "cmd-2", "--include-inputs", "--wait",
        "--output", f"{here}/cmd/{{id}}.json", "--upload", f"{here}/up/")  # fmt: skip
    rows = [json.loads(line) for line in run("results", "cmd-2").splitlines()]
    for at, row in enumerate(rows):
        place = served.folder / "cmd" / f"cmd-2-line{at + 1}.json"
        assert row["result"] == {"uri": place.as_uri()}
        assert row["inputs"]["uri"].startswith(f"{here}/up/")
        assert json.loads(place.read_text())["pipeq"]["inputs"] == row["inputs"]
    assert len(rows) == 2
    run("submit", "constant", str(path), "--errors", "x", code=2)


def test_the_commands_take_what_the_methods_take(served: Served) -> None:
    """A retry has the options of the first submit: else its rows would be others."""
    path, out = served.folder / "options", served.folder / "options-out.csv"
    path.write_text("text,s,key\na,0,first\nb,none,second\nc,0,third\n")
    options = ["--format", "csv", "--field", "text", "--id", "key", "--params-column", "seconds=s", "--include-inputs",
        "--task-timeout", "20", "--wait"]  # fmt: skip

    def run(*arguments: str, code: int) -> str:
        found = CliRunner().invoke(main, ["job", *arguments, "--redis-url", served.url])
        assert found.exit_code == code, found.output
        return found.stdout

    assert run("submit", "constant", str(path), "--job-id", "options", *options, code=1).split() == ["options"]
    lines = path.read_text().replace("none", "0").splitlines(keepends=True)
    path.write_text("".join(lines))
    again = run("retry", "options", str(path), "--job-id", "options-2", *options, "--results", str(out), code=0)
    assert again.split() == ["options-2"]
    with out.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {"text": "b", "key": "second", "s": "0", "result": "constant", "code": "", "message": ""}
    run("results", "options", "--to", str(out), "--input", str(path), "--format", "csv", code=0)
    assert len(out.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "columns", [{"field": "txt"}, {"field": "text", "id": "txt"}, {"params_columns": {"a": "txt"}}]
)
@pytest.mark.parametrize("form", ["path", "file", "parquet", "data set"])
def test_a_column_that_a_table_has_not_is_said_before_there_is_a_job(
    served: Served, columns: dict[str, Any], form: str
) -> None:
    inputs: Any = served.folder / "table.csv"
    inputs.write_text("text,other\na,b\n")
    if form == "file":
        inputs = io.BytesIO(inputs.read_bytes())
        columns = columns | {"format": "csv"}
    elif form == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        inputs = served.folder / "table.parquet"
        parquet.write_table(pytest.importorskip("pyarrow").table({"text": ["a"], "other": ["b"]}), inputs)
    elif form == "data set":
        inputs = DataSet([{"text": "a", "other": "b"}])
    with pytest.raises(PipeqError, match="there is no column 'txt'; it has text, other; did you mean 'text'"):
        served.client.jobs.submit("constant", inputs, job_id="no-column", **columns)
    with pytest.raises(PipeqError, match="no job 'no-column'"):
        served.client.jobs.status("no-column")


class DataSet(list[Any]):
    """As those of the package ``datasets``."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])


@pytest.mark.parametrize("name", ["out.xyz", "out", "out.jsonl.gz", "out.csv.bak"])
def test_a_file_whose_name_does_not_say_what_it_is_to_hold_is_refused(served: Served, name: str) -> None:
    place = served.folder / name
    with pytest.raises(PipeqError, match=r"end it in \.jsonl, .* or \.parquet"):
        served.client.jobs.submit("constant", ["a"], job_id="no-end", results=place.as_uri())
    job_id = served.client.jobs.submit("constant", ["a"])
    with pytest.raises(PipeqError, match=r"end it in \.jsonl, .* or \.parquet"):
        served.client.jobs.save(job_id, str(place))
    with pytest.raises(PipeqError, match="no job 'no-end'"):
        served.client.jobs.status("no-end")


def test_the_asynchronous_client_has_the_same_jobs(served: Served) -> None:
    async def story() -> None:
        async with AsyncClient(served.url) as client:
            job_id = await client.jobs.submit("constant", (text for text in ["a", ["b"]]))
            assert (await client.jobs.wait(job_id, 60)).failed == 1
            found = [one async for one in client.jobs.results(job_id)]
            assert [one["line"] for one in found] == [1, 2]
            assert await client.jobs.save(job_id, str(served.folder / "async.jsonl")) == (1, 1)
            assert job_id in [one.id for one in await client.jobs.list()]
            with pytest.raises(PipeqError, match="no job 'nobody'"):
                await client.jobs.status("nobody")

    asyncio.run(story())


PRODUCER = """
import sys
from pipeq import Client
Client(sys.argv[1]).jobs.submit("constant", sys.argv[2], job_id="killed", max_backlog=int(sys.argv[3]), pack_rows=64)
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""


def test_a_job_survives_its_producer_and_its_workers(tmp_path: Path) -> None:
    """Lines of which some are bad, the producer killed twice and a worker twice: all results, in order, and once."""
    path, bad = tmp_path / "lines.jsonl", max(20, ROWS // 1000)
    wrong = {at * (ROWS // bad) + 57 for at in range(bad)}
    with path.open("w") as file:
        for at in range(ROWS):
            file.write("{broken\n" if at + 1 in wrong and at % 2 else json.dumps(
                {"inputs": f"text {at}", "custom_id": str(at), **({"params": {"n": 1}} if at + 1 in wrong else {})}
            ) + "\n")  # fmt: skip
    with embedded.valkey() as url, Client(url) as client:
        results, errors = killed_and_saved(client, url, path, len(wrong))
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [one["line"] for one in lines] == [at for at in range(1, ROWS + 1) if at not in wrong]
    assert all(one["custom_id"] == str(one["line"] - 1) for one in lines)
    assert [json.loads(line)["line"] for line in errors.read_text().splitlines()] == sorted(wrong)


def killed_and_saved(client: Client, url: str, path: Path, wrong: int) -> tuple[Path, Path]:
    """Kills a producer and a worker twice while a job runs, and returns its files of results and errors."""
    folder = path.parent
    arguments = [sys.executable, "-c", PRODUCER, url, str(path), str(ROWS // 4)]
    for share in (0.15, 0.5):
        with worker(folder, url, "constant", lease_s=2, sweep_s=0.5) as process:
            process.wait_ready(client, "constant")
            with subprocess.Popen(arguments, stdout=subprocess.PIPE) as producer:
                wait_for(client, int(ROWS * share))
                producer.kill()
            process.process.send_signal(signal.SIGKILL)
    with worker(folder, url, "constant", lease_s=2, sweep_s=0.5) as process:
        process.wait_ready(client, "constant")
        ended = subprocess.run(arguments, capture_output=True, check=True, text=True)
        status = client.jobs.wait("killed", 120 + ROWS / 500)
        assert int(ended.stdout) < 150 * 1024, "the producer's memory, in KiB"
        assert (status.succeeded, status.failed) == (ROWS - wrong, wrong)
        results, errors = folder / "results.jsonl", folder / "errors.jsonl"
        client.jobs.save("killed", str(results), str(errors))
    return results, errors


def wait_for(client: Client, rows: int) -> None:
    until = time.monotonic() + 60 + rows / 500
    while time.monotonic() < until:
        try:
            if client.jobs.status("killed").done >= rows:
                return
        except PipeqError:
            pass
        time.sleep(0.005)
    raise AssertionError("the job does not go on")


def test_ids_of_jobs_come_from_standard_input_and_the_first_error_is_shown(served: Served) -> None:
    path = served.folder / "wide.csv"
    path.write_text("a,b\n1,2\n3\n")
    options = ["--field", "b", "--job-id", "wide", "--wait", "--redis-url", served.url]
    told = CliRunner().invoke(main, ["job", "submit", "constant", str(path), *options])
    assert told.exit_code == 1
    assert "line 3: it has 1 column, and the first line names 2" in told.stderr
    listed = CliRunner().invoke(main, ["job", "status", "-", "--redis-url", served.url], input='wide\n{"id": "wide"}\n')
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [["wide", "completed"]] * 2


def test_a_folder_is_said_to_be_one(served: Served) -> None:
    (served.folder / "photos [1]").mkdir()
    with pytest.raises(PipeqError, match=r"photos \[1\]', a folder: end it in '/'"):
        served.client.jobs.submit("constant", served.folder / "photos [1]")
    (served.folder / "photos [1]" / "ü b.bin").touch()
    job_id = served.client.jobs.submit("constant", f"{served.folder}/photos [1]/")
    assert [one[2] for one in done(served, job_id)] == ["constant"]


def test_what_libraries_log_is_not_shown_beside_the_sentence(served: Served) -> None:
    """Without a network, gcsfs logs the traceback of each try."""
    script = "import logging, sys; from pipeq.cli.options import connected\n" \
        "with connected(sys.argv[1]): logging.getLogger('gcsfs').error('out of retries')"  # fmt: skip
    found = subprocess.run([sys.executable, "-c", script, served.url], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("", "")
