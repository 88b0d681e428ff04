"""The part of the parameters' rules that depends on one model and its tokenizer: names, known values, and bounds."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from pipeq_worker.models.params.rules import Bound, UnfitError

#: Most values that an error message lists.
_LISTED = 30
#: Each chunk of audio must advance by at least this share of its length, and by this many seconds, which bounds the
#: number of chunks.
_LEAST_STEP, _LEAST_STEP_S = 0.1, 0.1
#: Size of the vocabulary if the model gives none.
_NO_VOCABULARY = 2**31 - 1


def generation_names(task: str, pipe: transformers.Pipeline) -> frozenset[str]:
    """The parameters that this model's ``generate`` takes: its signature and the fields of a generation config."""
    model = pipe.model
    if not hasattr(model, "generate") or not model.can_generate():
        return frozenset()
    if task == "automatic-speech-recognition" and str(getattr(pipe, "type", "")).startswith("ctc"):
        return frozenset()  # the pipeline does not call generate
    names = set(inspect.signature(model.generate).parameters)
    if model.config.model_type != "speecht5":  # its generate reads no configuration
        names |= transformers.GenerationConfig().to_dict().keys()
    return frozenset(name for name in names if not name.startswith("_"))


def forward_names(pipe: transformers.Pipeline) -> frozenset[str]:
    """The parameters of the forward pass, for a model that does not generate."""
    return frozenset(inspect.signature(pipe.model.forward).parameters)


def bounds(task: str, pipe: transformers.Pipeline, ceilings: Mapping[str, Bound]) -> dict[str, Bound]:
    """The ceilings of the settings, and the largest ids. On a GPU an id beyond the model's tables kills the process."""
    config = pipe.model.config
    speakers = getattr(config, "num_speakers", None) or getattr(config, "vocoder_num_spkrs", None) or 1
    found = {
        **ceilings,
        "vocabulary": Bound(_vocabulary(pipe) - 1, "the model's last token"),
        "speakers": Bound(max(speakers - 1, 0), "the model's last speaker"),
    }
    if task == "fill-mask" and (tokens := found["vocabulary"].value + 1) < ceilings["max_results"].value:
        found["max_results"] = Bound(tokens, "the model's tokens")
    return found


def _vocabulary(pipe: transformers.Pipeline) -> int:
    """Number of tokens for which the model has an embedding."""
    sizes = []
    for get in ("get_input_embeddings", "get_output_embeddings"):
        try:
            weight = getattr(getattr(pipe.model, get)(), "weight", None)
        except (NotImplementedError, AttributeError, TypeError):
            continue
        if weight is not None and weight.ndim == 2:
            sizes.append(max(weight.shape) if get == "get_input_embeddings" else weight.shape[0])
    text = pipe.model.config.get_text_config(decoder=True)
    size = getattr(text, "vocab_size", None)
    if isinstance(size, int):
        sizes.append(size)
    return min(sizes, default=_NO_VOCABULARY)


def refused(task: str, pipe: transformers.Pipeline) -> dict[str, str]:
    """Parameters of a task type that have no meaning for this model: name -> reason."""
    found: dict[str, str] = {}
    kind = str(getattr(pipe, "type", ""))
    if task == "translation" and getattr(pipe.tokenizer, "_build_translation_inputs", None) is None:
        why = "this model's tokenizer knows no languages: it translates the pair that it was made for"
        found |= dict.fromkeys(("src_lang", "tgt_lang"), why)
    if task == "automatic-speech-recognition":
        if kind != "ctc_with_lm":
            found["decoder_kwargs"] = "this model decodes without a language model"
        if kind != "seq2seq_whisper":
            found["return_language"] = "only Whisper says the language"
        if not getattr(getattr(pipe.model, "generation_config", None), "is_multilingual", True):
            found |= dict.fromkeys(("language", "task"), "this model knows English only")
    if task != "text-to-audio" and pipe.model.config.is_encoder_decoder:
        found["guidance_scale"] = "it guides decoders only, and this model has an encoder, too"
    if task == "image-to-text" and pipe.model.config.model_type == "vision-encoder-decoder":
        found["prompt"] = "this model takes no prompt"
    return found


