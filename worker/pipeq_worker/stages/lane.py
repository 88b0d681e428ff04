"""LANE: what the tasks of one pipeline share only with each other: the threads before the device, and a byte budget.

A task with many items is prepared in slices, and other tasks run between them: a producer who sends ten thousand labels
waits longer, and other producers do not wait for him. A slice continues on the thread of the last one, because
preparation that has begun holds that thread's tokenizer.
"""

from __future__ import annotations

from pipeq_worker.stages.budget import Budget
from pipeq_worker.stages.readers import Readers
from pipeq_worker.stages.threads import Loop, Threads

#: Threads that unpack the inputs of messages. It takes little time, but may wait for room in the budget.
UNPACK_THREADS = 2


class Lane:
    """The threads and the budget of one pipeline. Threads start when they are first needed.

    Args:
        name: of the pipeline.
        max_bytes: of inputs that its tasks may hold.
        fetch_threads: most threads that read references.
        prepare_threads: most threads that decode and prepare.
        loop: prepares what is short, if there is one.
    """

    def __init__(
        self, name: str, max_bytes: int, fetch_threads: int, prepare_threads: int, loop: Loop | None = None
    ) -> None:
        self.name = name
        self.budget = Budget(max_bytes)
        self.reading = Readers(fetch_threads, f"fetch-{name}")
        #: For inputs that came with their messages: they must not wait behind a store that is slow, or away.
        self.unpacking = Readers(UNPACK_THREADS, f"unpack-{name}")
        self.preparing = Threads(prepare_threads, f"prepare-{name}", loop=loop)

    def close(self) -> None:
        """Discards queued work, and lets threads that wait for room through, so that they end."""
        self.budget.close()
        self.preparing.close()
        self.reading.close()
        self.unpacking.close()
