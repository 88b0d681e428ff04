"""`pipeq pipelines`, `pipeq top` and completion: a real Valkey in which heartbeats stand, and a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import click
import pytest
import redis
from pipeq import Client, cli
from pipeq.cli.completion import SHELLS
from pipeq.contract import keys
from pipeq.contract.heartbeat import Beat

from tests.commands import run

PIPEQ = [sys.executable, "-m", "pipeq"]
ASR, TEXT = "automatic-speech-recognition", "text-classification"


@pytest.fixture
def pipelines() -> tuple[str, ...]:
    return (ASR, TEXT)


@pytest.fixture
def busy(db: redis.Redis, client: Client) -> None:
    """Two workers that say of themselves what workers say, and messages that wait."""
    model = {"id": "tiny", "revision": None, "dtype": "float32", "device": "cpu"}
    registered = {"task": TEXT, "model": model, "takes": "text", "params": [f"p{n}" for n in range(9)]}
    db.hset(keys.PIPELINES, TEXT, json.dumps(registered))
    for name, share in (("w1", 0.5), ("w2", 0.25)):
        beat = Beat(
            at=time.time(),
            in_flight={TEXT: 3, ASR: 1},
            running={TEXT: 2},
            rates={TEXT: 10.0},
            batches={TEXT: 6.0},
            busy={TEXT: share, ASR: 0.25},
            failed={TEXT: {"timeout": 2, "out_of_memory": 1}},
            deaf={ASR: {"reason": "its disk is full", "since": 1.0}},
        )
        db.set(keys.worker_key(name), beat.encode())
        for pipeline in (ASR, TEXT):
            db.zadd(keys.workers_key(pipeline), {name: time.time() + 3600})
    client.submit_many(TEXT, ["a", "b", "c"])


# -- pipelines --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("busy")
def test_pipelines_is_a_table() -> None:
    done = run("pipelines")
    assert (done.exit_code, done.stderr) == (0, "")
    title, first, second = (re.split(r"\s{2,}", line.strip()) for line in done.stdout.strip().splitlines())
    assert title == ["pipeline", "task", "model", "takes", "workers", "parameters"]
    assert first[0] == ASR
    assert second == [TEXT, TEXT, "tiny float32 cpu", "text", "2", "p0, p1, p2, p3, p4, p5, ... 3 more"]
    assert "p0, p1, p2, p3, p4, p5, p6, p7, p8" in run("pipelines", TEXT).stdout


@pytest.mark.usefixtures("busy")
def test_pipelines_as_json() -> None:
    (found,) = map(json.loads, run("pipelines", TEXT, "--json").stdout.splitlines())
    assert found == {
        "pipeline": TEXT,
        "task": TEXT,
        "model": {"id": "tiny", "revision": None, "dtype": "float32", "device": "cpu"},
        "takes": "text",
        "params": [f"p{n}" for n in range(9)],
        "workers": 2,
        "loading": 0,
        "unlike": {},
    }
    assert len(run("pipelines", "--json").stdout.splitlines()) == 2


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize(
    "command", [["pipelines"], ["purge", "--yes"], ["forget"], ["cancel", "--pipeline"], ["events", "--pipeline"]]
)
def test_a_misspelt_pipeline_is_said_with_the_one_that_was_meant(command: list[str]) -> None:
    done = run(*command, "text-clasification")
    assert (done.exit_code, done.stdout) == (6, "")
    assert "unknown_pipeline: no worker has ever served 'text-clasification'" in done.stderr
    assert f"did you mean {TEXT!r}?" in done.stderr


@pytest.mark.usefixtures("busy")
def test_a_misspelt_parameter_is_refused_before_anything_is_queued(client: Client) -> None:
    done = run("submit", TEXT, "x", "--params", '{"p10": 1}')
    assert (done.exit_code, done.stdout) == (6, "")
    assert "invalid_params: 'text-classification' takes no parameter 'p10'; did you mean 'p" in done.stderr
    job = run("job", "submit", TEXT, "rows.txt", "--params", '{"p10": 1}')
    assert (job.exit_code, job.stdout) == (6, "")
    assert "did you mean 'p" in job.stderr
    assert client.jobs.list() == []
    assert client.queue(TEXT).depth == 3
    assert run("submit", TEXT, "x", "--params", '{"p10": 1}', "--no-check").exit_code == 0
    assert run("submit", ASR, "x", "--text", "--params", '{"p10": 1}').exit_code == 0, "of this one nothing is known"


@pytest.mark.parametrize("raw", ["[]", "{", '{"task": 5, "model": [], "takes": {}, "params": [{}], "x": 1}', "null"])
def test_anything_may_be_registered(db: redis.Redis, raw: str) -> None:
    db.hset(keys.PIPELINES, TEXT, raw)
    assert run("pipelines").exit_code == 0
    assert run("pipelines", "--json").exit_code == 0
    assert run("submit", TEXT, "x", "--params", '{"a": 1}').exit_code == 0


def test_no_pipelines_at_all(db: redis.Redis) -> None:
    db.flushdb()
    done = run("pipelines")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no worker has ever served a pipeline here" in done.stderr
    assert run("top", "--once").exit_code == 0


# -- top --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("busy")
def test_top_looks_once() -> None:
    done = run("top", "--once")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    assert lines[3][:1] + lines[3][3:] == [TEXT, "6", "4", "2", "6.0", "20/s", "38%", "0", "timeout 4, out_of_memory 2"]
    assert lines[6] == ["w1", f"{ASR}, {TEXT}", "4", "2", "75%", f"{ASR}: its disk is full"]
    assert lines[7][:5] == ["w2", f"{ASR}, {TEXT}", "4", "2", "50%"]


@pytest.mark.usefixtures("busy")
def test_top_as_json() -> None:
    found = json.loads(run("top", "--once", "--json").stdout)
    queue = found["queues"][1]
    assert (queue["pipeline"], queue["depth"], queue["failed"]) == (TEXT, 3, {"timeout": 4, "out_of_memory": 2})
    assert queue["load"]["w1"] == {"in_flight": 3, "running": 2, "rate": 10.0, "batch": 6.0, "busy": 0.5}
    assert [one["name"] for one in found["workers"]] == ["w1", "w2"]
    assert found["workers"][0]["busy"] == 0.75


def on_a_terminal(*arguments: str, until: str, **env: str) -> tuple[str, int]:
    """Runs a command on a real terminal until it has drawn something; then Ctrl-C. What it drew, and its exit code."""
    shown, terminal = pty.openpty()
    command = [*PIPEQ, *arguments]
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160", "LINES": "40", **env}
    drawn = b""
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=env) as process:
        os.close(terminal)
        deadline = time.monotonic() + 60
        sent = False
        while time.monotonic() < deadline:
            if select.select([shown], [], [], 0.2)[0]:
                try:
                    drawn += os.read(shown, 2**16)  # which may end in the middle of a character
                except OSError:  # its end, on Linux
                    break
            if until.encode() in drawn and not sent:
                process.send_signal(signal.SIGINT)
                sent = True
        code = process.wait(30)
    os.close(shown)
    return drawn.decode(), code


@pytest.mark.usefixtures("busy")
def test_top_is_live_on_a_terminal_and_leaves_it_as_it_was() -> None:
    drawn, code = on_a_terminal("top", "--interval", "0.2", until="its disk is full")
    assert code == 0
    assert "\x1b[?1049h" in drawn, "the alternate screen"
    assert drawn.rindex("\x1b[?1049l") > drawn.rindex("its disk is full")
    assert "\x1b[?25h" in drawn[drawn.rindex("its disk") :], "the cursor is back"
    assert "Traceback" not in drawn


@pytest.mark.usefixtures("busy")
def test_without_a_terminal_top_prints_plain_lines() -> None:
    with subprocess.Popen([*PIPEQ, "top", "--interval", "0.2"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while sum("w2" in line for line in lines) < 2:
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert not any("\x1b" in line for line in lines)


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("command", [["queues"], ["pipelines"], ["top", "--once"], ["status", "x"]])
def test_no_color(command: list[str]) -> None:
    drawn, _ = on_a_terminal(*command, until="never", NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|9[0-7])m", drawn)


# -- completion -------------------------------------------------------------------------------------------------------


def completed(shell: str, line: str) -> str:
    words = line.split(" ")
    env: dict[str, Any] = {**os.environ, "_PIPEQ_COMPLETE": f"{shell}_complete"}
    env |= {"COMP_WORDS": line, "COMP_CWORD": words[-1] if shell == "fish" else str(len(words) - 1)}
    script = "import sys; sys.argv[0] = 'pipeq'; from pipeq.cli import main; main(prog_name='pipeq')"
    return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_options_and_choices(shell: str) -> None:
    done = run("completion", shell)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "_PIPEQ_COMPLETE" in done.stdout
    shown = completed(shell, "pipeq ")
    assert all(name in shown for name in cli.main.list_commands(click.Context(cli.main)))
    # The same code completes them for every shell.
    for line, wanted in {"pipeq submit --js": "--jsonl", "pipeq events --state fa": "failed"}.items():
        assert shell != "bash" or wanted in completed(shell, line)


def test_a_real_bash_completes() -> None:
    bash = shutil.which("bash")
    assert bash is not None
    done = run("completion", "bash")
    name = re.search(r"complete -o nosort -F (\w+) pipeq", done.stdout)
    assert name is not None
    script = f'{done.stdout}\nCOMP_WORDS=(pipeq pipel)\nCOMP_CWORD=1\n{name[1]} pipeq\necho "${{COMPREPLY[@]}}"'
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    found = subprocess.run([bash, "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert found.stdout == "pipelines\n"
