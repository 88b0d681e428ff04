"""Runs pipelines of transformers: their warm-up, and the steps that the stages call (see models/pipeline.py)."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from jinja2 import TemplateError
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.status import ModelInfo

from pipeq_worker.media import picture_memory
from pipeq_worker.models import finite, scaling, stopping, together, word_lengths
from pipeq_worker.models.call import SOLO, Call
from pipeq_worker.models.calls import Calls
from pipeq_worker.models.continuous import ContinuousStream
from pipeq_worker.models.copies import Copies
from pipeq_worker.models.faults import is_out_of_memory
from pipeq_worker.models.foreseen import Foreseen
from pipeq_worker.models.known_sample import KnownSample
from pipeq_worker.models.model_state import ModelState
from pipeq_worker.models.params.accepted import Accepted
from pipeq_worker.models.pipeline import BatchLimits, Pipeline, Prepared
from pipeq_worker.models.quirks.base import Quirks
from pipeq_worker.models.quirks.generation import Generates
from pipeq_worker.models.quirks.vision import image_processor
from pipeq_worker.models.running import AllStoppedError, Running
from pipeq_worker.models.samples import sample_input
from pipeq_worker.models.sizes import row_bytes, tensor_bytes
from pipeq_worker.models.task_type import Media, TaskType
from pipeq_worker.settings.sections import ParamLimits, PipelineSettings

logger = logging.getLogger(__name__)

#: Most padded cost of a batch, in tokens, until measured passes choose it. A CPU is no faster beyond 1024, and padding
#: grows (docs/decisions/batching.md); a GPU needs more.
DEFAULT_COST = {"cpu": 1024}
DEFAULT_COST_ACCELERATOR = 32768
#: Cost of launching a forward pass, in tokens, until it is measured (MiniLM on one CPU thread: 6 ms, beside 0.2 ms for
#: each token).
LAUNCH_COST = {"cpu": 64}
LAUNCH_COST_ACCELERATOR = 4096


class TransformersPipeline(Pipeline):
    """A transformers pipeline, split into the steps that the stages call."""

    stream: ContinuousStream | None = None

    def __init__(
        self,
        name: str,
        task_type: TaskType,
        settings: PipelineSettings,
        pipe: transformers.Pipeline,
        limits: ParamLimits | None = None,
    ) -> None:
        self.name = name
        self.task_type = task_type
        self.settings = settings
        limits = limits or ParamLimits()
        self._max_scaled_pixels, self._max_labels = limits.max_scaled_pixels, limits.max_labels
        self.quirks = self._quirks_of(pipe)
        self.accepted = Accepted(task_type, pipe, limits)
        self.parameters = tuple(sorted(self.accepted.rules))
        self.device = torch.device(pipe.device)
        self.model = ModelInfo(
            id=str(settings.model or pipe.model.name_or_path),
            revision=settings.revision,
            dtype=str(pipe.model.dtype).removeprefix("torch."),
            device=_devices(pipe),
        )
        self.limits = BatchLimits(
            max_size=settings.max_batch_size,
            max_cost=DEFAULT_COST.get(self.device.type, DEFAULT_COST_ACCELERATOR)
            if settings.max_batch_cost == "auto"
            else settings.max_batch_cost,
            launch_cost=LAUNCH_COST.get(self.device.type, LAUNCH_COST_ACCELERATOR),
            max_wait_s=settings.max_wait_ms / 1000,
            is_auto=settings.max_batch_cost == "auto",
            weight=settings.weight,
        )
        extractor = pipe.feature_extractor
        self.sampling_rate = getattr(extractor, "sampling_rate", self.sampling_rate)
        self._pipe, self._copies = pipe, Copies(pipe)
        self.calls = self._calls_of(settings.params)
        self.settings = settings.model_copy(update={"params": self.calls.own})
        self.prepares_together = together.is_able(pipe, self.quirks)
        # Outputs repeat the parts of chats, and mask-generation reads its picture in the forward pass.
        self.lets_go_of_inputs = Media.CHAT not in task_type.fields.values() and not task_type.prepares_with_model
        finite.hook(pipe.model)
        stopping.hook(pipe.model)
        #: Loads the pipeline again, for :meth:`recover`.
        self.rebuild: Callable[[], transformers.Pipeline] | None = None
        self._state: ModelState | None = None
        self._known: KnownSample | None = None

    def _quirks_of(self, pipe: transformers.Pipeline) -> Quirks:
        made = self.task_type.quirks()(pipe)
        made.max_scaled_pixels, made.max_labels = self._max_scaled_pixels, self._max_labels
        made.bound(pipe, self.settings.max_input_tokens, self.settings.max_item_bytes)
        return made

    def _calls_of(self, own: Mapping[str, Any]) -> Calls:
        return Calls(self.name, self.task_type, self.accepted, self.quirks, self._copies, own)

    def pipe(self) -> transformers.Pipeline:
        """The calling thread's copy of the pipeline."""
        return self._copies.mine()

    def merge(self, params: Mapping[str, Any]) -> Call:
        return self.calls.merge(params, self._check_stream)

    def _check_stream(self, call: Call) -> None:
        if self.stream is not None:
            self.stream.check(call.forward)

    def call(self, params: Mapping[str, Any]) -> Call:
        """See :meth:`.calls.Calls.call`."""
        return self.calls.call(params)

    def prepare(self, value: Any, call: Call) -> Iterator[Prepared]:
        rows = self.quirks.rows(call.forward)
        for features in self.preprocess(value, call):
            own = self.quirks.group(features, call.forward)
            group = (self.name, call.key, uuid.uuid4().hex if own == SOLO else own)
            yield Prepared(features, group, rows * self.quirks.cost(features), row_bytes(features))

    def prepare_together(self, values: Sequence[Any], call: Call) -> list[Prepared] | None:
        if not (self.prepares_together and together.takes(call.preprocess) and all(type(one) is str for one in values)):
            return None
        try:
            rows = together.features(self.pipe().tokenizer, values, call.handed_out().preprocess)
            return None if rows is None else self._prepared(rows, call)
        except BaseException as error:
            if not isinstance(error, Exception) and not _is_panic(error):
                raise
            self._put_back(self._copies.restore())
            return None  # alone, each of them gives its row, or its own error

    def _prepared(self, rows: Sequence[Mapping[str, Any]], call: Call) -> list[Prepared] | None:
        """Rows as :meth:`prepare` yields them. All else follows from their shapes, of which most texts share one."""
        made: dict[tuple[Any, ...], Prepared] = {}
        found = []
        for row in rows:
            shape = tuple(row[name].shape for name in row)
            if (like := made.get(shape)) is None:
                self.quirks.check_features(self.pipe(), row, call.forward)
                if (own := self.quirks.group(row, call.forward)) == SOLO:
                    return None
                group = (self.name, call.key, own)
                cost = self.quirks.rows(call.forward) * self.quirks.cost(row)
                made[shape] = like = Prepared(row, group, cost, row_bytes(row))
            found.append(Prepared(row, like.group, like.cost, like.nbytes))
        return found

    def preprocess(self, value: Any, call: Call) -> Iterator[Mapping[str, Any]]:
        """Yields the features of one decoded input's items: one item, or one for each chunk."""
        pipe, call = self.pipe(), call.handed_out()
        self._check_chat(pipe, value)
        word_lengths.check(pipe.tokenizer, value)
        try:
            scaling.check(image_processor(pipe), scaling.sizes(value), call.preprocess, self._max_scaled_pixels)
            for features in self.quirks.preprocess(pipe, value, call):
                self.quirks.check_features(pipe, features, call.forward)
                yield features
        except PipeqError:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and not _is_panic(error):
                raise
            self._put_back(self._copies.restore())
            if isinstance(error, TemplateError):
                sentence = f"text is a chat that the model's template refuses: {error}"
                raise PipeqError(ErrorCode.INVALID_INPUT, sentence) from error
            raise PipeqError(
                ErrorCode.INVALID_INPUT, f"{self.name!r} cannot prepare {_seen(value)}: {type(error).__name__}: {error}"
            ) from error

    def foresee(self, value: Any, call: Call) -> Foreseen:
        pipe = self.pipe()
        word_lengths.check(pipe.tokenizer, value)
        return self.quirks.foresee(pipe, value, call)

    def output_bytes(self, output: Any, call: Call) -> int:
        return tensor_bytes(output) * self.quirks.json_factor(call)

    def _check_chat(self, pipe: transformers.Pipeline, value: Any) -> None:
        """Refuses a chat if the model has no template for chats."""
        main = self.task_type.main
        text = value.get(main) if isinstance(value, dict) else value
        if main is None or self.task_type.fields[main] is not Media.CHAT or not isinstance(text, list):
            return
        if not any(getattr(part, "chat_template", None) for part in (pipe.processor, pipe.tokenizer)):
            raise PipeqError(
                ErrorCode.INVALID_INPUT, f"{main} is a chat, and this model has no chat template: send plain text"
            )

    def forward(self, features: list[Mapping[str, Any]], call: Call, running: Running | None = None) -> list[Any]:
        self.quirks.rope.forget()
        try:
            with stopping.watched(running):
                outputs = self._forward(features, call)
            if running is not None:
                running.check()  # ``generate`` itself ends if all of its rows are over
        except AllStoppedError:
            if self._state is not None:  # a pass that was left in its middle did nothing wrong
                self._state.restore()
            raise
        except Exception:
            self._put_all_back()
            raise
        if self._state is not None:
            self._state.restore_configs()
        return outputs

    def _put_all_back(self) -> None:
        if self._state is not None:
            self._put_back(self._state.restore() + self._copies.restore())

    def _forward(self, features: list[Mapping[str, Any]], call: Call) -> list[Any]:
        pipe, call = self.pipe(), call.handed_out()
        with finite.watched(len(features)) as watch:
            try:
                outputs = self.quirks.forward(pipe, features, call)
            except (RuntimeError, ValueError) as error:
                # Sampling, for instance, cannot draw from NaN, and raises an error of torch. Subclasses of these
                # errors, and faults of the device, are not handled here.
                judged = type(error) in (RuntimeError, ValueError) and "CUDA" not in str(error)
                if not judged or len(features) > 1 or not any(watch.bad(raised=True)):
                    raise
                self._put_all_back()
                return [self._not_finite()]
        return self._checked(outputs, features, watch.bad())

    def _checked(self, outputs: list[Any], features: list[Mapping[str, Any]], bad: list[bool]) -> list[Any]:
        """Replaces each output that holds NaN by an error; the other outputs stay."""
        if not any(bad) and finite.are_finite(outputs):
            return outputs
        lengths = [one["input_ids"].shape[-1] if _has_tokens(one) else 0 for one in features]
        left, padded = getattr(self._pipe.tokenizer, "padding_side", "right") == "left", max(lengths)
        for at, (output, own, is_bad) in enumerate(zip(outputs, lengths, bad, strict=True)):
            if is_bad or finite.not_finite(output, own, padded, left=left):
                outputs[at] = self._not_finite()
        return outputs

    def _not_finite(self) -> PipeqError:
        return PipeqError(ErrorCode.INFERENCE_FAILED, f"{self.name!r}: {finite.SENTENCE}")

    def postprocess(self, outputs: list[Any], call: Call) -> Any:
        try:
            return self.quirks.postprocess(self.pipe(), outputs, call.handed_out())
        except Exception as error:
            self._put_back(self._copies.restore())
            raise PipeqError(
                ErrorCode.INFERENCE_FAILED,
                f"{self.name!r} cannot read the model's output: {type(error).__name__}: {error}",
            ) from error

    def alone(self, value: Any, params: Mapping[str, Any]) -> Any:
        """Calls transformers' own pipeline as its users do. This class must give the same answer.

        Args:
            value: one decoded input; it may be changed.
            params: parameters of the call; they may be changed.
        """
        self.quirks.rope.forget()
        return self.quirks.alone(self.pipe(), value, params)

    def result(self, result: Any, value: Any, call: Call) -> Any:
        return self.quirks.result(result, value, call.params)

    def picture_memory(self, call: Call) -> picture_memory.PictureMemory:
        return picture_memory.of(self.task_type.name, self._pipe, call.params)

    def release_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def warm_up(self) -> None:
        """Runs a tiny input through every step, so that the first task does not pay for lazy set-up."""
        value, params = self.sample()
        call = self.calls.over_own(params)
        outputs = [self.forward([features], call)[0] for features in self.preprocess(value, call)]
        error = next((one for one in outputs if isinstance(one, PipeqError)), None)
        if error is not None:
            # Only logged, because some inputs may still be answered.
            logger.warning("%s: warm-up: %s", self.name, error.message, extra={"action": "load"})
            return
        self.postprocess(outputs, call)

    def sample(self) -> tuple[Any, dict[str, Any]]:
        """Returns a tiny input, and parameters for it."""
        return self.quirks.sample(self.pipe()) or (sample_input(self.task_type), {})

    def settle(self) -> None:
        """Records the state of the loaded and warmed-up model, to which it is restored after each pass."""
        self._state = ModelState(self._pipe)
        value, params = self.sample()
        call = self.calls.over_own(params)
        features, half = next(iter(self.preprocess(value, call))), self.model.dtype != "float32"
        try:
            model = self._pipe.model
            known = KnownSample(lambda: self.forward([features], call)[0], model, self.device, half=half)
        except PipeqError:
            return  # NaN, for instance; the warm-up has logged it, and tasks will fail with it
        self._known = known if known.repeats else None
        if self._known is None:
            logger.debug("%s answers its sample differently each time", self.name, extra={"action": "sample"})

    def recover(self) -> None:
        if self._known is None or self.rebuild is None:
            return
        try:
            if self._known.is_known():
                return
            reason = "another answer"
        except Exception as error:
            if is_out_of_memory(error):
                return  # running out of memory says nothing about the model
            reason = f"{type(error).__name__}: {error}"
        logger.error(
            "%s: after a pass that raised, the model's own sample gives %s: loading it anew",
            self.name,
            shown.line(reason),
            extra={"action": "reload", "pipeline": self.name},
        )
        self._load_anew(self.rebuild)

    @property
    def weight_bytes(self) -> int:
        tensors = [one for module in self._modules() for one in (*module.parameters(), *module.buffers())]
        return sum({id(one): one.numel() * one.element_size() for one in tensors}.values())

    @property
    def can_unload(self) -> bool:
        is_spread = getattr(self._pipe.model, "hf_device_map", None) is not None
        needs_them = self.task_type.prepares_with_model or self.stream is not None
        return self.rebuild is not None and not is_spread and not needs_them

    def unload(self) -> None:
        self._state = self._known = None
        for module in self._modules():
            module.to("meta")  # frees the memory, even if something still refers to the model
        self.release_memory()
        self.is_loaded = False

    def reload(self) -> None:
        assert self.rebuild is not None
        self._load_anew(self.rebuild)
        self.is_loaded = True

    def _modules(self) -> list[torch.nn.Module]:
        return [one for one in vars(self._pipe).values() if isinstance(one, torch.nn.Module)]

    def _load_anew(self, rebuild: Callable[[], transformers.Pipeline]) -> None:
        self._state = self._known = None
        with contextlib.suppress(Exception):  # weights that are spread over devices cannot be moved
            self._pipe.model.to("meta")  # frees the memory, even if something still refers to the model
        self.release_memory()
        pipe = rebuild()
        finite.hook(pipe.model)
        stopping.hook(pipe.model)
        made, pads = self._quirks_of(pipe), self.quirks.pads
        made.pads = made.pads and pads
        self._pipe, self.quirks, self.accepted.pipe = pipe, made, pipe
        self._copies = Copies(pipe)
        self.calls = self._calls_of(self.settings.params)
        if self.stream is not None and isinstance(made, Generates):
            self.stream.follow(pipe, made)
        self.warm_up()
        self.settle()

    def _put_back(self, changed: list[str]) -> None:
        if changed:
            logger.warning(
                "%s: put back what a failed call had changed: %s",
                self.name,
                shown.line(", ".join(changed)),
                extra={"action": "restore", "pipeline": self.name},
            )


