"""Loads pipelines of transformers: finds a model's task type, its parts, and its device."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from pipeq.contract.errors import PipeqError, SettingsError

from pipeq_worker.models import identity, linear, own, pickles, seeding, weights
from pipeq_worker.models.continuous_trial import make_stream
from pipeq_worker.models.model_archive import unpacked
from pipeq_worker.models.own import checkpoint
from pipeq_worker.models.probe import padding_changes
from pipeq_worker.models.task_type import TaskType
from pipeq_worker.models.task_types import find, is_task_type
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import ParamLimits, PipelineSettings, S3Settings

logger = logging.getLogger(__name__)

#: Task types that are tried in turn. A model gets the first one whose auto class knows the model's class.
_BY_CLASS = (
    "automatic-speech-recognition text-to-audio audio-classification video-classification image-classification "
    "image-segmentation object-detection zero-shot-object-detection depth-estimation keypoint-matching mask-generation "
    "zero-shot-image-classification document-question-answering table-question-answering visual-question-answering "
    "image-to-image text-generation text-classification token-classification question-answering text2text-generation "
    "fill-mask image-text-to-text any-to-any"
).split()
#: Task types that follow the files of sentence-transformers -> the family of checkpoints that they take.
_FAMILIES = {"text-embedding": checkpoint.EMBEDDER, "text-ranking": checkpoint.RERANKER}
_TRANSLATORS = frozenset({"marian", "m2m_100", "mbart", "nllb-moe", "fsmt"})


def load_transformers_pipeline(
    name: str,
    settings: PipelineSettings,
    device: str,
    s3: S3Settings | None = None,
    limits: ParamLimits | None = None,
) -> TransformersPipeline:
    """See :func:`pipeq_worker.models.loading.load_pipeline`."""
    began = time.monotonic()
    task = settings.task or name
    reports: list[weights.Report] = []
    try:
        model = unpacked(settings.model, s3 or S3Settings()) if settings.model else None
        if not is_task_type(task):
            task = task_type_of(name, model, settings)
        task_type = find(task)
        _check_packages(name, task_type)
        # From the same commit until the worker ends, whatever is pushed in the meantime.
        commit = None if model is None else identity.commit_of(model, settings)
        same = identity.pinned(settings, commit)
        with weights.watched() as reports, pickles.refused(settings.allow_pickle):
            pipe = _build(task, task_type, model, same, device)
        _check_weights(name, task_type, settings, pipe, reports)
        with pickles.refused(settings.allow_pickle):
            pipeline = TransformersPipeline(name, task_type, settings, pipe, limits)
        loaded = time.monotonic()

        if settings.revision is None:
            pipeline.model = pipeline.model.model_copy(update={"revision": commit})

        def identify() -> None:
            kind = task if task.startswith(task_type.name) else task_type.name  # an alias means the same
            pipeline.identity = identity.of_settings(settings, kind, pipeline.model.id, model, commit)

        identify()
        pipeline.warm_up()
        pipeline.first_passes = seeding.measured(pipeline, time.monotonic() - loaded)
        _check_padding(pipeline)

        def rebuild() -> transformers.Pipeline:
            with weights.watched(), pickles.refused(settings.allow_pickle):
                pipe = _build(task, task_type, model, same, device)
            identify()  # the files of a folder may be others by now
            return pipe

        pipeline.rebuild = rebuild
        pipeline.settle()
        if settings.continuous:
            pipeline.stream = make_stream(pipeline)
    except PipeqError as error:
        if repr(name) in error.message:
            raise
        raise PipeqError(error.code, f"pipeline {name!r}: {error.message}", error.retryable) from error
    except Exception as error:
        # transformers raises for weights of another shape, too, but does not name them.
        other = weights.shapes(reports)
        reason = f"weights of another shape than its configuration says: {other}" if other else _reason(error)
        raise SettingsError(
            f"pipeline {name!r}: cannot load {settings.model or 'the default model of ' + task}: "
            f"{type(error).__name__}: {reason}",
        ) from error
    logger.info(
        "loaded %s: %s%s for %s on %s in %.1f s, warm-up %.1f s",
        name,
        pipeline.model.id,
        "" if settings.model else " (the default model)",
        task,
        pipeline.model.device,
        loaded - began,
        time.monotonic() - loaded,
        extra={"action": "load", "pipeline": name},
    )
    return pipeline


def _check_weights(
    name: str,
    task_type: TaskType,
    settings: PipelineSettings,
    pipe: transformers.Pipeline,
    reports: list[weights.Report],
) -> None:
    """Refuses a model, or a vocoder, whose checkpoint lacks weights."""
    lacking = weights.lacking(reports, [pipe.model, getattr(pipe, "vocoder", None)], task_type.name)
    if not lacking:
        return
    which, model = weights.shown(lacking), settings.model or pipe.model.name_or_path
    if settings.allow_missing_weights:
        sentence = "%s: %s lacks weights, random numbers take their place: %s"
        logger.warning(sentence, name, model, which, extra={"action": "load", "pipeline": name})
        return
    raise SettingsError(
        f"pipeline {name!r}: {model} lacks weights that {task_type.name} needs, so its answers would be random: "
        f"{which}; take a model that was trained for {task_type.name}, or set `allow_missing_weights = true`",
    )


def _check_padding(pipeline: TransformersPipeline) -> None:
    if not pipeline.quirks.pads:
        return
    try:
        changes = padding_changes(pipeline)
    except Exception as error:
        # A task would raise the same error, and would fail alone.
        logger.debug("%s: padding not probed: %r", pipeline.name, error, extra={"action": "probe"})
        return
    if changes:
        pipeline.quirks.pads = False
        logger.warning(
            "%s: padding changes the answers of this model: only inputs of equal length share a batch",
            pipeline.name,
            extra={"action": "probe", "pipeline": pipeline.name},
        )


def task_type_of(name: str, model: str | None, settings: PipelineSettings) -> str:
    """Finds a model's task type by its configuration, the only file that is read from the Hub.

    Raises:
        PipeqError: ``invalid_settings``, if there is no model, or no task type for it.
    """
    if model is None:
        find(name)  # raises, listing the known names
    family = checkpoint.family_of(Path(str(model)))
    if family is not None:
        return "text-ranking" if family == checkpoint.RERANKER else "text-embedding"
    try:
        config = transformers.AutoConfig.from_pretrained(
            model, revision=settings.revision or "main", trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:
        sentence = f"{settings.model} is no model that can be read: {_reason(error)}"
        raise SettingsError(f"pipeline {name!r}: {sentence}") from error
    found = task_type_of_config(config)
    if found is None:
        raise SettingsError(
            f"pipeline {name!r}: {settings.model} does not say what it is for (its class is "
            f"{', '.join(config.architectures or ['unknown'])}): set `task`",
        )
    logger.info("%s: %s is for %s", name, settings.model, found, extra={"action": "task"})
    return found


def task_type_of_config(config: Any) -> str | None:
    """The task type of a model's configuration; None if no task type has its class."""
    architecture = (config.architectures or [""])[0]
    labels = {str(label).lower() for label in (config.id2label or {}).values()}
    if config.model_type == "clap":
        return "zero-shot-audio-classification"
    if architecture.endswith("ForSequenceClassification") and architecture not in _class_names("audio-classification"):
        if {"entailment", "contradiction"} <= labels:
            return "zero-shot-classification"
        return "text-ranking" if config.num_labels == 1 and config.problem_type is None else "text-classification"
    for task in _BY_CLASS:
        if architecture in _class_names(task):
            break
    else:
        vision = hasattr(config, "image_size") or hasattr(config, "patch_size")
        if architecture in _names(transformers.AutoModel):
            return "image-feature-extraction" if vision else "feature-extraction"
        return "image-to-text" if architecture == "VisionEncoderDecoderModel" else None
    if task == "text2text-generation":
        if config.model_type in _TRANSLATORS:
            return "translation"
        parts = list(getattr(config, "task_specific_params", None) or {})
        return "summarization" if parts == ["summarization"] or config.model_type == "pegasus" else task
    if task == "image-text-to-text" and config.model_type in ("vision-encoder-decoder", "blip", "git"):
        return "image-to-text"
    return task


