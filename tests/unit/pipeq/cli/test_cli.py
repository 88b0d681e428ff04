"""`pipeq` without Redis: help, arguments, parsing of inputs, and lazy imports."""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from pipeq import cli
from pipeq.cli import group as cli_group
from pipeq.cli import options as cli_options
from pipeq.cli import show as cli_show
from pipeq.contract.errors import PipeqError, RedisUnavailableError, SubmitError, WaitTimeoutError
from pipeq.contract.message import Ref, plain
from pipeq.contract.status import State, TaskStatus
from pipeq.queue_info import QueueInfo

#: No process listens on the discard port.
CLOSED = "redis://127.0.0.1:9/0"


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli.main, arguments, input=stdin, prog_name="pipeq")


class Recorder:
    """A stand-in for the client that records what it is told to submit."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []
        self._fail_at = fail_at

    #: Where local files are uploaded.
    upload = None

    def __call__(self, redis_url: str | None, **_: Any) -> "Recorder":
        return self

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def pipelines(self) -> dict[str, dict[str, Any]]:
        return {}

    def submit(self, pipeline: str, inputs: Any, **options: Any) -> str:
        self.calls.append((pipeline, plain(inputs), options))
        return "id"

    def submit_many(self, pipeline: str, inputs: list[Any], **options: Any) -> list[str]:
        if self._fail_at is not None and len(self.calls) >= self._fail_at:
            raise SubmitError("input_too_large", "the message\nis too large", submitted=["early"])
        self.calls.append((pipeline, [plain(value) for value in inputs], options))
        return [f"id-{len(self.calls)}-{n}" for n in range(len(inputs))]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(cli_options, "Client", recorder)
    return recorder


# -- help -------------------------------------------------------------------------------------------------------------

OURS = (
    "submit",
    "wait",
    "result",
    "status",
    "cancel",
    "queues",
    "pipelines",
    "top",
    "dead",
    "purge",
    "forget",
    "completion",
)
#: Commands of a group.
OF_DEAD = ("list", "show", "retry", "drop")


def test_help_lists_every_command_and_loads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda self: pytest.fail("loaded"))
    shown = run("--help")
    assert shown.exit_code == 0
    for name in (*OURS, "dev", "demo", "worker"):
        assert re.search(rf"^  {name}  +\S", shown.output, re.MULTILINE), name
    for code in range(7):
        assert re.search(rf"^  {code}  \w", shown.output, re.MULTILINE), code


def _examples(command: str) -> list[str]:
    shown = run(*command.split(), "--help")
    assert shown.exit_code == 0
    _, found, lines = shown.output.partition("Example:\n")
    assert found, "help must end with an example"
    return [line.strip() for line in lines.strip().splitlines()]


def command_of(name: str) -> click.Command:
    found = cli.main.get_command(click.Context(cli.main), name)
    assert found is not None
    return found


@pytest.mark.parametrize("command", [*OURS, *(f"dead {name}" for name in OF_DEAD)])
def test_every_example_is_a_command_line_that_parses(command: str) -> None:
    lines = _examples(command)
    assert lines
    for line in lines:
        parts = line.split(" | ")
        assert parts[-1].startswith(f"pipeq {command}")
        for part in parts:
            program, name, *rest = shlex.split(re.split(" [<>] ", part)[0])
            assert program == "pipeq"
            found = command_of(name)
            if isinstance(found, click.Group):
                found, rest = found.commands[rest[0]], rest[1:]
            found.make_context(name, rest)


def _all_commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name in group.list_commands(click.Context(group)):
        found = group.get_command(click.Context(group), name)
        if isinstance(found, click.Group):
            yield from _all_commands(found, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(_all_commands(cli.main)), ids=" ".join)
def test_help_is_laid_out_as_it_was_written(path: tuple[str, ...]) -> None:
    shown = run(*path, "--help").output
    assert not {"\\b", "\b"} & set(re.findall(r"\\b|\x08", shown))
    # A line of a list (`name   what it is`) that was joined with the next one has a gap in its middle.
    assert not re.findall(r"^ {2}(?! )(?:\S+ )+\S+ {2,}(?:\S+ )*\S+ {3,}\S", shown, re.MULTILINE)


def test_a_command_that_waits_anyway_has_no_option_to_imply() -> None:
    for path in _all_commands(cli.main):
        shown = run(*path, "--help").output
        assert ("implies --wait" in " ".join(shown.split())) == bool(re.search(r"^  --wait ", shown, re.MULTILINE)), (
            path
        )


@pytest.mark.parametrize("command", ["dead list", "dead retry", "job retry night rows.csv"])
def test_an_unknown_error_code_is_refused(command: str) -> None:
    done = run(*command.split(), "--code", "tiemout")
    assert done.exit_code == 2
    assert "there is no error code 'tiemout'; did you mean 'timeout'?" in done.stderr


@pytest.mark.parametrize("command", OURS)
def test_the_list_of_commands_says_what_each_says_of_itself(command: str) -> None:
    assert command_of(command).get_short_help_str(200) == cli.main._lazy[command].help


def test_the_groups_example_uses_real_commands() -> None:
    (line,) = _examples("")
    assert set(re.findall(r"pipeq (\w+)", line)) <= set(OURS)


def test_version() -> None:
    shown = run("--version")
    assert (shown.exit_code, shown.output) == (0, f"pipeq, version {importlib.metadata.version('pipeq')}\n")


HEAVY = {"celery", "kombu", "boto3", "botocore", "torch", "transformers", "rich", "numpy", "pipeq_worker"}


@pytest.mark.parametrize(
    ("arguments", "not_even"),
    [
        (["--help"], {"redis", "pydantic"}),
        (["submit", "--help"], set()),
        (["queues", "--help"], set()),
        (["dead", "--help"], set()),
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], not_even: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeq", *arguments], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported, "the list of imports was not read"
    assert not imported & (HEAVY | not_even)


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["nonsense"], "nonsense"),
        (["submit"], "PIPELINE"),
        (["submit", "asr"], "INPUT"),
        (["submit", "asr", "x", "--params", "{"], "--params"),
        (["submit", "asr", "x", "--params", "[1]"], "--params"),
        (["submit", "asr", "x", "--priority", "10"], "--priority"),
        (["submit", "asr", "x", "--expires", "0"], "--expires"),
        (["submit", "asr", "x", "--timeout", "-1"], "--timeout"),
        (["submit", "asr", "x", "--redis-url", "http://h/"], "--redis-url"),
        (["status"], "ID"),
        (["cancel"], "ID"),
        (["result"], "ID"),
        (["wait"], "ID"),
        (["submit", "asr", "x", "--text", "--lines"], "--lines"),
        (["submit", "asr", "s3://b/*.png", "--task-id", "x"], "--task-id"),
        (["submit", "asr", "no-such.jsonl", "--jsonl"], "no-such.jsonl"),
        (["submit", "asr", "/"], "folder"),
        (["dead", "nonsense"], "nonsense"),
        (["dead", "list", "--limit", "0"], "--limit"),
        (["dead", "retry", "--newer-than", "soon"], "--newer-than"),
        (["purge"], "PIPELINE"),
        (["forget", "a", "b"], "b"),
        (["top", "--interval", "0"], "--interval"),
        (["completion", "tcsh"], "tcsh"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_names_the_part(arguments: list[str], names: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert names in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["submit", "asr", "x"],
            ["status", "a"],
            ["result", "a"],
            ["result", "a", "--wait"],
            ["result", "a", "b", "--wait"],
            ["wait", "a"],
            ["cancel", "a"],
            ["queues"],
            ["pipelines"],
            ["top"],
            ["top", "--once", "--json"],
        ),
        *(["dead", name, "a"] for name in OF_DEAD),
        *(["purge", "a"], ["forget", "a"]),
    ],
)
def test_no_redis_is_exit_code_5_and_one_line(arguments: list[str]) -> None:
    done = run(*arguments, "--redis-url", "redis://user:s3cret@127.0.0.1:9/0")
    assert (done.exit_code, done.stdout) == (5, "")
    assert re.fullmatch(r"pipeq: redis_unavailable: cannot reach Redis at .*\n", done.stderr)
    assert "s3cret" not in done.stderr


def test_a_url_without_a_database_is_shown_with_its_port() -> None:
    assert "cannot reach Redis at redis://127.0.0.1:9 (" in run("queues", "--redis-url", "redis://127.0.0.1:9").stderr


def test_a_url_that_cannot_be_read_does_not_show_its_password() -> None:
    done = run("status", "a", "--redis-url", "redis://:s3/cret#@host:x/0")
    assert done.exit_code == 2
    assert "cret" not in done.stderr
    assert "s3" not in done.stderr


def test_the_redis_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEQ_REDIS_URL", CLOSED)
    assert "127.0.0.1:9/0" in run("queues").stderr
    assert "127.0.0.1:7/0" in run("queues", "--redis-url", "redis://127.0.0.1:7/0").stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PipeqError("unknown_pipeline", "x"), 6),
        (PipeqError("invalid_settings", "x"), 6),
        (PipeqError("output_failed", "x"), 1),
        (WaitTimeoutError("x"), 3),
        (RedisUnavailableError("x"), 5),
    ],
)
def test_errors_have_exit_codes(error: PipeqError, code: int) -> None:
    assert cli_group.exit_code(error) == code


# -- commands from elsewhere ------------------------------------------------------------------------------------------


class FakeEntry:
    """An entry point of a command that is not installed with these tests."""

    def __init__(self, load: Callable[[], Any], name: str = "worker") -> None:
        self.name, self.value, self.load = name, f"elsewhere.cli:{name}", load


def plug(monkeypatch: pytest.MonkeyPatch, load: Callable[[], Any]) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [FakeEntry(load)])


def missing(name: str) -> Callable[[], Any]:
    def load() -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return load


def test_a_plug_in_is_called_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.argument("task")
    def worker(task: str) -> None:
        click.echo(f"serving {task}")

    plug(monkeypatch, lambda: worker)
    assert run("worker", "fill-mask").output == "serving fill-mask\n"


def test_a_plug_in_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, missing("no_such_torch.cuda"))
    done = run("worker")
    assert done.exit_code == 6
    assert done.stderr == (
        'pipeq: missing_package: `pipeq worker` needs the package no_such_torch: pip install "pipeq[worker]"\n'
    )


def test_a_package_that_a_plug_in_misses_only_when_it_runs_is_said_too(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, lambda: click.command("worker")(missing("no_such_torch")))
    done = run("worker")
    assert done.exit_code == 6
    assert 'pip install "pipeq[worker]"' in done.stderr


def test_a_module_missing_from_an_installed_package_is_a_bug_and_shown_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, missing("pipeq.no_such_module"))
    assert isinstance(run("worker").exception, ModuleNotFoundError)


def test_demo_asks_for_its_own_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.main._lazy, "demo", replace(cli.main._lazy["demo"], module="no_such_demo"))
    assert 'pip install "pipeq[worker,demo]"' in run("demo").stderr


def test_an_error_of_a_plug_in_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def worker() -> None:
        raise PipeqError("invalid_settings", "pipelines.toml: inputs.allow:\n  not a list")

    plug(monkeypatch, lambda: worker)
    done = run("worker")
    assert (done.exit_code, done.stderr) == (6, "pipeq: invalid_settings: pipelines.toml: inputs.allow: not a list\n")


# -- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("s3://talks/a.flac", {"uri": "s3://talks/a.flac"}),
        ("file:///data/a.png", {"uri": "file:///data/a.png"}),
        ("https://h/a.png", {"uri": "https://h/a.png"}),
        ("A fine film.", "A fine film."),
        ("see http://h/a.png", "see http://h/a.png"),
        ("and/or", "and/or"),
        ("3.5", "3.5"),
        ("s3: a bucket", "s3: a bucket"),
        ("5", "5"),
        ("null", "null"),
        ('"quoted"', '"quoted"'),
        ("{not json", "{not json"),
        ("[sic]", "[sic]"),
        ('["a", "b"]', ["a", "b"]),
        (
            '{"image": {"uri": "s3://scans/a.png"}, "question": "Who?"}',
            {"image": {"uri": "s3://scans/a.png"}, "question": "Who?"},
        ),
        ('{"path": "/etc/hostname"}', {"path": "/etc/hostname"}),
        ("", ""),
        ("a\x00b", "a\x00b"),
        ("x" * 5000, "x" * 5000),
    ],
)
def test_what_an_input_becomes(argument: str, value: Any, recorder: Recorder) -> None:
    done = run("submit", "asr", argument)
    assert (done.exit_code, done.output) == (0, "id\n")
    assert recorder.calls[0][:2] == ("asr", value)


def test_a_file_becomes_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a b.wav").touch()
    run("submit", "asr", "a b.wav")
    assert recorder.calls[0][1] == {"uri": (tmp_path / "a b.wav").as_uri()}


def test_text_is_never_anything_else(tmp_path: Path, recorder: Recorder) -> None:
    texts = [str(tmp_path), "s3://b/k", '{"a": 1}', __file__]
    assert run("submit", "asr", "--text", *texts).exit_code == 0
    assert recorder.calls[0][1] == texts


def test_options_reach_the_client(recorder: Recorder) -> None:
    run(
        "submit",
        "asr",
        "x",
        "--params",
        '{"top_k": 1}',
        "--output",
        "s3://r/x.json",
        "--priority",
        "6",
        "--expires",
        "9",
        "--deadline",
        "3",
        "--task-timeout",
        "60",
        "--fair-key",
        "acme",
    )
    assert recorder.calls[0][2] == {
        "params": {"top_k": 1},
        "output": "s3://r/x.json",
        "priority": 6,
        "expires_s": 9.0,
        "deadline_s": 3.0,
        "timeout_s": 60.0,
        "fair_key": "acme",
        "check": True,
    }


def test_stdin_is_one_input_a_line(recorder: Recorder) -> None:
    done = run("submit", "asr", "first", "-", stdin=b's3://b/k\r\n\n  \n{"a": 1}\nlast')
    assert recorder.calls[0][1] == ["first", {"uri": "s3://b/k"}, {"a": 1}, "last"]
    assert done.output.count("\n") == 4


def test_stdin_is_read_in_chunks_whose_ids_are_printed(recorder: Recorder) -> None:
    done = run("submit", "asr", "-", "--text", stdin="\n".join(map(str, range(1201))))
    assert [len(values) for _, values, _ in recorder.calls] == [500, 500, 201]
    assert [value for _, values, _ in recorder.calls for value in values] == [str(n) for n in range(1201)]
    assert len(set(done.output.split())) == 1201


def test_an_empty_stdin_is_no_task(recorder: Recorder) -> None:
    done = run("submit", "asr", "-", stdin="\n")
    assert (done.exit_code, done.output, recorder.calls) == (0, "", [])


def test_stdin_that_is_closed_is_said() -> None:
    closed = "standard input is closed"
    for arguments in (["submit", "asr", "-"], ["wait", "-"]):
        done = subprocess.run(
            [sys.executable, "-c", "import os, sys; os.close(0); os.execv(sys.executable, sys.argv[1:])",
             sys.executable, "-m", "pipeq", *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, closed in done.stderr) == (2, True), done.stderr


def test_a_disk_that_is_full_is_said() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pipeq", "completion", "bash"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "pipeq: output_failed: cannot write: No space left on device\n")


def test_stdin_that_is_no_text_is_refused(recorder: Recorder) -> None:
    done = run("submit", "asr", "-", stdin=b"fine\n\xff\xfe\n")
    assert done.exit_code == 2
    assert "line 2" in done.stderr
    assert recorder.calls == []


def test_ids_are_not_lost_when_a_later_chunk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_options, "Client", Recorder(fail_at=1))
    done = run("submit", "asr", "-", stdin="x\n" * 600)
    assert done.exit_code == 6
    assert done.stdout.split()[-1] == "early"
    assert len(done.stdout.split()) == 501
    assert done.stderr == "pipeq: input_too_large: the message is too large\n"


def test_ids_are_not_lost_when_a_later_chunk_is_refused_while_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_options, "Client", Recorder(fail_at=0))
    done = run("submit", "asr", "a", "b", "--wait")
    assert done.exit_code == 6
    assert done.stderr == (
        "pipeq: warning: 1 task queued before the end, with the ids\nearly\n"
        "pipeq: input_too_large: the message is too large\n"
    )


# -- what people see --------------------------------------------------------------------------------------------------


def test_a_status_block_shows_what_is_known() -> None:
    status = TaskStatus.model_validate(
        {
            "id": "t",
            "state": "succeeded",
            "pipeline": "asr",
            "submitted_at": 1.0,
            "started_at": 2.0,
            "finished_at": 3.0,
            "attempts": 1,
            "worker": "w1",
            "result": "x" * 500,
            "timing_ms": {"queued": 1000.4, "infer": 20.0},
            "batch": {"size": 8, "padding": 0.125},
            "model": {"id": "m", "dtype": "float16"},
        }
    )
    block = cli_show.status_block(status)
    assert block.startswith("t  succeeded\n  pipeline   asr\n  submitted  19")
    for part in ("attempts   1", "worker     w1", "m float16", "8 items, 12% padding", "queued 1000 ms, infer 20 ms"):
        assert part in block
    assert "x" * 500 not in block


def test_a_status_block_of_nothing_is_one_line() -> None:
    assert cli_show.status_block(TaskStatus(id="t", state=State.UNKNOWN)) == "t  unknown"


def test_the_table_of_queues_keeps_long_names(capsys: pytest.CaptureFixture[str]) -> None:
    name = "zero-shot-object-detection-" + "x" * 60
    busy = QueueInfo(name, 12, 3, 3725.0, 4, 2, 1, running=3, drain_s=95.0, loading=1)
    cli_show.print_queues([busy, QueueInfo("asr", 0, 0, None, 0, 0, 0)])
    header, first, second = (line.split() for line in capsys.readouterr().out.strip().splitlines())
    assert header == "pipeline depth waiting oldest in flight running to drain workers loading dead device time".split()
    assert first == [name, *"12 3 1 h 2 min 4 3 1 min 35 s 2 1 1 -".split()]
    assert second == ["asr", *"0 0 - 0 0 - 0 0 0 -".split()]


def test_below_the_table_stands_why_nothing_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    cli_show.print_queues(
        [
            QueueInfo("a", 5, 0, None, 0, 0, 0),
            QueueInfo("b", 5, 0, None, 0, 0, 0, loading=2),
            QueueInfo("c", 0, 0, None, 0, 0, 0),
            QueueInfo("d", 5, 0, None, 0, 1, 0, deaf={"w1": "it is stopping"}),
        ]
    )
    assert capsys.readouterr().out.splitlines()[5:] == [
        "a: no worker takes its messages",
        "b: no worker takes its messages; 2 load it",
        "d: w1 takes no messages: it is stopping",
    ]


class Terminal:
    """A stderr that claims to be a terminal, and records what is written."""

    def __init__(self) -> None:
        self.text = ""
        self.encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(("after_s", "shows"), [(0.0, True), (60.0, False)])
def test_progress_comes_late_and_only_on_a_terminal(
    after_s: float, shows: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(cli_show, "PROGRESS_AFTER_S", after_s)
    monkeypatch.setitem(os.environ, "TERM", "xterm")
    with cli_show.LateProgress(2) as progress:
        if shows:
            progress._timer.join()
        progress.advance()
        progress.advance()
        print("a result")
    assert ("waiting" in terminal.text) is shows
    assert ("2/2" in terminal.text) is shows
    assert capsys.readouterr().out == "a result\n", "results belong on stdout"


def test_no_progress_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_show, "PROGRESS_AFTER_S", 0.0)
    with cli_show.LateProgress(1) as progress:
        assert not progress._timer.is_alive()


def test_json_is_readable() -> None:
    assert cli_show.as_json({"text": "Zürich"}) == '{"text": "Zürich"}'
    assert json.loads(TaskStatus(id="t", state=State.UNKNOWN).model_dump_json())["id"] == "t"


def test_a_ref_inside_json_stays_what_it_is() -> None:
    assert plain([{"image": {"uri": "s3://b/k"}}]) == [{"image": plain(Ref("s3://b/k"))}]
