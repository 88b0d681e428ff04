"""Runs pipelines of transformers: their warm-up, and the steps that the stages call (see models/pipeline.py)."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from jinja2 import TemplateError
from PIL import Image
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.status import ModelInfo

from pipeq_worker.media import picture_memory
from pipeq_worker.models import finite, scaling, stopping, together, word_lengths
from pipeq_worker.models.call import SOLO, Call
from pipeq_worker.models.continuous import ContinuousStream
from pipeq_worker.models.faults import is_out_of_memory
from pipeq_worker.models.foreseen import Foreseen
from pipeq_worker.models.known_sample import KnownSample
from pipeq_worker.models.model_state import ModelState, PartsState
from pipeq_worker.models.params.accepted import Accepted
from pipeq_worker.models.pipeline import BatchLimits, Pipeline, Prepared
from pipeq_worker.models.quirks.base import Quirks
from pipeq_worker.models.quirks.generation import Generates
from pipeq_worker.models.quirks.vision import image_processor, is_labels, picture
from pipeq_worker.models.running import AllStoppedError, Running
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
#: Estimate of what an item's Python objects take in addition to its tensors, in bytes.
OBJECT_BYTES = 4096
#: Calls with different parameters that are remembered, and the longest parameters (as JSON) that are.
CALLS, MOST_KEY = 256, 1024
#: Parts of a pipeline that keep state between calls, so that each thread needs its own copy.
_PARTS = ("tokenizer", "feature_extractor", "image_processor", "video_processor", "processor")


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
            revision=settings.revision or getattr(pipe.model.config, "_commit_hash", None),
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
        self._pipe = pipe
        self.prepares_together = together.is_able(pipe, self.quirks)
        # Outputs repeat the parts of chats, and mask-generation reads its picture in the forward pass.
        self.lets_go_of_inputs = Media.CHAT not in task_type.fields.values() and not task_type.prepares_with_model
        finite.hook(pipe.model)
        stopping.hook(pipe.model)
        self._local = threading.local()
        self._copying = threading.Lock()
        #: Parameters of a task, as JSON -> its call.
        self._calls: dict[str, Call] = {}
        #: Loads the pipeline again, for :meth:`recover`.
        self.rebuild: Callable[[], transformers.Pipeline] | None = None
        self._state: ModelState | None = None
        self._known: KnownSample | None = None
        self.settings = settings.model_copy(update={"params": self._own(settings.params)})

    def _quirks_of(self, pipe: transformers.Pipeline) -> Quirks:
        made = self.task_type.quirks()(pipe)
        made.max_scaled_pixels, made.max_labels = self._max_scaled_pixels, self._max_labels
        made.bound(pipe, self.settings.max_input_tokens, self.settings.max_item_bytes)
        return made

    def pipe(self) -> transformers.Pipeline:
        """The calling thread's copy of the pipeline: it has its own tokenizer and processors, and shares the model.

        A fast tokenizer that is shared by threads with different truncation returns wrong lengths without an error.
        """
        own = getattr(self._local, "pipe", None)
        if own is None:
            with self._copying:
                own = copy.copy(self._pipe)
                for part in _PARTS:
                    if hasattr(own, part):
                        setattr(own, part, copy.deepcopy(getattr(self._pipe, part)))
            self._local.pipe = own
            parts = (getattr(own, name, None) for name in _PARTS)
            self._local.parts = PartsState([part for part in parts if part is not None])
        return own

    def merge(self, params: Mapping[str, Any]) -> Call:
        try:
            key = json.dumps(params)
        except (TypeError, ValueError):  # objects and endless numbers, which no message can hold
            return self._merge(params)
        if len(key) > MOST_KEY:
            return self._merge(params)
        if (call := self._calls.get(key)) is None:
            call = self._merge(params)
            if len(self._calls) >= CALLS:
                self._calls.clear()
            self._calls[key] = call
        return call

    def _merge(self, params: Mapping[str, Any]) -> Call:
        merged = overlaid(self.settings.params, self.accepted.check(params, self.name))
        merged = {name: value for name, value in merged.items() if value is not None or self._means_all(name)}
        for name, example in self.task_type.required:
            if not is_labels(merged.get(name)):
                raise PipeqError(
                    ErrorCode.INVALID_PARAMS,
                    f"{self.task_type.name} needs the parameter {name}, for instance {example}",
                )
        self.accepted.check_together(merged, self.name)
        call = self.call(merged)
        if self.stream is not None:
            self.stream.check(call.forward)
        return call

    def _means_all(self, name: str) -> bool:
        """Whether null is a value of its own; for all other parameters it means transformers' default."""
        return name == "top_k" and self.task_type.name == "text-classification"

    def call(self, params: Mapping[str, Any]) -> Call:
        """Sorts parameters by the step that uses them, as ``pipe(x, **params)`` would.

        Args:
            params: checked, and merged over the pipeline's own, as in :meth:`merge`.

        Raises:
            PipeqError: ``invalid_params``, with transformers' own message.
        """
        pipe = self.pipe()
        try:
            # A copy, because several pipelines change the dictionaries that they are given.
            mine = self.quirks.call_params(copy.deepcopy(dict(params)))
            preprocess, forward, postprocess = pipe._sanitize_parameters(**mine)
        except (ValueError, TypeError, KeyError) as error:
            raise PipeqError(ErrorCode.INVALID_PARAMS, f"{self.name!r} refuses the parameters: {error}") from error
        forward = {**pipe._forward_params, **forward}
        alike = [params.get(name) for name in self.task_type.group_by]
        return Call(
            params,
            {**pipe._preprocess_params, **preprocess},
            forward,
            {**pipe._postprocess_params, **postprocess},
            key=json.dumps([forward, *alike], sort_keys=True, default=lambda value: type(value).__name__),
        )

    def prepare(self, value: Any, call: Call) -> Iterator[Prepared]:
        rows = self.quirks.rows(call.forward)
        for features in self.preprocess(value, call):
            own = self.quirks.group(features, call.forward)
            group = (self.name, call.key, uuid.uuid4().hex if own == SOLO else own)
            yield Prepared(features, group, rows * self.quirks.cost(features), _nbytes(features))

    def prepare_together(self, values: Sequence[Any], call: Call) -> list[Prepared] | None:
        if not (self.prepares_together and together.takes(call.preprocess) and all(type(one) is str for one in values)):
            return None
        try:
            rows = together.features(self.pipe().tokenizer, values, call.handed_out().preprocess)
            return None if rows is None else self._prepared(rows, call)
        except BaseException as error:
            if not isinstance(error, Exception) and not _is_panic(error):
                raise
            self._put_back(self._restore_parts())
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
                made[shape] = like = Prepared(row, group, cost, _nbytes(row))
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
            self._put_back(self._restore_parts())
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
            self._put_back(self._state.restore() + self._restore_parts())

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
            self._put_back(self._restore_parts())
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

    def settle(self) -> None:
        """Records the state of the loaded and warmed-up model, to which it is restored after each pass."""
        self._state = ModelState(self._pipe)
        value, params = sample_of(self)
        call = self.call(overlaid(self.settings.params, params))
        features, half = next(iter(self.preprocess(value, call))), self.model.dtype != "float32"
        try:
            known = KnownSample(lambda: self.forward([features], call)[0], self.device, half=half)
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
        self._local = threading.local()
        self._calls.clear()
        if self.stream is not None and isinstance(made, Generates):
            self.stream.follow(pipe, made)
        warm_up(self)
        self.settle()

    def _restore_parts(self) -> list[str]:
        parts: PartsState | None = getattr(self._local, "parts", None)
        return [] if parts is None else parts.restore()

    def _put_back(self, changed: list[str]) -> None:
        if changed:
            logger.warning(
                "%s: put back what a failed call had changed: %s",
                self.name,
                shown.line(", ".join(changed)),
                extra={"action": "restore", "pipeline": self.name},
            )

    def _own(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Checks the settings' own parameters. A required one may be missing, because a task may still give it."""
        checked = self.accepted.check(params, self.name)
        checked = {name: value for name, value in checked.items() if value is not None or self._means_all(name)}
        self.accepted.check_together(checked, self.name)
        if checked:
            self.call(checked)
        return checked


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


def warm_up(pipeline: TransformersPipeline) -> None:
    """Runs a tiny input through every step, so that the first task does not pay for lazy set-up."""
    value, params = sample_of(pipeline)
    call = pipeline.call(overlaid(pipeline.settings.params, params))
    outputs = [pipeline.forward([features], call)[0] for features in pipeline.preprocess(value, call)]
    error = next((one for one in outputs if isinstance(one, PipeqError)), None)
    if error is not None:
        # Only logged, because some inputs may still be answered.
        logger.warning("%s: warm-up: %s", pipeline.name, error.message, extra={"action": "load"})
        return
    pipeline.postprocess(outputs, call)


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merges a pipeline's own parameters with a task's, which win, also if only one of them uses ``generate_kwargs``.

    transformers refuses a parameter of ``generate`` that is given in both places.
    """
    merged = {**below, **above}
    ours, theirs = below.get("generate_kwargs"), above.get("generate_kwargs")
    if ours and theirs is None and "generate_kwargs" in merged:
        merged["generate_kwargs"] = {name: value for name, value in ours.items() if name not in above}
    for name in theirs or ():
        if name not in above:
            merged.pop(name, None)
    return merged


def sample_of(pipeline: TransformersPipeline) -> tuple[Any, dict[str, Any]]:
    """Returns a tiny input of a pipeline, and parameters for it."""
    return pipeline.quirks.sample(pipeline.pipe()) or (_sample(pipeline.task_type), {})


def _devices(pipe: transformers.Pipeline) -> str:
    """The device of a model, or all devices over which accelerate has spread it."""
    spread = getattr(pipe.model, "hf_device_map", None) or {"": pipe.device}
    return ", ".join(dict.fromkeys(_device_name(device) for device in spread.values()))


def _device_name(device: Any) -> str:
    return f"cuda:{device}" if isinstance(device, int) else str(device)


def _has_tokens(features: Mapping[str, Any]) -> bool:
    tokens = features.get("input_ids")
    return isinstance(tokens, torch.Tensor) and tokens.ndim > 1


def _nbytes(features: Mapping[str, Any]) -> int:
    tensors = sum(value.nbytes for value in features.values() if isinstance(value, torch.Tensor))
    images = sum(value.width * value.height * 3 for value in features.values() if isinstance(value, Image.Image))
    return tensors + images + OBJECT_BYTES


def tensor_bytes(output: Any) -> int:
    """Bytes of all tensors and arrays in an output, at any depth."""
    if isinstance(output, torch.Tensor | np.ndarray):
        return output.nbytes
    if isinstance(output, Mapping):
        return sum(tensor_bytes(one) for one in output.values())
    return sum(tensor_bytes(one) for one in output) if isinstance(output, list | tuple) else 0


def _sample(task_type: TaskType) -> Any:
    samples = {Media.IMAGE: picture(), Media.TEXT: "warm up", Media.TEXTS: "warm up", Media.CHAT: "warm up"}
    if task_type.main is not None:
        return samples[task_type.fields[task_type.main]]
    return {name: samples[media] for name, media in task_type.fields.items() if media in samples}
