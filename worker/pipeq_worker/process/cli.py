"""``pipeq worker``: settings -> pipelines -> Celery, in one process for each device."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import socket
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path

import click
from pipeq.contract import shown
from pipeq.contract.errors import PipeqError

from pipeq_worker.models.task_types import is_task_type
from pipeq_worker.process import rights, startup, supervisor
from pipeq_worker.settings import read as settings_module
from pipeq_worker.settings import shown as shown_settings
from pipeq_worker.settings.read import Settings

logger = logging.getLogger("pipeq_worker")

EXIT_SETTINGS = 2
#: How long the users' observers may take for what they have not been told at the end, in seconds.
OBSERVERS_S = 5.0


@click.command(
    epilog="""\b
Examples:
  pipeq worker text-embedding=sentence-transformers/all-MiniLM-L6-v2 --allow s3://talks/
  pipeq worker --config pipelines.toml --devices auto
  pipeq worker text-generation --include myapp.tasks
"""
)
@click.argument("pipelines", nargs=-1, metavar="[TASK[=MODEL] | MODEL]...")
@click.option("--config", type=click.Path(path_type=Path), help="Settings file (pipelines.toml).")
@click.option("--allow", multiple=True, metavar="URI", help="Prefix that inputs may be read from; may be repeated.")
@click.option("--devices", metavar="auto|cpu|0,1", help="One worker process for each device, restarted when it dies.")
@click.option("--include", multiple=True, metavar="MODULE", help="Also run the ordinary Celery tasks of a module.")
@click.option("--queue", "celery_queues", multiple=True, metavar="NAME", help="Queue of those tasks (celery).")
@click.option("--redis-url", metavar="URL", help="Overrides the settings' redis_url.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Log lines for people or for machines.")
@click.option("--check", is_flag=True, help="Check settings, parameters, stores and prefixes; then stop.")
@click.pass_context
def worker(
    ctx: click.Context,
    pipelines: tuple[str, ...],
    config: Path | None,
    allow: tuple[str, ...],
    devices: str | None,
    include: tuple[str, ...],
    celery_queues: tuple[str, ...],
    redis_url: str | None,
    log_format: str | None,
    check: bool,
) -> None:
    """Serve pipelines: load them, then take tasks off their queues.

    Each TASK[=MODEL] adds a pipeline named after its task type, with a local folder, a name on the Hub or an archive
    on S3 as its model, or the model that transformers takes by default. NAME=MODEL, or MODEL alone, is for what the
    model's configuration says.
    """
    try:
        named = [_named(text) for text in pipelines]
        settings = settings_module.from_command_line(
            config, named, allow, redis_url, log_format, include, celery_queues
        )
        startup.check(settings)
        if check:
            from pipeq_worker.process.checkup import check_all

            check_all(settings)
            click.echo(shown_settings.as_json(settings))
            return
        if devices is not None:
            sys.exit(supervisor.supervise(supervisor.devices_of(devices), sys.argv, settings))
        sys.exit(run(settings))
    except PipeqError as error:
        click.echo(f"pipeq: {shown.line(str(error), 4000)}", err=True)
        ctx.exit(EXIT_SETTINGS)


def _interrupted(*_: object) -> None:
    os.write(2, b"pipeq: interrupted: ended by Ctrl-C\n")
    os._exit(130)


def _named(text: str) -> str:
    """``MODEL`` -> ``TASK=MODEL``; returns anything else unchanged."""
    if not text or "=" in text or is_task_type(text) or not ("/" in text or Path(text).is_dir()):
        return text
    startup.check_folder(text)
    from pipeq_worker.models.model_archive import unpacked
    from pipeq_worker.models.transformers_loading import task_type_of
    from pipeq_worker.settings.sections import PipelineSettings, S3Settings

    model = unpacked(text, S3Settings())
    return f"{task_type_of(text, model, PipelineSettings(model=text))}={text}"


def run(settings: Settings) -> int:
    """Serves the pipelines in this process until it is told to stop. Returns the exit code."""
    # A task allocates some hundred small objects, and all of them are freed when it ends. Python's default, a search
    # for cycles after every 700 allocations, takes an eighth of the time of a no-op task. Searching rarely is safe only
    # if nothing large waits for the collector: see observe/frames.py.
    gc.set_threshold(50_000, 10, 10)
    from pipeq_worker.children import starting
    from pipeq_worker.models.loading import any_needs_torch
    from pipeq_worker.observe import log

    if any_needs_torch(settings.pipelines):
        starting.host_steps_back()
    log.set_up(settings.log_level, settings.log_format)
    from celery.exceptions import SecurityWarning

    from pipeq_worker.broker.app import Worker, build_app
    from pipeq_worker.broker.pool import EXIT_DEVICE_LOST
    from pipeq_worker.host.runtime import Runtime
    from pipeq_worker.host.seen import Seen
    from pipeq_worker.observe.failures import failures
    from pipeq_worker.observe.logged import Log
    from pipeq_worker.observe.observer import Observers, of_entry_points
    from pipeq_worker.process.login import Login

    # The user's observers are made first, so that a faulty one is reported before models are loaded.
    own = of_entry_points()
    # In a container the process id and the host are the same after each restart, but a worker's name must be new.
    hostname = f"pipeq-{os.getpid()}-{secrets.token_hex(2)}@{socket.gethostname()}"
    seen = Seen(settings, hostname)
    observer = Observers([Log(), *seen.observers], own)
    # Until Celery has its own handlers. KeyboardInterrupt may come between a lock and its release, for instance where a
    # child is started, and then the process never ends. The children end with it, and what Redis has of it lapses.
    signal.signal(signal.SIGINT, _interrupted)
    startup.wait_for_redis(settings.redis_url)
    rights.check(settings.redis_url, settings.pipelines)
    runtime = Runtime(settings, hostname, observer, seen)
    with ExitStack() as loads:
        loading = loads.enter_context(startup.Loading(settings.redis_url, hostname, settings.pipelines))
        login = Login(settings)
        runtime.load()
        login.check()
        loading.claim(runtime.pipelines, strict=settings.strict)
        runtime.on_serving = loads.pop_all().close
    supervisor.end_with_parent()
    gc.collect()
    gc.freeze()
    app = build_app(runtime)
    # Celery warns when it runs as root, which is usual in containers. It would matter only if a worker ran code from
    # its producers, and it runs none.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    celery_worker = Worker(app=app, hostname=hostname, quiet=True, loglevel=settings.log_level)
    celery_worker.start()
    failures.close()
    observer.close(OBSERVERS_S)
    if not runtime.lost:
        logger.info("ended", extra={"action": "end"})
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Ends at once, as threads that still read from a slow store would delay the exit. Their tasks are back on their
    # queues.
    os._exit(EXIT_DEVICE_LOST if runtime.lost else celery_worker.exitcode or 0)