def _class_names(task: str) -> set[str]:
    if (ours := find(task).own) is not None:
        return _names(ours.model())
    entry = transformers.pipelines.SUPPORTED_TASKS[task]
    return set().union(*(_names(one) for one in entry["pt"]))


def _names(auto_class: Any) -> set[str]:
    found: set[str] = set()
    for names in auto_class._model_mapping._model_mapping.values():
        found |= set(names) if isinstance(names, list | tuple) else {names}
    return found


def _check_packages(name: str, task_type: TaskType) -> None:
    if missing := task_type.missing():
        raise SettingsError(
            f"pipeline {name!r}: {task_type.name} needs {' and '.join(missing)}, which is not installed: "
            "install it where the worker runs",
        )


def _build(
    task: str, task_type: TaskType, model: str | None, settings: PipelineSettings, device: str
) -> transformers.Pipeline:
    kwargs: dict[str, Any] = {
        name: value
        for name, value in (
            ("revision", settings.revision),
            ("tokenizer", settings.tokenizer),
            ("image_processor", settings.image_processor),
            ("feature_extractor", settings.feature_extractor),
            ("processor", settings.processor),
        )
        if value is not None
    }
    if settings.device_map is not None:
        kwargs["device_map"] = settings.device_map
    else:
        kwargs["device"] = settings.device or resolve_device(device)
    if settings.vocoder is not None:
        kwargs["vocoder"] = transformers.SpeechT5HifiGan.from_pretrained(settings.vocoder)
    model_kwargs = _model_kwargs(settings)
    if task_type.name == "decision" and model is not None:
        kwargs |= _without_head(model, settings, kwargs, model_kwargs)
    ours, family = task_type.own, _FAMILIES.get(task_type.name)
    if ours is not None and family is not None:
        said = checkpoint.read(model or ours.default[0], settings.revision, family)
        model_kwargs = said.model_args | model_kwargs
        model = model and said.model
        if said.tokenizer_args:
            kwargs["tokenizer"] = (settings.tokenizer or said.model, said.tokenizer_args)
    pipe = transformers.pipeline(
        task_type.name if ours is None else own.register(task, ours),
        **{"model": model, "dtype": settings.dtype, "model_kwargs": model_kwargs, **kwargs},
        trust_remote_code=settings.trust_remote_code,
    )
    if settings.vocoder is not None:
        pipe.vocoder.to(pipe.model.device)  # transformers moves its own one only
    if family is not None:
        pipe.follow(said, allow_pickle=settings.allow_pickle)
    if settings.adapter is not None:
        pipe.model.load_adapter(settings.adapter)
    linear.quicken(pipe)
    return pipe