def known(task: str, pipe: transformers.Pipeline) -> dict[str, frozenset[str]]:
    """Known values of parameters that name a language, a voice or the like: parameter -> values."""
    found: dict[str, frozenset[str]] = {}
    if task == "translation":
        found |= dict.fromkeys(("src_lang", "tgt_lang"), _languages(pipe.tokenizer))
    config = getattr(pipe.model, "generation_config", None)
    if isinstance(ids := getattr(config, "lang_to_id", None), dict):
        codes = {token.strip("<|>") for token in ids}
        names = {name for name, code in TO_LANGUAGE_CODE.items() if code in codes}
        found["language"] = frozenset(codes | names | set(ids))
    if isinstance(spoken := getattr(config, "text_decoder_lang_to_code_id", None), dict):
        found["generate_kwargs.tgt_lang"] = found["forward_params.tgt_lang"] = frozenset(spoken)
    voices = getattr(pipe.processor, "speaker_embeddings", None) if task == "text-to-audio" else None
    found["preprocess_params.voice_preset"] = frozenset(voices or ()) - {"repo_or_path"}
    if isinstance(speakers := getattr(pipe.model, "speaker_map", None), dict):
        found["generate_kwargs.speaker"] = frozenset(speakers)
    return {name: values for name, values in found.items() if values or name.endswith("voice_preset")}


def _languages(tokenizer: Any) -> frozenset[str]:
    """The languages for which a tokenizer has a token; empty if it does not say."""
    codes = getattr(tokenizer, "lang_code_to_id", None)
    if isinstance(codes, dict) and codes:
        return frozenset(codes)
    special = [str(token) for token in getattr(tokenizer, "extra_special_tokens", None) or ()]
    codes = {token for token in special if "_" in token and not token.startswith("<")}
    return frozenset(codes | {code.strip("_") for code in codes if code.startswith("__")})


def check_known(name: str, value: Any, known: Mapping[str, frozenset[str]]) -> None:
    """Raises :class:`UnfitError` for a language, a voice or the like that the model does not know."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            check_known(f"{name}.{key}", one, known)
        return
    values = known.get(name) or (known.get("language") if name == "generate_kwargs.language" else None)
    if not isinstance(value, str) or (values is None and name not in known):
        return
    # Whisper accepts its languages in upper case, too.
    if value not in (values or ()) and not (name.endswith("language") and value.lower() in (values or ())):
        raise UnfitError(name, value, _not_one_of(value, sorted(values or ())))


def _not_one_of(value: str, values: Sequence[str]) -> str:
    if not values:
        return "which this model does not have: it has none"
    close = difflib.get_close_matches(value, values, n=3) or [one for one in values if one.startswith(value[:2])][:3]
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    more = f", ... ({len(values)} in all)" if len(values) > _LISTED else ""
    return f"not one that this model knows{hint} (it knows {', '.join(values[:_LISTED])}{more})"


def conflict(task: str, pipe: transformers.Pipeline, params: Mapping[str, Any]) -> str | None:
    """Returns a sentence about parameters that cannot be used together; None if all can."""
    if task == "automatic-speech-recognition":
        return _chunks(params) or _fallback({**(params.get("generate_kwargs") or {}), **params})
    if task == "document-question-answering" and params.get("doc_stride") is not None:
        longest = params.get("max_seq_len") or pipe.tokenizer.model_max_length
        if params["doc_stride"] >= longest:
            return f"doc_stride={params['doc_stride']} is not below max_seq_len={longest}: chunks would not go on"
    if task == "token-classification" and (stride := params.get("stride")) is not None:
        room = pipe.tokenizer.model_max_length - pipe.tokenizer.num_special_tokens_to_add()
        if stride >= room:
            return (
                f"stride={stride} leaves no room: chunks have {room} tokens of a text, and must go on by one at least"
            )
    return None


def _fallback(params: Mapping[str, Any]) -> str | None:
    """Checks Whisper's fallback to the next temperature for improbable segments: it needs all of these parameters."""
    if params.get("no_speech_threshold") is not None and params.get("logprob_threshold") is None:
        return "no_speech_threshold goes with a logprob_threshold, for instance -1.0"
    if params.get("logprob_threshold") is not None and params.get("temperature") is None:
        return "logprob_threshold goes with a temperature, or a list of them to fall back to: [0.0, 0.2, 0.4]"
    return None


def _chunks(params: Mapping[str, Any]) -> str | None:
    length, stride = params.get("chunk_length_s") or 0, params.get("stride_length_s")
    if not length:
        return None
    left, right = stride if isinstance(stride, list) else (stride, stride) if stride is not None else (length / 6,) * 2
    least = max(length * _LEAST_STEP, _LEAST_STEP_S)
    if length - left - right < least - 1e-9:
        return (
            f"chunk_length_s={length:g} with strides of {left:g} and {right:g} s goes on by {length - left - right:g} "
            f"s a chunk, less than {least:g}: take longer chunks, or shorter strides in stride_length_s"
        )
    return None
