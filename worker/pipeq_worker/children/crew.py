"""CREW: the children of a worker: the device process and the prepare processes, started side by side.

device process: load the weights -> ends -> prepare processes: load the ends
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from pipeq.contract.errors import PipeqError

from pipeq_worker.children import board, protocol
from pipeq_worker.children.deaths import Death
from pipeq_worker.children.keeper import Keeper
from pipeq_worker.children.preparers import preparers_of
from pipeq_worker.children.process import Starter
from pipeq_worker.children.served import Served
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.settings.read import Settings

logger = logging.getLogger(__name__)


class Crew:
    """Owns the children.

    Args:
        settings: the worker's settings.
        start: starts a child.
        heard: called with a child and its messages about tasks, on a thread of that child.
        serving: called when a child serves.
        died: called with a child and how it died.
        hopeless: called with a sentence when a child cannot be had any more.
        loads: called with the pipelines that have to be loaded again.
        loaded: called with each pipeline that is loaded.
    """

    def __init__(
        self,
        settings: Settings,
        start: Starter,
        *,
        heard: Callable[[Keeper, Sequence[protocol.ToHost]], None],
        serving: Callable[[], None],
        died: Callable[[Keeper, Death], None],
        hopeless: Callable[[str], None],
        loads: Callable[[Sequence[str]], None],
        loaded: Callable[[str], None],
    ) -> None:
        names = list(settings.pipelines)
        #: Name -> what the device process said in ``ends``.
        self._ends: dict[str, bytes | None] = {}
        self._names = names
        self.preparers: list[Keeper] = []

        def keeper(number: int, loading: Callable[[], protocol.ToChild | None]) -> Keeper:
            is_device = not number
            made: Keeper = Keeper(
                number,
                names if is_device else [],
                loading,
                settings,
                start,
                heard=lambda messages: heard(made, messages),
                serving=serving,
                died=lambda death: died(made, death),
                hopeless=hopeless,
                # What a prepare process loads is ready elsewhere, or was a moment ago.
                loads=loads if is_device else _ignore,
                loaded=loaded if is_device else _ignore,
            )
            return made

        self.device = keeper(0, lambda: self._load_again() if self.device.served else protocol.Load(names))
        self.preparers = [keeper(number, self._load_ends) for number in range(1, preparers_of(settings) + 1)]

    def __iter__(self) -> Iterator[Keeper]:
        yield self.device
        yield from self.preparers

    def load(self) -> dict[str, Served]:
        """Starts the children, and waits until they serve. Returns the pipelines.

        Raises:
            PipeqError: a pipeline cannot be loaded.
        """
        for one in self:
            one.start()
        try:
            served = self.device.wait_until_loaded()
            detached = [name for name in self._names if self._ends.get(name) is not None]
            if not detached:
                # Nothing can be prepared outside the device process.
                for one in self.preparers:
                    one.close()
                self.preparers = []
            if self.preparers:
                # They step back behind what loads weights, so they may be long behind it.
                logger.info("loading tokenizers and processors in prepare processes", extra={"action": "load"})
            for one in self.preparers:
                one.wait_until_loaded()
        except PipeqError:
            self.close()
            raise
        return served

    def take_ends(self, ends: protocol.Ends) -> None:
        """Takes what the device process said of a pipeline. When it has said all, prepare processes can load."""
        self._ends[ends.name] = ends.data
        if len(self._ends) == len(self._names):
            names = [name for name in self._names if self._ends[name] is not None]
            for one in self.preparers:
                one.names = names
                one.load()

    def homes(self, name: str) -> list[Keeper]:
        """The children that prepare for a pipeline and serve now."""
        keepers = [one for one in self.preparers if name in one.names] or [self.device]
        return [one for one in keepers if one.is_serving]

    def limits(self, name: str) -> BatchLimits:
        """The limits of a pipeline's batches."""
        return self.device.served[name].limits

    def slots(self, name: str) -> int:
        """The number of places of a pipeline that runs its items one by one; 0 if it runs batches."""
        return self.device.served[name].slots

    @property
    def pids(self) -> list[tuple[str, int]]:
        """Role and process id of each child that lives."""
        named = [("prepare" if one.number else "device", one.pid) for one in self]
        return [(role, pid) for role, pid in named if pid is not None]

    def doing(self) -> list[board.Entry]:
        """What the threads of all children are doing."""
        return [entry for one in self for entry in one.doing()]

    def hangs(self) -> str | None:
        """Says that a child hangs although it should have been ended; None if all is well."""
        return next((said for one in self if (said := one.hangs()) is not None), None)

    def close(self) -> None:
        """Ends the children, and starts no others."""
        for one in self:
            one.close()

    def _load_again(self) -> protocol.ToChild:
        known = {name: one.identity.get("revision") for name, one in self.device.served.items()}
        revisions = {name: revision for name, revision in known.items() if revision is not None}
        return protocol.Load(self._names, again=True, revisions=revisions)

    def _load_ends(self) -> protocol.ToChild | None:
        if len(self._ends) < len(self._names):
            return None
        ends = {name: data for name, data in self._ends.items() if data is not None}
        return protocol.LoadEnds(ends) if ends else None


def _ignore(_: object) -> None:
    """Nobody need know."""
