"""CHILD: a process that holds pipelines, and touches what producers sent. Its main program is :mod:`.main`.

A prepare process holds the two ends of pipelines: it fetches, decodes and prepares, and turns outputs into results. The
device process holds the weights and runs forward passes; of pipelines whose ends cannot leave it, and where there is
no prepare process, it does all of that.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from pipeq.contract import shown
from pipeq.contract.errors import PipeqError
from pipeq.contract.status import Progress

from pipeq_worker.children import outset, protocol
from pipeq_worker.children.exchange import Exchange
from pipeq_worker.children.link import GONE, Link
from pipeq_worker.children.loop import Loop
from pipeq_worker.children.packs import end_of, group_of, said_of_rows
from pipeq_worker.children.preparers import preparers_of
from pipeq_worker.children.slab import Slabs, Where
from pipeq_worker.models import identity
from pipeq_worker.models.absent_pipeline import Absent
from pipeq_worker.models.loading import any_needs_torch, dump_ends, load_ends, load_pipeline, make_room
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.device import Ran
from pipeq_worker.stages.engine import Engine, Listener
from pipeq_worker.stages.far import FAR_S
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stages.placing import Placer
from pipeq_worker.stages.steps import Board, Stage, Steps
from pipeq_worker.stages.task import Item, Task
from pipeq_worker.stores.signed import Signatures
from pipeq_worker.stores.writer import Writer

if TYPE_CHECKING:
    import redis

logger = logging.getLogger(__name__)

#: Messages smaller than this are prepared on the loop's thread, where nothing else runs meanwhile.
LIGHT_BYTES = 2**14

Load = Callable[[str, Settings], Pipeline]


def load(name: str, settings: Settings) -> Pipeline:
    """Loads a pipeline of the settings."""
    return load_pipeline(name, settings.pipelines[name], settings.device, settings.s3, settings.param_limits)


def _same(settings: Settings, revisions: Mapping[str, str]) -> Settings:
    """The settings with which models of the Hub are those that they were, whatever was pushed there since."""
    sections = settings.pipelines
    return settings.model_copy(
        update={"pipelines": {name: identity.pinned(one, revisions.get(name)) for name, one in sections.items()}}
    )


class Child:
    """Does what the host's messages say.

    Args:
        link: to the host.
        board: where the threads note what they do.
        slabs: memory that it shares with other children.
        loads: loads a pipeline.
        fetcher: makes what reads references; for tests.
        lost: called after the host has been told that the device is beyond use.
    """

    def __init__(
        self,
        link: Link,
        board: Board,
        slabs: Slabs,
        loads: Load = load,
        fetcher: Callable[[Settings, Signatures], Fetcher] | None = None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._link = link
        self._loads = loads
        self._make_fetcher = fetcher or _fetcher
        self._steps = Steps(board)
        self._loop = Loop()
        self._on_lost = lost
        self._settings = Settings()
        self._is_preparer = False
        self._pipelines: dict[str, Pipeline] = {}
        self._exchange = Exchange(slabs, lambda name: self._pipelines[name])
        self._made: Engine | None = None

    @property
    def _engine(self) -> Engine:
        """The stages, once pipelines are loaded."""
        assert self._made is not None
        return self._made

    def serve(self) -> None:
        """Reads messages until the host closes the connection."""
        self._loop.run(self._link.fileno(), self._hear, self._tell)
        if self._made is not None:
            self._made.close()
        self._link.release()

    def _hear(self) -> bool:
        try:
            messages = self._link.receive(protocol.for_child)
        except GONE:
            return False
        for message in messages:
            self.take(message)
        return True

    def take(self, message: protocol.ToChild) -> None:
        """Does what one message says."""
        match message:
            case protocol.Start():
                self._settings = protocol.unpacked(message.settings)
                self._is_preparer = message.is_preparer
                self._begin()
            case protocol.Load() if self._made is None:
                self._settings = _same(self._settings, message.revisions)
                self._load(message.pipelines, again=message.again)
            case protocol.Load():
                self._move(message.pipelines, self._load_again)
            case protocol.Unload():
                self._move(message.pipelines, lambda one: one.unload())
            case protocol.LoadEnds():
                self._load_ends(message.ends)
            case protocol.Prepare():
                self._prepare(message)
            case protocol.Forward():
                self._engine.run(message.number, message.items, alone=message.alone)
            case protocol.ForwardRows():
                rows = self._exchange.rows(message)
                self._engine.run_rows(message.number, rows, self._ran_rows, alone=message.alone)
            case protocol.Outputs():
                self._take_outputs(message)
            case protocol.Free():
                self._exchange.give_back([message.number])
            case protocol.Stop():
                self._exchange.stop(message)
            case protocol.Ask():
                self._link.send(protocol.Answer())
            case protocol.Cancel():
                removed = self._engine.cancel(message.tasks)
                self._exchange.give_back(set(removed).difference(message.busy))

    # -- loading ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Imports what takes long. A prepare process does so while the device process loads the weights."""
        settings = self._settings
        if any_needs_torch(settings.pipelines):
            with self._steps.step(Stage.LOAD, 0):
                # One thread in a prepare process: the others belong to the device process.
                import_torch(settings, 1 if self._is_preparer else settings.torch_threads)

    def _load(self, names: list[str], *, again: bool) -> None:
        settings = self._settings
        absent = {}
        try:
            for at, name in enumerate(names, 1):
                extra = {"action": "load", "pipeline": name}
                logger.info("loading %s (%d of %d)", name, at, len(names), extra=extra)
                with self._steps.step(Stage.LOAD, 0):
                    try:
                        self._pipelines[name] = self._loads(name, settings)
                    except PipeqError as error:
                        if not again:
                            raise
                        absent[name] = error.message
                        self._pipelines[name] = self._absent(name, error.message)
                    make_room(list(self._pipelines.values()), settings.max_loaded_bytes)
            self._start()
        except PipeqError as error:
            self._link.send(protocol.Failed(error.code, protocol.text(error.message)))
            return
        for name, pipeline in self._pipelines.items():
            if name in absent:
                self._link.send(protocol.Absent(name, protocol.text(absent[name])))
            else:
                self._link.send(protocol.Ends(name, dump_ends(pipeline)), _loaded(pipeline))

    def _absent(self, name: str, reason: str) -> Absent:
        """What stands for a pipeline until it can be loaded, which is tried between two batches."""

        def load() -> None:
            try:
                pipeline = self._loads(name, self._settings)
                make_room([*self._pipelines.values(), pipeline], self._settings.max_loaded_bytes)
            except PipeqError as error:
                absent.failed(error.message)
                return
            self._pipelines[name] = pipeline
            self._engine.replaced(pipeline)
            self._link.send(_loaded(pipeline))

        absent = Absent(name, self._settings.pipelines[name], reason, lambda: self._engine.move(load))
        return absent

    def _move(self, names: list[str], move: Callable[[Pipeline], None]) -> None:
        """Moves weights, on the device's thread."""
        for name in names:
            self._engine.move(partial(move, self._pipelines[name]))

    def _load_again(self, pipeline: Pipeline) -> None:
        logger.info("loading %s again", pipeline.name, extra={"action": "load", "pipeline": pipeline.name})
        pipeline.reload()
        self._link.send(_loaded(pipeline))

    def _load_ends(self, ends: dict[str, bytes]) -> None:
        settings = self._settings
        for name, data in ends.items():
            with self._steps.step(Stage.LOAD, 0):
                self._pipelines[name] = load_ends(data, name, settings.pipelines[name], settings.param_limits)
        self._start()
        self._link.send(*(_loaded(one) for one in self._pipelines.values()))

    def _start(self) -> None:
        settings = self._settings
        signatures = Signatures(self._connect, settings.results)
        fetcher = self._make_fetcher(settings, signatures)
        placer = Placer(settings.results, Writer(settings.results, settings.s3), signatures, self._steps)
        listener = Listener(
            self._ready, self._prepared, self._ran, self._ended, self._lost, self._far, self._link.flush
        )
        # A device process beside others must hear at once what they have prepared, and what stops a forward pass.
        loop = self._loop if self._is_preparer or not preparers_of(settings) else None
        self._made = Engine(self._pipelines, settings, fetcher, placer, listener, self._steps, loop)
        self._made.start()
        if not self._is_preparer:
            threading.Thread(target=self._say_far, name="far-rows", daemon=True).start()
        fetcher.warm_up_soon()
        threading.Thread(target=self._warm_up, args=[fetcher], name="warm-up", daemon=True).start()
        # The loaded models stay until the end, so the collector is told not to walk through them and torch again.
        gc.collect()
        gc.freeze()

    def _connect(self) -> redis.Redis:
        from pipeq.contract.redis_url import connect

        return connect(self._settings.redis_url, retries=3)

    def _warm_up(self, fetcher: Fetcher) -> None:
        """Loads the stores' libraries. The device process also says what it finds of what the settings name."""
        fetcher.warm_up()
        if not self._is_preparer:
            outset.say(self._settings)

    # -- work ---------------------------------------------------------------------------------------------------------

    def _prepare(self, message: protocol.Prepare) -> None:
        task = Task(
            id=message.id,
            number=message.number,
            lane=message.pipeline,
            body=message.message,
            alone=message.alone,
            has_next=message.has_next,
            deadline=message.deadline,
            is_light=len(message.message) < LIGHT_BYTES,
        )
        self._engine.submit(task)

    def _take_outputs(self, message: protocol.Outputs) -> None:
        outputs = self._exchange.outputs(message, self._engine.find(message.items))
        self._say(protocol.Taken(message.number))
        ran = Ran(message.number, message.size, padding=message.padding, began=message.began, seconds=message.seconds)
        self._engine.take_outputs(ran, outputs)

    # -- what is said to the host -------------------------------------------------------------------------------------

    def _say(self, message: protocol.ToHost) -> None:
        """Says something soon, together with other things."""
        if self._loop.is_here:
            self._link.leave(message)
        else:
            self._link.gather(message)

    def _tell(self, is_all: bool) -> None:
        """Sends what was said on the loop's thread: all of it, or what has waited for long."""
        if is_all or self._link.is_due:
            self._link.write()

    def _ready(self, items: list[Item]) -> None:
        if items[0].task.pack is not None:
            for message in said_of_rows(items, self._exchange if self._is_preparer else None):
                self._say(message)
            return
        for item in items:
            about = (item.task.number, item.number, group_of(item), item.cost, item.nbytes, item.task.has_one_item)
            place = self._exchange.keep(item) if self._is_preparer else ()
            self._say(protocol.Ready(*about, *place))

    def _prepared(self, task: Task) -> None:
        self._say(protocol.Prepared(task.number))

    def _ran(self, ran: Ran) -> None:
        self._link.send(_told(ran, []))

    def _ran_rows(self, items: list[Item], ran: Ran) -> None:
        self._link.send(_told(ran, self._exchange.answers(ran, items)))

    def _far(self, task: Task, far: Progress) -> None:
        self._link.send(protocol.Far(task.number, far.done, far.total, far.unit))

    def _say_far(self) -> None:
        """Says once a second how far rows of prepare processes are, on a thread of its own."""
        before = set[int]()
        while True:
            time.sleep(FAR_S)
            said = self._exchange.far()
            # A batch that takes less than a look says nothing.
            self._link.send(*(one for one in said if one.number in before))
            before = {one.number for one in said}

    def _ended(self, task: Task) -> None:
        self._say(
            protocol.Ended(
                task.number,
                None if task.error is None else protocol.Error.of(task.error),
                task.result if task.error is None else b"null",
                task.times.began,
                task.times.told(time.monotonic()),
                task.busy_s,
                task.result_uri,
                task.handed_on,
                None if task.batch is None else (task.batch.size, task.batch.padding),
                None if task.pack is None else end_of(task.pack),
            )
        )

    def _lost(self, reason: str) -> None:
        self._link.send(protocol.Lost(protocol.text(shown.line(reason, 2000))))
        self._on_lost()


