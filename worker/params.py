"""Which parameters a producer may set: those that the pipeline's call accepts, less those that belong to the worker.

transformers itself swallows many unknown names silently; here a typo is an error that names it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import transformers

from producers.errors import ErrorCode, PipeqError
from worker.task_type import TOKENIZER_PARAMS, TaskType

#: Parameters that decide where and how a model runs: name -> the settings key that holds them.
WORKERS_OWN = {
    "batch_size": "max_batch_size",
    "device": "device",
    "device_map": "device_map",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "model": "model",
    "revision": "revision",
    "task": "task",
    "trust_remote_code": "trust_remote_code",
    "model_kwargs": "model_kwargs",
}
#: Parameters that no producer sets: they load code or models, run programs, or change what the batch returns.
_NEVER = frozenset(
    "tokenizer feature_extractor image_processor processor num_workers framework use_fast token pipeline_class "
    # of generate
    "inputs input_ids input_features attention_mask generation_config logits_processor stopping_criteria "
    "prefix_allowed_tokens_fn synced_gpus assistant_model assistant_tokenizer streamer negative_prompt_ids "
    "negative_prompt_attention_mask custom_generate return_dict_in_generate output_attentions output_hidden_states "
    "output_logits output_scores return_token_timestamps return_segments force_unique_generate_call monitor_progress "
    "cache_implementation cache_config compile_config disable_compile continuous_batching_config transformers_version "
    "is_assistant prompt_ids self kwargs "
    # a command line for tesseract; images are fetched by us, within [inputs] timeout_s
    "tesseract_config timeout".split()
)
#: Parameters that hold parameters of the tokenizer, or of generate, in turn.
_NESTED_TOKENIZER = frozenset({"tokenize_kwargs", "tokenizer_encode_kwargs", "tokenizer_kwargs", "processor_kwargs"})
_NESTED_GENERATION = "generate_kwargs"

_INT, _NUMBER, _BOOL, _TEXT = (int,), (int, float), (bool,), (str,)
#: JSON types of parameters whose wrong type transformers ignores, or finds out about only in the middle of a batch.
#: Null always means: as if it were not given.
_TYPES: dict[str, tuple[type, ...]] = {
    "top_k": _INT,
    "truncation": (bool, str),
    "max_length": _INT,
    "pad_to_multiple_of": _INT,
    "stride": _INT,
    "function_to_apply": _TEXT,
    "hypothesis_template": _TEXT,
    "multi_label": _BOOL,
    "normalize": _BOOL,
    "threshold": _NUMBER,
    "mask_threshold": _NUMBER,
    "overlap_mask_area_threshold": _NUMBER,
    "subtask": _TEXT,
    "aggregation_strategy": _TEXT,
    "is_split_into_words": _BOOL,
    "num_frames": _INT,
    "frame_sampling_rate": _INT,
    "points_per_batch": _INT,
    "points_per_crop": _INT,
    "pool": _BOOL,
    "sequential": _BOOL,
    "handle_impossible_answer": _BOOL,
    "align_to_words": _BOOL,
    "prompt": _TEXT,
    "prompt_name": _TEXT,
    "truncate_dim": _INT,
    "src_lang": _TEXT,
    "tgt_lang": _TEXT,
    "return_full_text": _BOOL,
    "chunk_length_s": _NUMBER,
    "stride_length_s": (int, float, list),
    "return_timestamps": (bool, str),
    "return_language": _BOOL,
    "doc_stride": _INT,
    "max_seq_len": _INT,
    "max_question_len": _INT,
    "max_answer_len": _INT,
    "max_new_tokens": _INT,
    "min_new_tokens": _INT,
    "num_beams": _INT,
    "num_return_sequences": _INT,
    "do_sample": _BOOL,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "repetition_penalty": _NUMBER,
}
#: Lengths, in tokens, that nothing needs to be beyond; padding to them takes memory before a model can refuse.
_LENGTHS = frozenset({"max_length", "pad_to_multiple_of", "stride", "max_seq_len", "doc_stride", "max_question_len"})
_LONGEST = 2**17
#: Values of parameters that transformers refuses by a bare key.
_VALUES = {
    "function_to_apply": ("sigmoid", "softmax", "none"),
    "aggregation_strategy": ("none", "simple", "first", "average", "max"),
}
#: Numbers of things that there are none less than one of.
_AT_LEAST_ONE = frozenset({"max_new_tokens", "num_beams", "num_return_sequences"})
_WORDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list"}


class Accepted:
    """The names that one pipeline's call accepts."""

    def __init__(self, task_type: TaskType, pipe: transformers.Pipeline) -> None:
        self.generation = _generation_params(pipe) if task_type.generation else frozenset()
        beside = self.generation if task_type.generation == "call" else frozenset()
        self.names = named_params(task_type, type(pipe)) | beside - _NEVER - WORKERS_OWN.keys()

    def check(self, params: Mapping[str, Any], pipeline: str) -> None:
        """Raises PipeqError ``invalid_params`` for the first parameter that may not be set."""
        for name, value in params.items():
            _check_name(name, self.names, pipeline, name)
            _check_type(name, value, pipeline)
            inner = TOKENIZER_PARAMS if name in _NESTED_TOKENIZER else self.generation
            if name in _NESTED_TOKENIZER or (name == _NESTED_GENERATION and self.generation):
                if not isinstance(value, Mapping):
                    raise PipeqError(ErrorCode.INVALID_PARAMS, f"parameter {name!r} of {pipeline!r} is no object")
                for key, one in value.items():
                    _check_name(key, inner, pipeline, f"{name}.{key}")
                    _check_type(key, one, pipeline)


