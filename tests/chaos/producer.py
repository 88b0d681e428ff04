"""A producer in a process of its own, for the soak: submits, cancels and waits, and notes what it does in a ledger.

    python -m tests.chaos.producer REDIS_URL SEED LEDGER

The ledger is a file of JSON lines. What is to be submitted is noted before, what was accepted after: whoever kills the
process in between leaves a task of which nobody knows whether it was accepted, but not that there might be one.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pipeq import Client, PipeqError, Ref, WaitTimeoutError

#: Tasks of one producer that have not ended, at most.
OPEN = 120
#: Number of different inputs of each pipeline.
INPUTS = 12
#: Pipeline -> share of the tasks.
SHARES = {"constant": 8, "text-classification": 5, "image-classification": 4, "text-generation": 2}
#: A bucket's prefix for inputs, and one for results.
STORED, RESULTS = "s3://inputs/soak/", "s3://results/soak/"
#: What is no image: its tasks fail, each time.
BROKEN = -1
#: Seconds in which an idempotency key is used, by all producers.
KEY_S = 2.0


def task_of(pipeline: str, number: int) -> tuple[Any, dict[str, Any] | None]:
    """Input and parameters: always the same for a pipeline and a number."""
    if pipeline == "image-classification":
        return Ref(f"{STORED}{'broken' if number == BROKEN else number}.png"), None
    if pipeline == "text-generation":
        return f"the fox jumps {number} times", {"max_new_tokens": 4 + number, "do_sample": False}
    if pipeline == "text-classification":
        return f"the fox jumps {number} times " + "over the lazy dog " * number, None
    return number, {"seconds": number % 4 * 0.01}


class Producer:
    """See the module."""

    def __init__(self, url: str, seed: int, ledger: str) -> None:
        self._client = Client(url, allow=RESULTS)
        self._rng = random.Random(seed)
        self._seed, self._count = seed, 0
        self._ledger = open(ledger, "a", buffering=1)  # noqa: SIM115 - it ends with the process
        self._open: deque[str] = deque()
        self.is_stopping = False

    def run(self) -> None:
        while not self.is_stopping:
            try:
                self._step()
            except PipeqError as error:
                if not error.retryable:
                    self._note(what="error", error=str(error))
                    raise
                time.sleep(0.1)
        self._note(what="end")

    def _note(self, **fields: Any) -> None:
        self._ledger.write(json.dumps(fields) + "\n")

    def _step(self) -> None:
        if len(self._open) >= OPEN:
            ended = [one.is_final for one in self._client.status_many(self._open)]
            self._open = deque(one for one, is_over in zip(self._open, ended, strict=True) if not is_over)
            if len(self._open) >= OPEN:
                time.sleep(0.2)
                return
        pipeline = self._rng.choices(list(SHARES), list(SHARES.values()))[0]
        match self._rng.randrange(20):
            case 0 | 1:
                self._submit_by_key(pipeline)
            case 2 if self._open:
                some = self._rng.sample(list(self._open), min(len(self._open), self._rng.randrange(1, 4)))
                self._note(what="cancel", ids=some)
                self._client.cancel_many(some)
            case 3 if self._open:
                with suppress(WaitTimeoutError):
                    self._client.wait(self._open[0], timeout_s=0.5)
            case 4:
                self._submit(pipeline, [self._number()], kind="expires", expires_s=self._rng.choice([0.01, 1.0]))
            case 5:
                self._submit(pipeline, [self._number()], delay_s=self._rng.random() * 2)
            case 6:
                self._submit("image-classification", [BROKEN], kind="broken")
            case 7:
                self._submit("constant", [self._number()], output=RESULTS)
            case 8 | 9:
                self._submit(pipeline, [self._number()], priority=6, fair_key=f"tenant{self._rng.randrange(3)}")
            case _:
                self._submit(pipeline, [self._number() for _ in range(self._rng.choice([1, 1, 4, 12]))])
        time.sleep(self._rng.random() * 0.05)

    def _number(self) -> int:
        return self._rng.randrange(INPUTS)

    def _submit(self, pipeline: str, numbers: Sequence[int], kind: str = "plain", **more: Any) -> None:
        ids = []
        for _ in numbers:
            self._count += 1
            ids.append(f"soak-{self._seed}-{self._count}")
        tasks = [task_of(pipeline, number) for number in numbers]
        self._note(what="want", pipeline=pipeline, kind=kind, ids=ids, numbers=numbers)
        if len(ids) == 1:
            (one, params), (task_id,) = tasks[0], ids
            self._client.submit(pipeline, one, params=params, task_id=task_id, **more)
        else:
            params_of_each = [params for _, params in tasks]
            self._client.submit_many(
                pipeline, [one for one, _ in tasks], params=params_of_each, task_ids=ids, **more, priority=0
            )
        self._note(what="ok", ids=ids)
        self._open += ids

    def _submit_by_key(self, pipeline: str) -> None:
        """All producers use the same keys at the same time."""
        number = int(time.time() / KEY_S) % INPUTS
        key = f"{pipeline}-{int(time.time() / KEY_S)}"
        one, params = task_of(pipeline, number)
        task_id = self._client.submit(pipeline, one, params=params, idempotency_key=key)
        self._note(what="key", key=key, pipeline=pipeline, ids=[task_id], numbers=[number])


def main() -> None:
    warnings.simplefilter("ignore")
    url, seed, ledger = sys.argv[1:]
    producer = Producer(url, int(seed), ledger)

    def stop(*_: object) -> None:
        producer.is_stopping = True

    signal.signal(signal.SIGTERM, stop)
    producer.run()


if __name__ == "__main__":
    main()
