"""CONTINUOUS: rows of text-generation in transformers' ContinuousBatchingManager. Before: stages/continuous.py.

    submit() --add_request--> the manager's thread: a forward pass for a token of each row --queue--> thread "collect"
                                                                                                       -> done(output)

The manager keeps the keys and values of all rows in pages of one cache, so rows need no padding, enter as soon as a
place is free, and leave with their last token.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from pipeq.contract.errors import ErrorCode, PipeqError
from transformers import ContinuousBatchingConfig

from pipeq_worker.models import finite
from pipeq_worker.models.call import Call
from pipeq_worker.models.continuous_manager import Manager, can_run_by_rows
from pipeq_worker.models.continuous_params import choice, refused
from pipeq_worker.models.quirks.generation import Generates
from pipeq_worker.models.running import Row
from pipeq_worker.models.sampling import Sampling
from pipeq_worker.models.stream import Done, Outcome, Stream, StreamLostError

#: Where the manager logs.
LOGGER = "ContinuousBatchingLogger"
#: How often rows are asked whether they are still wanted, in seconds; a token takes about as long.
TICK_S = 0.05
#: How long a step may still take when the stream stops, in seconds.
STOP_S = 5.0
#: Most tokens of one step: prompts are read beside the others' next tokens, in pieces of at most this many.
STEP_TOKENS = {"cpu": 256}
STEP_TOKENS_ACCELERATOR = 2048
#: Tokens in a page of the cache: the last page of each row is half empty.
PAGE_TOKENS = {"cpu": 32}
PAGE_TOKENS_ACCELERATOR = 256
#: Bytes of the cache if the settings do not say: on a CPU; elsewhere this share of the free memory.
CACHE_BYTES = 2**30
CACHE_SHARE = 0.5
#: Most tokens that the cache has room for, for each row that runs at a time.
ROW_TOKENS = 4096


@dataclass(eq=False)
class _Inside:
    """A row inside."""

    row: Row
    done: Done
    features: Mapping[str, Any]
    prompt: list[int]


class ContinuousStream(Stream):
    """The stream of a text-generation pipeline.

    Args:
        name: the pipeline's name.
        pipe: the loaded pipeline.
        quirks: its quirks, which know the parameters in force.
        slots: most rows at a time.
        cache_bytes: for the keys and values of all rows; None for a share of what there is.

    Raises:
        SettingsError: the model cannot be run so, or its generation_config.json asks for what this has not.
    """

    def __init__(
        self, name: str, pipe: transformers.Pipeline, quirks: Generates, slots: int, cache_bytes: int | None
    ) -> None:
        self.slots = slots
        #: Whether each row attends to its own tokens alone. The trial takes it back for a model that cannot.
        self.by_rows = can_run_by_rows(pipe.model)
        self._name, self._pipe, self._quirks, self._cache_bytes = name, pipe, quirks, cache_bytes
        self._vocabulary = pipe.model.get_output_embeddings().weight.shape[0]
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._inside: dict[str, _Inside] = {}
        self._bad: set[str] = set()
        self._manager: Any = None
        self._sampling: Sampling | None = None
        self._capacity = 0
        self._moved: tuple[int, float] = (0, 0.0)

    def follow(self, pipe: transformers.Pipeline, quirks: Generates) -> None:
        """Uses a pipeline that was loaded anew, from the next start on."""
        self._pipe, self._quirks = pipe, quirks

    def check(self, forward: Mapping[str, Any]) -> None:
        """Refuses the parameters of a call that continuous batching does not know.

        Raises:
            PipeqError: ``invalid_params``, naming the parameter.
        """
        found = refused(self._quirks.in_force(forward))
        if found is not None:
            name, value = found
            raise PipeqError(
                ErrorCode.INVALID_PARAMS,
                f"parameter {name!r} is {value!r}, and {self._name!r} generates continuously (`continuous = true`), "
                "which has only max_new_tokens, max_length, eos_token_id, do_sample, temperature, top_k and top_p: "
                f"leave {name} out, or use a pipeline without `continuous`",
            )

    def start(self) -> None:
        """Starts the manager's thread, with a new cache."""
        # It tells of its settings at every start, at a level of its own.
        logging.getLogger(LOGGER).setLevel(logging.ERROR)
        model = self._pipe.model
        config = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS.get(model.device.type, PAGE_TOKENS_ACCELERATOR),
            max_batch_tokens=max(self.slots, STEP_TOKENS.get(model.device.type, STEP_TOKENS_ACCELERATOR)),
            max_requests_per_batch=self.slots,
            # With CUDA graphs a row of NaN could not be told from the others (sampling.py).
            use_cuda_graph=False,
            use_async_batching=False,
            max_memory_percent=0.95,
        )
        config.num_blocks = self._blocks(config)
        self._capacity = config.num_blocks * config.page_size
        self._sampling = Sampling(self._vocabulary, self._bad.update)
        manager = Manager(model, config, self._sampling, by_rows=self.by_rows)
        manager.start()
        self._manager = manager
        name = self._name
        threading.Thread(target=self._collect, args=(manager,), name=f"collect-{name}", daemon=True).start()

    def _blocks(self, config: ContinuousBatchingConfig) -> int:
        """Number of pages of the cache."""
        model, most = self._pipe.model, self._cache_bytes
        if most is None:
            most = CACHE_BYTES
            if model.device.type == "cuda":
                most = int(torch.cuda.mem_get_info(model.device)[0] * CACHE_SHARE)
        kept = self._quirks.footprint.kept
        # Beside each token's keys and values, attention has a mask of it for each token of a step, or a copy of those
        # of a layer.
        layers = model.config.get_text_config().num_hidden_layers
        beside = kept / layers if self.by_rows else config.max_batch_tokens * model.dtype.itemsize
        token_bytes = max(1, kept + beside)
        tokens = min(int(most / token_bytes), self.slots * min(self._quirks.limit or ROW_TOKENS, ROW_TOKENS))
        return max(1, tokens // config.page_size)

    def submit(self, features: Mapping[str, Any], call: Call, row: Row, done: Done) -> None:
        """Starts a row, and returns at once. See :meth:`Stream.submit`."""
        in_force, prompt = self._quirks.in_force(call.forward), features["input_ids"][0].tolist()
        if not prompt and (first := in_force.get("bos_token_id")) is not None:
            prompt = [first]
        chosen = choice(in_force, len(prompt))
        reason = self._unfit(len(prompt), chosen.max_new_tokens)
        manager, sampling = self._manager, self._sampling
        if reason is not None or manager is None or sampling is None:
            done(StreamLostError() if reason is None else PipeqError(ErrorCode.INVALID_INPUT, reason))
            return
        row.total = chosen.max_new_tokens
        request = str(next(self._numbers))
        with self._changed:
            if not self._inside:
                self._moved = (manager.current_batch if manager.batch_processor else 0, time.monotonic())
            self._inside[request] = _Inside(row, done, features, prompt)
            self._changed.notify_all()
        manager.add_request(
            prompt,
            request_id=request,
            max_new_tokens=chosen.max_new_tokens,
            eos_token_id=list(chosen.ends) or -1,
            **sampling.arguments(chosen),
        )

    def _unfit(self, prompt: int, new: int) -> str | None:
        """Why a row cannot run, which inside would end all the others, too."""
        if not prompt:
            return "the text is empty, and this model has no token to begin with"
        if new < 1:
            return f"the prompt is {prompt} tokens, which leaves none of max_length to generate"
        for most, whose in (
            (self._quirks.limit, "the model's positions"),
            # Beyond them, the longest row of a step decides how the positions of all its rows are read.
            (self._quirks.rope.limit, "the positions that rows beside each other may have (only without `continuous`)"),
            (self._capacity, "the cache (`max_cache_bytes`)"),
        ):
            if most is not None and prompt + new > most:
                return (
                    f"the prompt is {prompt} tokens, with max_new_tokens={new} beyond the {most} of {whose}: set "
                    f"max_new_tokens to {max(most - prompt, 0)} at most, or shorten the prompt"
                )
        return None

    def still_s(self) -> float:
        """For how long rows have been inside without a step, in seconds."""
        with self._changed:
            manager, now = self._manager, time.monotonic()
            steps = getattr(manager, "current_batch", 0)
            if not self._inside or steps != self._moved[0]:
                self._moved = steps, now
            return now - self._moved[1]

    def stop(self) -> None:
        """Ends the manager. Rows inside get a :class:`StreamLostError`."""
        manager, self._manager = self._manager, None
        if manager is not None:
            _end(manager)
        self._lose(None)

    # -- the thread "collect" -----------------------------------------------------------------------------------------

    def _collect(self, manager: Any) -> None:
        while manager is self._manager:
            with self._changed:
                if not self._changed.wait_for(lambda: self._inside or manager is not self._manager, 1.0):
                    continue
            result = manager.get_result(timeout=TICK_S)
            while result is not None and not self._is_broken(manager):
                self._end_row(result)
                result = None if manager.output_router.output_queue.empty() else manager.get_result(timeout=0)
            if self._is_broken(manager):
                if manager is self._manager:
                    self._manager = None
                    cause = manager.background_thread_status.fatal_error
                    _end(manager)
                    self._lose(cause or ArithmeticError(finite.SENTENCE))
                return
            self._tick(manager)

    def _is_broken(self, manager: Any) -> bool:
        """Whether the rows inside have to start again: the manager's thread has failed, or there is NaN in several.

        Where attention takes all rows at once, NaN among the values of one row reaches the others: a weight of 0 for a
        value of NaN is NaN, too. Where each row attends alone, NaN in a single row is its own.
        """
        bad = sum(request in self._inside for request in tuple(self._bad))
        is_spoilt = bad > int(self.by_rows) and len(self._inside) > 1
        return is_spoilt or not manager.is_running() or manager.background_thread_status.local_status != 0

    def _end_row(self, result: Any) -> None:
        with self._changed:
            inside = self._inside.pop(result.request_id, None)
        if inside is None:
            return  # stopped meanwhile
        inside.row.done = len(result.generated_tokens)
        outcome: Outcome
        if result.request_id in self._bad:
            self._bad.discard(result.request_id)
            outcome = PipeqError(ErrorCode.INFERENCE_FAILED, f"{self._name!r}: {finite.SENTENCE}")
        elif result.error is not None:
            outcome = PipeqError(ErrorCode.INFERENCE_FAILED, f"{self._name!r} failed on this input: {result.error}")
        else:
            tokens = torch.tensor([[inside.prompt + list(result.generated_tokens)]])
            given = inside.features["input_ids"]
            outcome = {
                "generated_sequence": tokens,
                "input_ids": given if given.shape[1] else None,
                "prompt_text": inside.features["prompt_text"],
            }
        inside.done(outcome)

    def _tick(self, manager: Any) -> None:
        """Ends rows that nobody wants any more, and counts the tokens of the others."""
        with self._changed:
            # A row whose end is under way may still be found bad once more.
            self._bad.intersection_update(self._inside)
            over = {request: one for request, one in self._inside.items() if one.row.is_over or request in self._bad}
            for request in over:
                if request not in self._bad:
                    del self._inside[request]
        active = manager.batch_processor.scheduler.active_requests if manager.batch_processor else {}
        for request, inside in list(self._inside.items()):
            if (state := active.get(request)) is not None:
                inside.row.done = state.generated_len()
        for request, inside in over.items():
            manager.cancel_request(request)
            if request in self._bad:
                self._end_row(transformers.generation.continuous_batching.requests.GenerationOutput(request))
            else:
                inside.done(None)

    def _lose(self, cause: BaseException | None) -> None:
        with self._changed:
            lost, self._inside = list(self._inside.values()), {}
            self._bad.clear()
            self._changed.notify_all()
        for inside in lost:
            error = StreamLostError(str(cause))
            error.__cause__ = cause
            inside.done(error)


def _end(manager: Any) -> None:
    """Ends a manager's thread, frees its cache, and gives the model its attention back."""
    with contextlib.suppress(Exception):
        manager.stop(block=True, timeout=STOP_S, hard_stop=True)
    with contextlib.suppress(Exception):
        manager.destroy()
