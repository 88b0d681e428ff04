"""``pipeq dev``: Redis and a worker on this machine, in one command; changed settings start the worker anew.

This process starts the others, and looks at the settings file. It holds no task, and the others cannot outlive it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from pipeq.contract import shown
from pipeq.contract.redis_url import connect
from pipeq.demo.embedded import RedisServer, is_free, redis_server
from pipeq.demo.guarded import Child, guarded

#: Where commands look for Redis if nobody says otherwise.
USUAL_PORT = 6379
#: The settings file is looked at this often, in seconds.
LOOK_EVERY_S = 0.5
#: How long a worker may take to end its tasks, in seconds.
GRACE_S = 10.0
#: Exit code of a worker whose settings cannot be used.
BAD_SETTINGS = 2


@dataclass(frozen=True)
class Worker:
    """The command line and the environment of the worker."""

    arguments: tuple[str, ...]
    env: Mapping[str, str]

    @property
    def command(self) -> list[str]:
        """-P: the folder that this runs in may hold a stranger's modules with the names of ours."""
        return [sys.executable, "-P", "-m", "pipeq", "worker", *self.arguments]

    def problem(self) -> str | None:
        """Why it would not start with the settings as they are now; None if it would."""
        done = subprocess.run(
            [*self.command, "--check"], env=self.env, capture_output=True, text=True, errors="replace", check=False
        )
        return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it ends at once"])[-1]

    @contextmanager
    def running(self) -> Iterator[Child]:
        """Runs it during the block. It writes to our stderr."""
        with guarded(self.command, log=None, env=self.env, cwd=Path.cwd(), grace_s=GRACE_S) as child:
            yield child


@click.command(
    epilog="""\b
Examples:
  pipeq dev text-classification
  pipeq dev text-embedding=sentence-transformers/all-MiniLM-L6-v2 constant
  pipeq dev --config pipelines.toml
"""
)
@click.argument("tasks", nargs=-1, metavar="[TASK[=MODEL]]...")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings file; when it changes, the worker starts anew.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="URI",
    help="Prefix that inputs may be read from; may be repeated. Default, without --config: the current folder.",
)
@click.option("--include", multiple=True, metavar="MODULE", help="Also run the ordinary Celery tasks of a module.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help="Port of Redis; 0 takes any free one. Default: 6379, or if that is taken any free one.",
)
@click.option("--redis-url", metavar="URL", help="Use this Redis in place of one of its own.")
def dev(
    tasks: tuple[str, ...],
    config: Path | None,
    allow: tuple[str, ...],
    include: tuple[str, ...],
    port: int | None,
    redis_url: str | None,
) -> None:
    """Run Redis and a worker here until Ctrl-C, for trying out.

    Redis listens on 127.0.0.1 alone, and keeps nothing: what was queued is gone with it. With --config, a change of the
    file starts the worker anew, unless the new settings cannot be used; then it says why, and the worker goes on. The
    tasks that it had wait meanwhile.
    """
    if not tasks and config is None and not include:
        raise click.UsageError("name a pipeline, as in `pipeq dev text-classification`, or give --config")
    if port is not None and redis_url is not None:
        raise click.UsageError("--port is for a Redis of its own, and --redis-url names another one: give one of them")
    if port and not is_free(port):
        raise click.UsageError(f"--port {port} is taken; 0 takes any free one")
    if not allow and config is None:
        allow = (f"{Path.cwd().as_uri().rstrip('/')}/",)
    # Ended by Ctrl-C, or by whoever started it: both let the others end first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 0
    try:
        with ExitStack() as stack:
            server = None if redis_url else stack.enter_context(redis_server(port=_port(port)))
            url = redis_url if server is None else server.url
            assert url is not None
            connect(url).close()
            _say(f"Redis is {shown.uri(url)}")
            if url != f"redis://127.0.0.1:{USUAL_PORT}/0":
                _say(f"in another terminal, first: export PIPEQ_REDIS_URL={shown.uri(url)}")
            arguments = [*tasks, *_options("--allow", allow), *_options("--include", include)]
            if config is not None:
                arguments += ["--config", str(config)]
            worker = Worker(tuple(arguments), {**os.environ, "PIPEQ_REDIS_URL": url, "PYTHONUNBUFFERED": "1"})
            code = _keep_running(worker, config, server)
    except KeyboardInterrupt:
        _say("ended")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--redis-url") from error
    click.get_current_context().exit(code)


def _keep_running(worker: Worker, config: Path | None, server: RedisServer | None) -> int:
    """Runs the worker, again after each change of its settings. Returns the exit code of one that ended by itself.

    Raises:
        NotRunningError: our own Redis has ended by itself. Without it nothing goes on, and another one would be empty.
    """
    while True:
        seen = _stamp(config)
        with worker.running() as child:
            while not child.has_ended(LOOK_EVERY_S):
                if server is not None:
                    server.check()
                if (now := _stamp(config)) != seen:
                    seen = now
                    if (problem := worker.problem()) is None:
                        _say(f"{config} has changed: the worker starts anew")
                        break
                    _say(f"{config} has changed, and the worker goes on with what it had: {shown.line(problem, 2000)}")
            else:
                code = child.process.returncode
                if config is None or code != BAD_SETTINGS:
                    _say(f"the worker ended by itself, with code {code}")
                    return code if code > 0 else 1
                _say(f"the worker starts again when {config} has changed")
        if child.process.returncode == BAD_SETTINGS:
            while _stamp(config) == seen:
                time.sleep(LOOK_EVERY_S)
                if server is not None:
                    server.check()


def _port(wanted: int | None) -> int | None:
    if wanted is not None:
        return wanted or None
    return USUAL_PORT if is_free(USUAL_PORT) else None


def _stamp(config: Path | None) -> tuple[int, int] | None:
    """What changes with the file. An editor may replace it, so that for a moment there is none."""
    if config is None:
        return None
    try:
        found = config.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _options(name: str, values: Sequence[str]) -> Iterator[str]:
    for value in values:
        yield from (name, value)


def _say(text: str) -> None:
    click.echo(f"pipeq dev: {text}", err=True)