def _without_head(
    model: str, settings: PipelineSettings, kwargs: dict[str, Any], model_kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments for a chat model that decides by the logits of its labels; empty for a model with a head for decisions.

    Any chat model can decide so. Without these arguments transformers 5.23 treats, for instance, a model of type qwen2
    as one with such a head, and fills a model of its default size, with billions of parameters, with random numbers.
    """
    where = {"revision": settings.revision or "main"}
    config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=settings.trust_remote_code, **where)
    if any(name.endswith("ForDecision") for name in config.architectures or ()):
        return {}
    if transformers.JevForDecision.checkpoint_config(model, **where)[0] is not None:
        return {}
    placed = {"device_map": kwargs.pop("device_map")} if "device_map" in kwargs else {}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code, **where, **placed, **model_kwargs
    )
    if placed:
        kwargs.pop("device", None)
    return {"model": loaded, "tokenizer": settings.tokenizer or model, "model_kwargs": {}}


def _model_kwargs(settings: PipelineSettings) -> dict[str, Any]:
    kwargs: dict[str, Any] = dict(settings.model_kwargs)
    if not settings.allow_pickle:
        kwargs["use_safetensors"] = True
    if settings.attn_implementation is not None:
        kwargs["attn_implementation"] = settings.attn_implementation
    if settings.max_memory is not None:
        # TOML keys are always text, but accelerate needs the numbers of devices as integers.
        sizes = settings.max_memory.items()
        kwargs["max_memory"] = dict((int(key) if key.isdigit() else key, size) for key, size in sizes)  # noqa: C402
    if settings.offload_folder is not None:
        kwargs["offload_folder"] = str(settings.offload_folder)
    return kwargs


def resolve_device(device: str) -> str:
    """``auto`` -> the first accelerator, else the CPU."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _reason(error: Exception) -> str:
    """The first line of transformers' error message, with advice if the cause is known."""
    text = str(error).strip()
    # If several classes were tried, transformers quotes a traceback for each; their last lines give the reasons.
    causes = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception|NotFound): .+$", text, re.MULTILINE)
    first = "; ".join(dict.fromkeys(causes)) or text.partition("\n")[0]
    if "safetensors" in text and "use_safetensors" not in first:
        return first + " (only safetensors are loaded: a pickle runs code; `allow_pickle = true` allows it)"
    return first