def named_params(task_type: TaskType, pipeline: type[transformers.Pipeline]) -> frozenset[str]:
    """The parameters that a task type and its pipeline class name; those of ``generate`` come on top."""
    named = {
        name
        for own in (vars(one).get("_sanitize_parameters") for one in pipeline.__mro__)
        if own is not None
        for name, parameter in inspect.signature(own).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    extra = {_NESTED_GENERATION} if task_type.generation else set()
    return frozenset(named | task_type.params | extra) - _NEVER - WORKERS_OWN.keys()


def json_type(name: str) -> dict[str, Any]:
    """JSON Schema of a parameter; empty where transformers alone knows."""
    types = _TYPES.get(name)
    if types is None:
        return {}
    if types == _NUMBER:
        return {"type": "number"}
    names = {int: "integer", float: "number", bool: "boolean", str: "string", list: "array"}
    found = [names[one] for one in types]
    return {"type": found[0] if len(found) == 1 else found}


def _check_name(name: str, accepted: frozenset[str] | set[str], pipeline: str, shown: str) -> None:
    if name in accepted:
        return
    if name in WORKERS_OWN:
        raise PipeqError(
            ErrorCode.INVALID_PARAMS,
            f"parameter {shown!r} belongs to the worker: set `{WORKERS_OWN[name]}` in [pipelines.{pipeline}] of its "
            "settings",
        )
    if name in _NEVER:
        raise PipeqError(ErrorCode.INVALID_PARAMS, f"parameter {shown!r} cannot be set by a task")
    close = difflib.get_close_matches(name, accepted, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it takes: {', '.join(sorted(accepted)) or 'none'}"
    raise PipeqError(ErrorCode.INVALID_PARAMS, f"{pipeline!r} takes no parameter {shown!r}; {hint}")


def _check_type(name: str, value: Any, pipeline: str) -> None:
    types = _TYPES.get(name)
    if name in _LENGTHS and isinstance(value, int) and not 0 <= value <= _LONGEST:
        raise PipeqError(
            ErrorCode.INVALID_PARAMS, f"parameter {name!r} of {pipeline!r} is {value}, not 0 to {_LONGEST}"
        )
    if name in _VALUES and isinstance(value, str) and value.lower() not in _VALUES[name]:
        allowed = ", ".join(_VALUES[name])
        raise PipeqError(
            ErrorCode.INVALID_PARAMS, f"parameter {name!r} of {pipeline!r} is {value!r}, not one of {allowed}"
        )
    if name in _AT_LEAST_ONE and isinstance(value, int) and value < 1:
        raise PipeqError(ErrorCode.INVALID_PARAMS, f"parameter {name!r} of {pipeline!r} is {value}, not 1 or more")
    # In Python true is a number; in JSON it is not.
    if value is None or types is None or (isinstance(value, types) and (bool in types or not isinstance(value, bool))):
        return
    wanted = " or ".join(_WORDS[one] for one in types)
    raise PipeqError(ErrorCode.INVALID_PARAMS, f"parameter {name!r} of {pipeline!r} is {value!r}, not {wanted}")


def _generation_params(pipe: transformers.Pipeline) -> frozenset[str]:
    """What this model's ``generate`` takes: its own signature, and the fields of a generation configuration."""
    names = set(transformers.GenerationConfig().to_dict())
    names |= set(inspect.signature(pipe.model.generate).parameters) if hasattr(pipe.model, "generate") else set()
    return frozenset(name for name in names if not name.startswith("_") and name not in _NEVER)
