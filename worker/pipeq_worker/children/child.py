"""CHILD: a process that holds pipelines, and touches what producers sent. Started by :mod:`.process`, never forked.

    python -P -m pipeq_worker.children.child SOCKET BOARD

It speaks :mod:`.protocol` over the socket, and notes on the board what its threads do. It ends when the host does.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

from pipeq.contract import shown
from pipeq.contract.errors import PipeqError
from pipeq.contract.message import TaskMessage
from pipeq.contract.redis_url import connect
from pipeq.contract.status import Progress

from pipeq_worker.children import protocol
from pipeq_worker.children.link import GONE, Link
from pipeq_worker.models.loading import load_pipeline, needs_torch
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.device import Ran, Run
from pipeq_worker.stages.engine import Engine, Listener
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stages.placing import Placer
from pipeq_worker.stages.steps import Board, Steps
from pipeq_worker.stages.task import Item, Task
from pipeq_worker.stores.signed import Signatures
from pipeq_worker.stores.writer import Writer

logger = logging.getLogger(__name__)

#: A child's exit code after ``lost``.
EXIT_LOST = 75
_PR_SET_PDEATHSIG = 1

Load = Callable[[str, Settings], Pipeline]


def load(name: str, settings: Settings) -> Pipeline:
    """Loads a pipeline of the settings."""
    return load_pipeline(name, settings.pipelines[name], settings.device, settings.s3, settings.param_limits)


class Child:
    """Does what the host's messages say.

    Args:
        link: to the host.
        board: where the threads note what they do.
        loads: loads a pipeline.
        fetcher: makes what reads references; for tests.
        lost: called after the host has been told that the device is beyond use.
    """

    def __init__(
        self,
        link: Link,
        board: Board,
        loads: Load = load,
        fetcher: Callable[[Settings, Signatures], Fetcher] | None = None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._link = link
        self._loads = loads
        self._make_fetcher = fetcher or _fetcher
        self._steps = Steps(board)
        self._on_lost = lost
        self._settings = Settings()
        self._engine: Engine | None = None

    def serve(self) -> None:
        """Reads messages until the host closes the connection."""
        while True:
            try:
                messages = self._link.receive(protocol.for_child)
            except GONE:
                break
            for message in messages:
                self.take(message)
        if self._engine is not None:
            self._engine.close()
        self._link.release()

    def take(self, message: protocol.ToChild) -> None:
        """Does what one message says."""
        match message:
            case protocol.Start():
                self._settings = protocol.unpacked(message.settings)
            case protocol.Load():
                self._load(message.pipelines)
            case protocol.Prepare():
                self._prepare(message)
            case protocol.Forward():
                assert self._engine is not None
                self._engine.run(Run(message.number, message.items, message.alone))
            case protocol.Ask():
                self._link.send(protocol.Answer())
            case protocol.Cancel():
                assert self._engine is not None
                self._engine.cancel(message.tasks)

    def _load(self, names: list[str]) -> None:
        settings, pipelines = self._settings, dict[str, Pipeline]()
        try:
            if any(needs_torch(name, settings.pipelines[name]) for name in names):
                _import_torch(settings)
            for at, name in enumerate(names, 1):
                extra = {"action": "load", "pipeline": name}
                logger.info("loading %s (%d of %d)", name, at, len(names), extra=extra)
                pipelines[name] = self._loads(name, settings)
            self._start(pipelines)
        except PipeqError as error:
            self._link.send(protocol.Failed(error.code, protocol.text(error.message)))
            return
        # The loaded models stay until the end, so the collector is told not to walk through them and torch again.
        gc.collect()
        gc.freeze()
        self._link.send(*(_loaded(one) for one in pipelines.values()))

    def _start(self, pipelines: dict[str, Pipeline]) -> None:
        settings = self._settings
        client = connect(settings.redis_url, retries=3)
        signatures = Signatures(client, settings.results)
        fetcher = self._make_fetcher(settings, signatures)
        placer = Placer(settings.results, Writer(settings.results, settings.s3), signatures)
        listener = Listener(self._ready, self._prepared, self._ran, self._ended, self._lost, self._far)
        self._engine = Engine(pipelines, settings, fetcher, placer, listener, self._steps)
        self._engine.start()
        threading.Thread(target=fetcher.warm_up, name="warm-up", daemon=True).start()

    def _prepare(self, message: protocol.Prepare) -> None:
        assert self._engine is not None
        task = Task(
            id=message.id,
            number=message.number,
            message=TaskMessage.model_construct(**protocol.unpacked(message.message)),
            alone=message.alone,
            has_next=message.has_next,
        )
        self._engine.submit(task)

    # -- what is said to the host -------------------------------------------------------------------------------------

    def _ready(self, item: Item) -> None:
        # A group is made of names, numbers and shapes, so that its text is the same in all processes.
        group = repr(item.group).encode("utf-8", "surrogatepass")
        self._link.send(protocol.Ready(item.task.number, item.number, group, item.cost, item.nbytes))

    def _prepared(self, task: Task) -> None:
        self._link.send(protocol.Prepared(task.number))

    def _ran(self, ran: Ran) -> None:
        passes = [(one.items, one.padded, one.seconds, one.fits) for one in ran.passes]
        about = (ran.size, ran.padded_cost, ran.padding, ran.seconds, ran.ended)
        self._link.send(protocol.Ran(ran.number, *about, passes, ran.splits))

    def _far(self, task: Task, far: Progress) -> None:
        self._link.send(protocol.Far(task.number, far.done, far.total, far.unit))

    def _ended(self, task: Task) -> None:
        error = task.error
        self._link.send(
            protocol.Ended(
                task.number,
                None if error is None else protocol.Error(error.code, protocol.text(error.message), error.retryable),
                task.result if error is None else b"null",
                task.timing_ms,
                task.result_uri,
                task.handed_on,
                None if task.batch is None else (task.batch.size, task.batch.padding),
            )
        )

    def _lost(self, reason: str) -> None:
        self._link.send(protocol.Lost(protocol.text(shown.line(reason, 2000))))
        self._on_lost()


def _loaded(pipeline: Pipeline) -> protocol.Loaded:
    limits = pipeline.limits
    return protocol.Loaded(
        pipeline.name,
        pipeline.task_type.name,
        pipeline.model.model_dump_json().encode(),
        limits.max_size,
        limits.max_cost,
        limits.launch_cost,
        limits.max_wait_s,
        limits.is_auto,
        limits.weight,
        0 if pipeline.stream is None else pipeline.stream.slots,
    )


def _fetcher(settings: Settings, signatures: Signatures) -> Fetcher:
    threads = settings.fetch_threads * max(1, len(settings.pipelines))
    return Fetcher(settings.inputs, settings.s3, threads, signatures)


def _import_torch(settings: Settings) -> None:
    logger.info("importing torch and transformers", extra={"action": "start"})
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # One thread for each tokenizer, because our own threads already run in parallel.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)


def _end_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, also while Python's lock is held."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def main() -> None:
    """Runs the process."""
    end, board, parent = map(int, sys.argv[1:4])
    _end_with(parent)
    # The host decides when this process ends; Ctrl-C and systemd send their signals to all processes of a group.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    from pipeq_worker.children.board import Writer as BoardWriter
    from pipeq_worker.observe import log

    link = Link(socket.socket(fileno=end), "host")
    messages = link.receive(protocol.for_child)
    first = messages[0]
    assert isinstance(first, protocol.Start)
    settings: Settings = protocol.unpacked(first.settings)
    log.set_up(settings.log_level, settings.log_format)
    gc.set_threshold(50_000, 10, 10)

    def lost() -> None:
        # Time for the reason to get out.
        threading.Timer(0.2, os._exit, (EXIT_LOST,)).start()

    child = Child(link, BoardWriter(board), lost=lost)
    for message in messages:
        child.take(message)
    child.serve()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that still read from a slow store would delay the exit.
    os._exit(0)


if __name__ == "__main__":
    main()