def _told(ran: Ran, outputs: Iterable[Where | protocol.Error]) -> protocol.Ran:
    passes = [(one.items, one.padded, one.seconds, one.fits) for one in ran.passes]
    times = (ran.padded_cost, ran.padding, ran.began, ran.seconds)
    return protocol.Ran(ran.number, ran.size, *times, passes, ran.splits, list(outputs))


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
        list(pipeline.first_passes),
        pipeline.weight_bytes,
        pipeline.is_loaded,
        pipeline.can_unload,
        dict(pipeline.identity),
        list(pipeline.parameters),
    )


def _fetcher(settings: Settings, signatures: Signatures) -> Fetcher:
    threads = settings.fetch_threads * max(1, len(settings.pipelines))
    return Fetcher(settings.inputs, settings.s3, threads, signatures)


def import_torch(settings: Settings, threads: int | None) -> None:
    """Imports torch and transformers, which takes seconds."""
    logger.info("importing torch and transformers", extra={"action": "start"})
    # Hundreds of thousands of objects come, and stay. The collector would walk through them again and again, for a
    # seventh of the time that this takes.
    gc.disable()
    try:
        import torch
        import transformers
        import transformers.pipelines  # two thirds of the time; every pipeline needs it

        # So that the first input need not wait for them.
        from pipeq_worker.media import audio, images, video  # noqa: F401
        from pipeq_worker.stages import files  # noqa: F401
    finally:
        gc.enable()

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # One thread for each tokenizer, because our own threads already run in parallel.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads:
        torch.set_num_threads(threads)