def _seen(value: Any) -> str:
    """Describes an input for error messages by its size, on which most processors fail without saying so."""
    parts = list(value.values()) if isinstance(value, dict) else [value]
    images = [f"{width} x {height} pixels" for width, height in scaling.sizes(value)]
    sounds = [f"{one.size} samples" for one in parts if isinstance(one, np.ndarray) and one.ndim == 1]
    return f"the input ({', '.join([*images, *sounds][:4])})" if images or sounds else "the input"


def _is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked on this input, for instance a tokenizer whose stride is longer than its chunks.

    Its exception is not an ``Exception``, so that it is not caught by accident; uncaught it would end the thread.
    """
    return type(error).__name__ == "PanicException"


def _devices(pipe: transformers.Pipeline) -> str:
    """The device of a model, or all devices over which accelerate has spread it."""
    spread = getattr(pipe.model, "hf_device_map", None) or {"": pipe.device}
    return ", ".join(dict.fromkeys(_device_name(device) for device in spread.values()))


def _device_name(device: Any) -> str:
    return f"cuda:{device}" if isinstance(device, int) else str(device)


def _has_tokens(features: Mapping[str, Any]) -> bool:
    tokens = features.get("input_ids")
    return isinstance(tokens, torch.Tensor) and tokens.ndim > 1
