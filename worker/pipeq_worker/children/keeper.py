"""KEEPER: keeps a child running: loads it, ends it when it hangs, starts another one when it dies.

start -> loading -> serving -> dead -> loading -> ...
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.unlike import differences

from pipeq_worker.children import board, protocol
from pipeq_worker.children.deaths import Death
from pipeq_worker.children.guarded import guarded
from pipeq_worker.children.process import End, Member, Starter
from pipeq_worker.children.served import Served
from pipeq_worker.children.watch import WATCH_S, Watch
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.steps import Stage

logger = logging.getLogger(__name__)

#: A child that dies this often while it loads will never serve.
MOST_CRASHES = 3
#: Waits before a child is started that has died while it loaded, in seconds.
_BACKOFF_S = 1.0


class Keeper:
    """Owns one child at a time.

    Args:
        number: the child's; 0 is the device process.
        names: the pipelines that it serves.
        loading: returns the message that has the child load them; None if it must wait for something: see :meth:`load`.
        settings: the worker's settings, for the limits of each stage.
        start: starts a child.
        heard: called with a child's messages about tasks.
        serving: called when a child serves all pipelines, the first one and every later one.
        died: called when a child has died that has served or loaded.
        hopeless: called with a sentence when no child can be had any more.
        loads: called with the pipelines that have to be loaded again.
        loaded: called with each pipeline that is loaded.
    """

    def __init__(
        self,
        number: int,
        names: Sequence[str],
        loading: Callable[[], protocol.ToChild | None],
        settings: Settings,
        start: Starter,
        *,
        heard: Callable[[Sequence[protocol.ToHost]], None],
        serving: Callable[[], None],
        died: Callable[[Death], None],
        hopeless: Callable[[str], None],
        loads: Callable[[Sequence[str]], None],
        loaded: Callable[[str], None],
    ) -> None:
        self.number = number
        self.names = list(names)
        self._make_loading = loading
        #: Whether the child that lives now has been told to load.
        self._is_told = False
        self._start = start
        self._heard = heard
        self._serving = serving
        self._died = died
        self._hopeless = hopeless
        self._tell_loads = loads
        self._tell_loaded = loaded
        self._child: Member | None = None
        #: What the child has loaded so far; what it served is kept while the next one loads.
        self._loaded: set[str] = set()
        self.served: dict[str, Served] = {}
        self._failed: PipeqError | None = None
        self._crashes = 0
        self._lost = ""
        self._overdue: board.Entry | None = None
        self._is_deaf = True
        self._watch = Watch(settings)
        self._closed = False
        #: Whether it was ended because nobody needed it.
        self._is_asleep = False
        #: Whether the child that lives is ending for that reason.
        self._is_unwanted = False
        self._restart_at: float | None = None
        self._changed = threading.Condition()
        self._watcher = threading.Thread(target=guarded(self._look_on, hopeless), name="watch", daemon=True)

    # -- for the dispatcher -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the child, and its watch. Returns at once."""
        self._begin()
        self._watcher.start()

    def wait_until_loaded(self) -> dict[str, Served]:
        """Waits until the first child serves. Returns the pipelines.

        Raises:
            PipeqError: a pipeline cannot be loaded.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.is_serving or self._failed is not None)
            if self._failed is not None:
                raise self._failed
            return self.served

    @property
    def is_serving(self) -> bool:
        """Whether the child takes tasks."""
        return self._child is not None and not self._is_unwanted and self._has_loaded

    @property
    def _has_loaded(self) -> bool:
        return self._is_told and self._loaded.issuperset(self.names)

    def hangs(self) -> str | None:
        """Says that a step of the child should have been ended, or that the watch has ended; None if all is well."""
        if not self._watcher.is_alive() and not self._closed:
            return "the watch over the process that holds the models has ended"
        child = self._child
        return None if child is None else self._watch.hangs(child)

    def unload(self) -> Member | None:
        """Takes the child out of service until :meth:`wake`. Returns it, to be closed; None if none serves."""
        with self._changed:
            child = self._child
            if child is None or not self.is_serving or self._closed:
                return None
            self._is_asleep = self._is_unwanted = True
        logger.info("idle: process %d ends until the next task comes", child.pid, extra={"action": "unload"})
        return child

    def wake(self) -> None:
        """Starts a child, if the last one was ended by :meth:`unload`. Returns at once."""
        with self._changed:
            if not self._is_asleep:
                return
            self._is_asleep = False
            # If the last one is still ending, the next one is started when it has ended.
            if self._child is None:
                self._restart_at = time.monotonic()
                self._changed.notify_all()
        self._tell_loads(self.names)

    def doing(self) -> list[board.Entry]:
        """What the child's threads are doing."""
        child = self._child
        return [] if child is None else child.doing()

    @property
    def running(self) -> set[int]:
        """Numbers of the batches that the child is running."""
        return {one.number for one in self.doing() if one.stage is Stage.FORWARD}

    @property
    def pid(self) -> int | None:
        """The child's process id; None if there is none."""
        child = self._child
        return None if child is None else child.pid

    def send(self, *messages: protocol.ToChild) -> None:
        """Sends messages to the child. If there is none they are dropped: it would not know the tasks."""
        child = self._child
        if child is not None:
            child.send(*messages)

    def gather(self, *messages: protocol.ToChild) -> None:
        """Sends messages soon, together with others: see :meth:`pipeq_worker.children.link.Link.gather`."""
        child = self._child
        if child is not None:
            child.gather(*messages)

    def close(self) -> None:
        """Ends the child, and starts no other."""
        with self._changed:
            self._closed = True
            child = self._child
            self._changed.notify_all()
        if child is not None:
            child.close()

    # -- life and death -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        with self._changed:  # so that it is known before it can die
            self._loaded, self._lost, self._overdue, self._is_told = set(), "", None, False
            self._is_deaf = True
            self._watch.begin()
            self._child = self._start(self.number, self._take, self._gone)
        self.load()

    def load(self) -> None:
        """Has the child load the pipelines, if it has not been told to and what it needs is there."""
        with self._changed:
            message = None if self._is_told or self._child is None else self._make_loading()
            if message is None or self._child is None:
                return
            self._is_told = True
            self._child.send(message)

    def _take(self, messages: Sequence[protocol.ToHost]) -> None:
        """Hears messages of the child, on its thread."""
        about_tasks: list[protocol.ToHost] = []
        for message in messages:
            match message:
                case protocol.Loaded():
                    self._note(message)
                case protocol.Absent():
                    self._note_absent(message)
                case protocol.Failed():
                    with self._changed:
                        self._failed = PipeqError(message.code, message.message)
                        self._changed.notify_all()
                    self._give_up(message.message)
                case protocol.Answer():
                    self._watch.answered()
                case protocol.Lost():
                    self._lost = message.reason
                case _:
                    about_tasks.append(message)
        if about_tasks:
            self._heard(about_tasks)

    def _note(self, loaded: protocol.Loaded) -> None:
        # First, because what may run has to be known when the child serves.
        self._heard([loaded])
        served = Served.of(loaded)
        with self._changed:
            before, self.served[loaded.name] = self.served.get(loaded.name), served
        how = None if before is None else differences(before.identity, served.identity)
        if how is not None:
            logger.warning(
                "%s is not what it was before it was loaded again: %s; its answers may be others from now on",
                loaded.name,
                how,
                extra={"action": "load", "pipeline": loaded.name},
            )
        self._has(loaded.name)

    def _note_absent(self, absent: protocol.Absent) -> None:
        logger.error(
            "%s cannot be loaded any more, its tasks go to other workers: %s",
            absent.name,
            absent.reason,
            extra={"action": "load", "pipeline": absent.name},
        )
        self._has(absent.name)  # what it served is kept: it fails these tasks

    def _has(self, name: str) -> None:
        """Notes that the child has done with loading a pipeline."""
        with self._changed:
            self._loaded.add(name)
            is_complete = self.is_serving
            if is_complete:
                self._crashes = 0
            self._changed.notify_all()
        self._tell_loaded(name)
        if is_complete:
            self._serving()

    def _gone(self, end: End) -> None:
        """Called when the child is dead, on its thread."""
        with self._changed:
            child, self._child = self._child, None
            # What was loaded is known until the next child has loaded it again.
            if self._closed or child is None or self._failed is not None:
                return
            if self._is_unwanted:
                # It was told to end, so that is no death.
                self._is_unwanted = False
                if not self._is_asleep:
                    self._restart_at = time.monotonic()
                    self._changed.notify_all()
                return
            was_serving = self._has_loaded
        death = Death(self._lost or self._reason(end.how, child.pid), child.doing(), self._overdue, self._is_deaf)
        if not was_serving and not end.is_from_outside:
            self._crashes += 1
            if self._crashes >= MOST_CRASHES:
                sentence = f"a process of this worker died {self._crashes} times while loading: {death.reason}"
                with self._changed:
                    self._failed = PipeqError(ErrorCode.INTERNAL, sentence)
                    self._changed.notify_all()
                self._give_up(sentence)
                return
        self._tell_loads(self.names)
        self._died(death)
        with self._changed:
            self._restart_at = time.monotonic() + (0 if was_serving else _BACKOFF_S)
            self._changed.notify_all()

    def _give_up(self, sentence: str) -> None:
        if self.served and len(self.served) == len(self.names):
            self._hopeless(sentence)  # before the first child has served, whoever waits for it is told

    def _reason(self, how: str, pid: int) -> str:
        return f"process {pid} {how}" if self._overdue is None else self._watch.too_long(self._overdue, pid)

    # -- the watch ----------------------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._is_due(), WATCH_S)
                if self._closed:
                    return
                is_due = self._is_due()
                if is_due:
                    self._restart_at = None
                child = self._child
            if is_due:
                self._begin()
            elif child is not None:
                self._look(child)

    def _is_due(self) -> bool:
        return self._restart_at is not None and time.monotonic() >= self._restart_at

    def _look(self, child: Member) -> None:
        if (entry := self._watch.overdue(child)) is not None:
            is_deaf = entry.stage is Stage.LOAD or self._watch.is_deaf(child)
            if is_deaf is None:
                return
            self._overdue, self._is_deaf = entry, is_deaf
            child.kill()
        elif self.is_serving and self._watch.is_silent(child):
            self._lost = self._watch.no_answer(child.pid)
            child.kill()
