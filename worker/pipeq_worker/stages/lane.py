"""LANE: what the tasks of one pipeline share only with each other: the threads before the device, and a byte budget.

A task with many items is prepared in slices, and other tasks run between them: a producer who sends ten thousand labels
waits longer, and other producers do not wait for him. A slice continues on the thread of the last one, because
preparation that has begun holds that thread's tokenizer.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pipeq_worker.stages.budget import Budget
from pipeq_worker.stages.threads import Loop, Threads


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
        self.fetching = ThreadPoolExecutor(fetch_threads, f"fetch-{name}")
        self.preparing = Threads(prepare_threads, f"prepare-{name}", loop=loop)

    def close(self) -> None:
        """Discards queued work, and lets threads that wait for room through, so that they end."""
        self.budget.close()
        self.preparing.close()
        self.fetching.shutdown(wait=False, cancel_futures=True)
