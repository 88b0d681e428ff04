"""What clients can submit in bulk: many tasks, streams of tasks, and streams of their results; written once, as steps.

Used by both clients. Inputs -> submission -> submitting -> Redis -> waiting, for those who want the results here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from typing import Any

from pipeq import checks, wanted
from pipeq.contract import keys
from pipeq.contract.errors import PipeqError
from pipeq.contract.status import TaskStatus
from pipeq.local_inputs import Store
from pipeq.operator_calls import OperatorCalls
from pipeq.protocol import Give, Steps, Stream, given, reachable
from pipeq.read_allow import ReadAllow
from pipeq.submission import Submissions
from pipeq.submitting import Served, submit_errors
from pipeq.waiting import Wait
from pipeq.wanted import Call, Fed, Wanted
from pipeq.warn import warn

#: Most tasks that :meth:`BulkCalls.map` has under way, unless its caller says so.
IN_FLIGHT = 256
#: Seconds after which an input of a stream has taken long to come: then the tasks that are there are queued.
SLOW_S = 0.02
#: Most that it can have: each is subscribed to.
IN_FLIGHT_MOST = 100_000


class NoLiveWorkerWarning(UserWarning):
    """No worker serves the pipeline now. The task waits until a worker has loaded the pipeline."""


class BulkCalls(OperatorCalls):
    """Calls that submit many tasks."""

    def __init__(self, redis_url: str, allow: ReadAllow, max_message_bytes: int, store: Store | None = None) -> None:
        super().__init__(redis_url, allow, max_message_bytes)
        self._submissions = Submissions(self.pipelines, max_message_bytes, store)
        self._store = store

    def submit_many(
        self,
        pipeline: str,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        params: Mapping[str, Any] | Iterable[Mapping[str, Any] | None] | None = None,
        output: str | Mapping[str, Any] | None = None,
        task_ids: Iterable[str | None] | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        custom_ids: Iterable[str | None] | None = None,
        priority: int = keys.JOB_PRIORITY,
        expires_s: float | None = None,
        delay_s: float | None = None,
        deadline_s: float | None = None,
        timeout_s: float | None = None,
        fair_key: str | None = None,
        max_backlog: int | None = None,
        full_wait_s: float | None = None,
        headers: Mapping[str, Any] | None = None,
        check: bool = True,
    ) -> Steps[list[str]]:
        """Queues one task for each item of ``inputs``, up to 500 a round trip, behind the tasks of single submits.

        The default of ``priority`` is 6, so that bulk does not delay those who wait for one answer: :meth:`submit` has
        0, which is served first. Bulk still gets a share while others keep coming.

        ``inputs`` may be any iterable, and is read lazily; in an AsyncClient an asynchronous one, too. ``output`` must
        be a prefix (end in ``/``), or have ``{id}``. ``params`` are for all tasks, or an iterable with those of each.
        ``task_ids`` and ``idempotency_keys`` have a name for each task, or None for a task without one; named tasks
        take a round trip or two more for each 500. ``custom_ids`` have what you call each task. The other arguments
        are as for :meth:`submit`; with ``max_backlog``
        it waits for room in the queue, for ever unless ``full_wait_s`` says how long. For a stream without an end, see
        :meth:`submit_each`.

        Returns:
            The ids, in the order of the inputs. Inputs with equal names are one task, and have equal ids.

        Raises:
            SubmitError: as :meth:`submit` raises, with the position, as in ``task_ids[3]``; ``invalid_message`` if an
                argument has more or fewer values than ``inputs``; ``invalid_input`` if ``inputs`` itself raises. The
                tasks before the offending chunk stay queued; the error's ``submitted`` has their ids.
        """
        given = locals()
        with submit_errors() as submitted, reachable(self.redis_url):
            tasks, fed = wanted.many(inputs, params, task_ids, idempotency_keys, custom_ids)
            call = wanted.call(given, is_many=True)
            served = yield from self._submissions.run(submitted, call, tasks, fed)
            self._note(call, served)
        return submitted

    def submit_each(
        self,
        pipeline: str,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        params: Mapping[str, Any] | Iterable[Mapping[str, Any] | None] | None = None,
        output: str | Mapping[str, Any] | None = None,
        task_ids: Iterable[str | None] | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        custom_ids: Iterable[str | None] | None = None,
        priority: int = keys.JOB_PRIORITY,
        expires_s: float | None = None,
        delay_s: float | None = None,
        deadline_s: float | None = None,
        timeout_s: float | None = None,
        fair_key: str | None = None,
        max_backlog: int | None = None,
        full_wait_s: float | None = None,
        headers: Mapping[str, Any] | None = None,
        check: bool = True,
    ) -> Stream[str]:
        """Queues tasks as :meth:`submit_many` does, and yields each id once its task is queued.

        So ``inputs`` may have no end, and memory stays flat. Tasks are queued up to 500 together; what takes long to
        come is queued at once. Nothing is read while the caller does not ask for the next id.

        Raises:
            SubmitError: as :meth:`submit_many` raises; its ``submitted`` is empty, since the ids were yielded.
        """
        given = locals()
        with submit_errors(), reachable(self.redis_url):
            tasks, fed = wanted.many(inputs, params, task_ids, idempotency_keys, custom_ids)
            call = wanted.call(given, is_many=True)
        return self._each(call, tasks, fed)

    def _each(self, call: Call, tasks: Iterator[Wanted], fed: Fed | None) -> Stream[str]:
        is_noted = False
        chunks = self._submissions.chunks(call, tasks, fed, slow_s=SLOW_S)
        while True:
            with submit_errors(), reachable(self.redis_url):
                found = yield from given(chunks)
            if found is None:
                return None
            ids, served = found
            if not is_noted:
                self._note(call, served)
                is_noted = True
            for task_id in ids:
                yield Give(task_id)

    def map(
        self,
        pipeline: str,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        in_flight: int = IN_FLIGHT,
        ordered: bool = True,
        return_exceptions: bool = False,
        params: Mapping[str, Any] | Iterable[Mapping[str, Any] | None] | None = None,
        priority: int = keys.JOB_PRIORITY,
        expires_s: float | None = None,
        deadline_s: float | None = None,
        timeout_s: float | None = None,
        fair_key: str | None = None,
        headers: Mapping[str, Any] | None = None,
        check: bool = True,
    ) -> Stream[Any]:
        """Yields the result of each input: as :func:`map` does, with many inputs under way at once.

        ``inputs`` may have no end: memory holds no more than ``in_flight`` of them, and their results. Inputs are read
        when the caller asks for results and fewer are under way; so while an input takes long to come, no result is
        yielded. A caller that stops early leaves the tasks that are under way, which go on.

        Args:
            pipeline: the pipeline's name.
            inputs: any iterable; in an AsyncClient an asynchronous one, too.
            in_flight: most tasks that are queued or whose results were not yielded yet.
            ordered: whether results come in the order of the inputs; otherwise as the tasks end.
            return_exceptions: whether the error of a task that failed is yielded in the place of its result;
                otherwise it is raised, which ends the iteration.
            params: for all tasks, or an iterable with those of each.
            priority: as for :meth:`submit_many`, 6 by default.
            expires_s: this and the others are as for :meth:`submit`.
            deadline_s: see there.
            timeout_s: see there.
            fair_key: see there.
            headers: see there.
            check: see there.

        Raises:
            TaskFailedError: a task failed; its ``status`` says which one.
            ReadError: as :meth:`result` raises.
            SubmitError: as :meth:`submit_many` raises, after the results of the inputs before.
        """
        given = locals()
        with submit_errors(), reachable(self.redis_url):
            in_flight = checks.in_flight(in_flight, IN_FLIGHT_MOST)
            ordered = checks.flag("ordered", ordered)
            return_exceptions = checks.flag("return_exceptions", return_exceptions)
            tasks, fed = wanted.many(inputs, params)
            call = wanted.call(given, is_many=True)
        return self._map(call, tasks, fed, in_flight, is_ordered=ordered, gives_errors=return_exceptions)

    def _map(
        self,
        call: Call,
        tasks: Iterator[Wanted],
        fed: Fed | None,
        in_flight: int,
        *,
        is_ordered: bool,
        gives_errors: bool,
    ) -> Stream[Any]:
        # In the order of the inputs: the tasks that were submitted and not handed out.
        window = deque[str]()
        ended: dict[str, TaskStatus] = {}
        under_way, is_over, refused = 0, False, None
        wait = Wait(self.status_many, (), None)
        chunks = self._submissions.chunks(call, tasks, fed, lambda: in_flight - under_way, SLOW_S)
        is_noted = False
        while True:
            # Not for each single result, since a chunk takes some round trips.
            if not is_over and (under_way == 0 or in_flight - under_way >= in_flight // 4):
                try:
                    with submit_errors(), reachable(self.redis_url):
                        found = yield from given(chunks)
                except PipeqError as error:
                    # What was submitted before is handed out first.
                    found, refused = None, error
                if found is None:
                    is_over = True
                else:
                    ids, served = found
                    if not is_noted:
                        self._note(call, served)
                        is_noted = True
                    under_way += len(ids)
                    window += ids if is_ordered else ()
                    wait.add(ids)
            if not under_way:
                if refused is not None:
                    raise refused
                if is_over:
                    return None
                continue
            has_room = not is_over and in_flight - under_way >= max(1, in_flight // 4)
            statuses = yield from wait.some(0.0 if has_room else None)
            if is_ordered:
                ended.update((status.id, status) for status in statuses)
                statuses = []
                while window and (status := ended.pop(window[0], None)) is not None:
                    window.popleft()
                    statuses.append(status)
            for status in statuses:
                under_way -= 1
                try:
                    yield Give((yield from self.output(status)))
                except PipeqError as error:
                    if not gives_errors:
                        raise
                    yield Give(error)

    def _note(self, call: Call, served: Served | None) -> None:
        if call.output is not None:
            self._allow.remember(call.output)
        if served is not None and served.live == 0 and call.check:
            says = (
                f"a worker is loading {call.pipeline!r} now: the tasks wait on their queue until it is ready"
                if served.loading
                else f"no worker serves {call.pipeline!r} now: the tasks wait on their queue until one does"
            )
            warn(says, NoLiveWorkerWarning)
