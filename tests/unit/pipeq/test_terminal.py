"""Commands whose stdout is closed, or speaks an encoding that lacks what is to be shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from pipeq.terminal import is_terminal

SHOWS = """
import click
from pipeq.cli import main
from pipeq.cli.show import as_json, table, tell

@click.command()
def show():
    click.echo(as_json("Gr\u00f6\u00dfe \U0001f600"))
    tell(table(["a"], [["stra\u00dfe"]]), ["b\u00e4r"])

main.add_command(show)
main.get_command = lambda ctx, name: show
main(["show"])
"""


def shown(encoding: str, before: str = "") -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {before}', sys.executable, SHOWS], env=env, capture_output=True, check=False
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_escaped_as_in_json(encoding: str) -> None:
    done = shown(encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    # click writes UTF-8 where the encoding is ASCII.
    line, *rest = done.stdout.decode("utf-8" if encoding == "ascii" else encoding).splitlines()
    assert json.loads(line) == "Größe \U0001f600"
    says = " ".join(rest)
    assert ("stra\\u00dfe" in says and "b\\u00e4r" in says) if encoding == "ascii" else ("straße" in says)


def test_a_closed_stdout_is_no_fault() -> None:
    done = shown("utf-8", ">&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_stream_that_was_closed_is_no_terminal() -> None:
    assert not is_terminal(None)
