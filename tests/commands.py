"""The command line, run inside the test process."""

from __future__ import annotations

from click.testing import CliRunner, Result
from pipeq.cli import main


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """Runs ``pipeq`` with these arguments; what is no exit of a command is raised."""
    done = CliRunner().invoke(main, arguments, input=stdin, prog_name="pipeq")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done
