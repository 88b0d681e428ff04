"""What clients can do with queues: look at them, empty them, follow events, handle dead letters.

Written once, as steps. Used by both clients. What stands in Redis is untrusted data, see task_calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pipeq import checks
from pipeq.contract.events import KEPT_MOST, Event
from pipeq.contract.status import State
from pipeq.dead import Choice, Letters
from pipeq.events import Events, chosen, keep
from pipeq.protocol import Steps, Stream
from pipeq.queue_info import QueueInfo, read_queue, registered
from pipeq.retire import forget, purge
from pipeq.task_calls import TaskCalls


class OperatorCalls(TaskCalls):
    """Calls about queues."""

    def pipelines(self) -> Steps[dict[str, dict[str, Any]]]:
        """Every pipeline that a worker has ever served: name -> task type and model; empty if that cannot be read."""
        return (yield from registered())

    def queues(self) -> Steps[list[QueueInfo]]:
        """Depth, age and workers of the queues of all known pipelines."""
        found = []
        for name in sorted((yield from self.pipelines())):
            found.append((yield from read_queue(name, self.status_many)))
        return found

    def queue(self, pipeline: str) -> Steps[QueueInfo]:
        """Depth, age and workers of one queue, whether or not its pipeline is known."""
        return (yield from read_queue(checks.pipeline(pipeline), self.status_many))

    def events(
        self,
        after: str | None = None,
        *,
        pipelines: Iterable[str] | None = None,
        states: Iterable[State | str] | None = None,
        timeout_s: float | None = None,
    ) -> Stream[Event]:
        """Yields state changes of all tasks, as they happen. For apps that want to be told instead of asking.

        The stream is off until :meth:`keep_events` switches it on. Reading it needs the rights of an operator. If Redis
        goes away meanwhile, the reading goes on afterwards, for up to 5 minutes.

        Args:
            after: the id of an event, after which it begins: of the last one that you have dealt with, for instance.
                ``"0"`` for the oldest one that is kept; None for what happens from now on.
            pipelines: names of the pipelines that are meant; None for all.
            states: the states that are meant, such as ``("succeeded", "failed")``; None for all.
            timeout_s: seconds without such an event after which it ends; None waits for ever.

        Raises:
            EventsTrimmedError: events were removed before they were read.
            PipeqError: ``events_off``.
        """
        after = None if after is None else checks.texts("after", [after])[0]
        wanted = chosen(
            None if pipelines is None else frozenset(map(checks.pipeline, checks.texts("pipelines", pipelines))),
            None if states is None else checks.states(states),
        )
        timeout_s = checks.seconds("timeout_s", timeout_s)
        return Events(after, wanted, timeout_s).steps()

    def dead(
        self,
        pipeline: str | None = None,
        *,
        ids: Iterable[str] | None = None,
        code: str | Iterable[str] | None = None,
        older_than_s: float | None = None,
        newer_than_s: float | None = None,
    ) -> Letters:
        """Chooses dead letters: tasks that failed, and messages that could not be read. What is given must all be true.

        ``for letter in client.dead("asr", code="timeout")`` reads them; ``client.dead(ids=[id]).retry()`` sends a task
        again under its id, and ``client.dead(older_than_s=7 * 86400).drop()`` removes letters for good.

        Args:
            pipeline: the pipeline's name; None for all that a worker has ever served.
            ids: ids of tasks, or letters' own (:attr:`DeadLetter.letter`).
            code: one of :class:`ErrorCode`, or several.
            older_than_s: how long ago the task failed at least, in seconds.
            newer_than_s: how long ago it failed at most, in seconds.
        """
        return Letters(self.pipelines, Choice.of(pipeline, ids, code, older_than_s, newer_than_s))

    def purge(self, pipeline: str, *, progress: Callable[[int, int], None] | None = None) -> Steps[int]:
        """Ends every task that waits for a pipeline: on its lists, with a delay, or between two tries.

        Each is ``cancelled`` then, with the error ``purged``. Tasks inside workers go on. Other clients are served in
        between, also while a million messages are purged.

        Args:
            pipeline: its name.
            progress: called with the number of messages done, and of all that were there at first.

        Returns:
            The number of messages that were taken off.
        """
        return (yield from purge(checks.pipeline(pipeline), checks.progress(progress)))

    def forget(self, pipeline: str, *, force: bool = False) -> Steps[None]:
        """Takes a retired pipeline off the list of known ones: :meth:`submit` refuses it then.

        Args:
            pipeline: its name.
            force: also while a worker serves it or messages wait. Its messages and dead letters stay, and a worker that
                serves it puts it back on the list within seconds.

        Raises:
            PipeqError: ``unknown_pipeline``: it is not on the list; ``in_use``: why it is still needed.
        """
        queue = yield from self.queue(pipeline)
        yield from forget(queue, force=checks.flag("force", force))

    def keep_events(self, count: int | None = None) -> Steps[int]:
        """Switches the stream of events on, for all workers and clients of this Redis, or off.

        A client learns of it with its next submit, so that the events of the first call after that may be missing.

        Args:
            count: about how many events are kept, the newest; 0 switches the stream off and removes it; None changes
                nothing.

        Returns:
            How many events are kept; 0 if the stream is off.
        """
        return (yield from keep(None if count is None else checks.count("count", count, KEPT_MOST)))
