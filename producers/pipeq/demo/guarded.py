"""Runs a process that cannot outlive this one. For the throw-away servers and workers of the demo and the tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeq.contract.errors import ErrorCode, PipeqError

#: How long a killed process may take to disappear, in seconds.
KILLED_WITHIN_S = 10.0

#: The guard reads the process group to watch, then "done". If the pipe closes before that, this process has died, for
#: whatever reason. (The kernel's death signal would not do: it is bound to the thread that started the process, and
#: exists only on Linux.) Removal is repeated, because a killed process may still write for a moment.
_GUARD = """
trap '' INT HUP TERM
read -r group && read -r done && exit
[ -n "$group" ] && kill -KILL "-$group"
for try in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$@" && exit; sleep 0.1; done
"""


class NotRunningError(PipeqError):
    """A process did not start, or ended by itself."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.NOT_RUNNING, message)
        self.args = (self.message,)


@dataclass(frozen=True)
class Child:
    """A running process, the leader of its own process group."""

    process: subprocess.Popen[bytes]
    #: The file with its stdout and stderr; None if it writes to ours.
    log: Path | None

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's."""
        return self.process.pid

    def has_ended(self, within_s: float = 0) -> bool:
        """Whether it has ended by itself; waits at most ``within_s`` seconds for that."""
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its log."""
        if self.log is None:
            return ""
        with suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        return ""


@contextmanager
def guarded(
    command: Sequence[str | Path],
    *,
    log: Path | None,
    env: Mapping[str, str],
    cwd: Path,
    leftovers: Sequence[Path] = (),
    grace_s: float = 0,
) -> Iterator[Child]:
    """Runs a process during a ``with`` block.

    The process and all that it started are gone afterwards, and ``leftovers`` are removed: when the block ends, when it
    raises, on Ctrl-C (which does not reach the process, because that has a session of its own), and when this process
    is killed.

    Args:
        command: the program and its arguments.
        log: a file for its stdout and stderr; None for this process's own.
        env: its whole environment.
        cwd: its working directory.
        leftovers: files and folders to remove afterwards.
        grace_s: how long it may take to end after SIGTERM; with 0 it is killed at once.

    Raises:
        NotRunningError: the program cannot be run.
    """
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", *leftovers],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    process = None
    try:
        process = _start(command, log, env, cwd)
        _tell(guard, str(process.pid))
        yield Child(process, log)
    finally:
        if process is not None:
            _stop(process, grace_s)
        for path in leftovers:
            _remove(path)
        if process is None:
            _tell(guard, "")
        _tell(guard, "done")
        guard.communicate()


def _start(
    command: Sequence[str | Path], log: Path | None, env: Mapping[str, str], cwd: Path
) -> subprocess.Popen[bytes]:
    with nullcontext() if log is None else log.open("ab") as output:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if log is None else subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise NotRunningError(f"cannot run {command[0]}: {error.strerror}") from error


def _tell(guard: subprocess.Popen[bytes], line: str) -> None:
    if guard.stdin is not None:
        # A guard that was killed cannot guard any more, but that must not make the block fail.
        with suppress(BrokenPipeError):
            guard.stdin.write(f"{line}\n".encode())
            guard.stdin.flush()


def _stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    if grace_s:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    # Kills the group even if its leader has ended, because it may have left children.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(KILLED_WITHIN_S)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
