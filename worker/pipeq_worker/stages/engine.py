"""ENGINE: joins the stages inside one process. Before and after: the process that holds the leases.

    accept -> fetch -> decode -> prepare -> | shelf -> infer | -> finish
              preparation.py                  device.py          finish threads

CPU threads prepare and finish while the device runs. Which prepared items run together, and when, is decided by the
process that holds the leases; it bounds the number of tasks inside, a :class:`Budget` their bytes. Imports no Celery.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeq.contract.errors import PipeqError
from pipeq.contract.status import Progress

from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.observe.traces import internal
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.closing import close
from pipeq_worker.stages.continuous import StreamStage
from pipeq_worker.stages.device import Device, Move, Ran, Run
from pipeq_worker.stages.far import Far
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stages.fetching import SLICE_S
from pipeq_worker.stages.placing import UPLOAD_THREADS, Placer, Uploads
from pipeq_worker.stages.preparation import Preparation, share_of
from pipeq_worker.stages.shelf import Shelf
from pipeq_worker.stages.steps import Stage, Steps
from pipeq_worker.stages.task import Item, Task
from pipeq_worker.stages.threads import Loop, Threads

logger = logging.getLogger(__name__)

#: Most bytes of prepared items that wait for the device: a window of 256 images, or an hour of audio in chunks.
WINDOW_BYTES = 256 * 2**20
FINISH_THREADS = 2
#: A task of more inputs is finished in slices, on a thread that does not hear the host.
SHORT_INPUTS = 32


@dataclass(frozen=True)
class Listener:
    """Is told what happens to tasks. Its functions are called on the stages' threads and return at once.

    Attributes:
        ready: items of a task lie on the shelf.
        prepared: all items of a task do, or have run already; not told of one that was known to have only one item.
        ran: a batch has run.
        ended: a task has its result, or an error.
        lost: the device cannot be used any more; the reason.
        far: how far a task is that takes long.
        idle: no more tasks wait for their end.
    """

    ready: Callable[[list[Item]], None]
    prepared: Callable[[Task], None]
    ran: Callable[[Ran], None]
    ended: Callable[[Task], None]
    lost: Callable[[str], None]
    far: Callable[[Task, Progress], None]
    idle: Callable[[], None]


class Engine:
    """Takes tasks through the stages of this process.

    Args:
        pipelines: the loaded pipelines by name.
        settings: the worker's settings.
        fetcher: reads references.
        placer: turns outputs into results, and writes those that do not stay in a record.
        listener: told what happens.
        steps: what each thread does is noted there.
        loop: prepares and finishes what is short, if there is one.
    """

    def __init__(
        self,
        pipelines: dict[str, Pipeline],
        settings: Settings,
        fetcher: Fetcher,
        placer: Placer,
        listener: Listener,
        steps: Steps | None = None,
        loop: Loop | None = None,
    ) -> None:
        self._listener = listener
        self._placer = placer
        self._most_bytes = settings.inputs.max_decoded_bytes
        self._steps = steps or Steps()
        #: Number -> task, from its acceptance to its end.
        self._tasks: dict[int, Task] = {}
        self._lock = threading.Lock()
        window = min(WINDOW_BYTES // len(pipelines), share_of(settings, len(pipelines)))
        self._shelf = Shelf(window)
        self._preparation = Preparation(
            pipelines,
            settings,
            fetcher,
            self._shelf,
            self._steps,
            ready=listener.ready,
            prepared=listener.prepared,
            finish=lambda task: self._finish_later([task]),
            check_output=placer.check_output,
            loop=loop,
        )
        self._device = Device(self._steps, listener.lost)
        self._streams = {name: self._stream(one) for name, one in pipelines.items() if one.stream is not None}
        self._far = Far(self._inside, listener.far, self._preparation.look)
        self._finishing = Threads(FINISH_THREADS, "finish", listener.idle, loop, first=True)
        self._placing = ThreadPoolExecutor(UPLOAD_THREADS, "place")

    def start(self) -> None:
        """Starts the device thread; those of preparation start with the first task."""
        self._device.start()
        for stage in self._streams.values():
            stage.start()
        self._far.start()

    def submit(self, task: Task) -> None:
        """Accepts a task, and returns at once."""
        with self._lock:
            self._tasks[task.number] = task
        self._preparation.submit(task)

    def run(self, number: int, items: list[int], *, alone: bool) -> None:
        """Runs a batch of items that are ready here. Returns at once."""
        stage = next((self._streams.get(str(item.lane)) for item in self._shelf.find(items[:1])), None)
        (stage or self._device).run(Run(number, alone, lambda: self._shelf.find(items), self._ran))

    def run_rows(self, number: int, rows: list[Item], after: Callable[[list[Item], Ran], None], *, alone: bool) -> None:
        """Runs a batch of rows that were prepared in another process. Returns at once."""
        self._device.run(Run(number, alone, lambda: rows, after))

    def move(self, move: Callable[[], None]) -> None:
        """Moves weights to or from the device, after the batches that were given before. Returns at once."""
        self._device.run(Move(move))

    def replaced(self, pipeline: Pipeline) -> None:
        """Notes that a pipeline stands in the place of another one of its name."""
        self._preparation.replaced(pipeline)
        if pipeline.stream is not None:
            self._streams[pipeline.name] = stage = self._stream(pipeline)
            stage.start()

    def find(self, numbers: Iterable[int]) -> list[Item]:
        """The items with these numbers that are ready here."""
        return self._shelf.find(numbers)

    def take_outputs(self, ran: Ran, outputs: dict[int, Any]) -> None:
        """Takes what another process made of items that were prepared here.

        Args:
            ran: the batch.
            outputs: number of each item -> the model's output for it, or a :class:`PipeqError`.
        """
        items = self._shelf.find(outputs)
        for item in items:
            output = outputs[item.number]
            if isinstance(output, PipeqError):
                item.error = output
            else:
                item.output = output
        self._finish_later(close(self._shelf, items, ran, self._most_bytes))

    def cancel(self, numbers: Iterable[int]) -> list[int]:
        """Stops working on tasks; of those nothing more is told. Returns the numbers of their items."""
        with self._lock:
            tasks = [self._tasks[number] for number in numbers if number in self._tasks]
        for task in tasks:
            task.is_cancelled = True
        removed = self._shelf.remove_of(tasks)
        for item in removed:
            item.row.stop = True  # in case it runs
        self._finish_later([item.task for item in removed if item.task.closed()])
        return [item.number for item in removed]

    def close(self) -> None:
        """Stops all work. Returns at once; what runs is abandoned."""
        self._far.close()
        self._device.close()
        for stage in self._streams.values():
            stage.close()
        self._preparation.close()
        self._finishing.close()
        self._placing.shutdown(wait=False, cancel_futures=True)
        self._placer.close()

    def _stream(self, pipeline: Pipeline) -> StreamStage:
        return StreamStage(pipeline, self._steps, self._ran, self._listener.lost)

    def _inside(self) -> list[Task]:
        with self._lock:
            return list(self._tasks.values())

    def _ran(self, items: list[Item], ran: Ran) -> None:
        self._listener.ran(ran)
        self._finish_later(close(self._shelf, items, ran, self._most_bytes))

    def _finish_later(self, tasks: list[Task]) -> None:
        """Finishes tasks on other threads: the device's must not wait for it."""
        finishing = self._finishing
        if not finishing.has_short_steps:
            finishing.submit(*(partial(self._finish, task) for task in tasks))
            return
        # Of many short steps each one's entry on the board, and turn of the loop, would take as long as itself.
        short = [task for task in tasks if len(task.outputs) <= SHORT_INPUTS]
        finishing.submit(*(partial(self._finish, task) for task in tasks if len(task.outputs) > SHORT_INPUTS))
        together, most = [task for task in short if not task.alone], finishing.most_together
        for at in range(0, len(together), most):
            finishing.together(partial(self._finish_together, together[at : at + most]))
        finishing.submit(*(partial(self._finish, task) for task in short if task.alone), light=True)

    def _finish_together(self, tasks: Sequence[Task]) -> tuple[int, int]:
        with self._steps.step(Stage.FINISH, *(task.number for task in tasks)):
            uploads = [self._converted(task) for task in tasks]
        for task, one in zip(tasks, uploads, strict=True):
            assert one is not None
            self._place(task, one)
        return len(tasks), len(tasks)

    def _finish(self, task: Task) -> None:
        with self._steps.step(Stage.FINISH, task.number, alone=task.alone):
            uploads = self._converted(task, time.monotonic() + SLICE_S)
        if uploads is None:
            self._finishing.submit(partial(self._finish, task))  # after those that wait
        else:
            self._place(task, uploads)

    def _converted(self, task: Task, until: float = math.inf) -> Uploads | None:
        try:
            return self._placer.convert(task, until)
        except BaseException as error:  # a panic inside a tokenizer is not an Exception
            task.fail(internal(error))
            return Uploads()

    def _place(self, task: Task, uploads: Uploads) -> None:
        if uploads.parts or uploads.rows or uploads.result is not None:
            # Stores answer slowly, and many writes may wait for them at the same time.
            self._placing.submit(self._upload, task, uploads)
        else:
            self._end(task)

    def _upload(self, task: Task, uploads: Uploads) -> None:
        try:
            self._placer.upload(task, uploads)
        except Exception as error:
            logger.exception("task %s", task.id, extra={"action": "deliver", "task_id": task.id})
            task.fail(internal(error))
        self._end(task)

    def _end(self, task: Task) -> None:
        self._preparation.hold(task, -task.held_bytes)
        with self._lock:
            self._tasks.pop(task.number, None)
        if not task.is_cancelled:
            self._listener.ended(task)
