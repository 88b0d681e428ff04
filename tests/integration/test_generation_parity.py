"""No parameter of ``generate`` makes an item's answer depend on the rest of its batch: the test walks all of them.

Each parameter is given with a value at which it does something, to prompts of one token and of many, in the fullest
batches that its rule allows (models/quirks/generation.py), and compared with transformers' own pipeline called for each
alone. Where transformers itself refuses the parameter, we must, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from pipeq_worker.doctor.doctor import check
from pipeq_worker.models.call import SOLO
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.own.generation import lengths
from pipeq_worker.models.params.compound import Fields
from pipeq_worker.models.params.table import generation_rules
from pipeq_worker.models.quirks.generation import RULES, Company, Generates
from pipeq_worker.models.task_types import TASK_TYPES
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings

from tests import samples, tiny_models
from tests.device import DEVICE
from tests.integration.test_parity import FULLEST

torch.set_num_threads(1)

BEAMS = {"num_beams": 3}
#: Parameter -> a value with which it has an effect, and the parameters that it needs for that.
VALUES: dict[str, tuple[Any, dict[str, Any]]] = {
    "max_length": (48, {"max_new_tokens": None}),
    "min_length": (7, {}),
    "max_new_tokens": (5, {}),
    "min_new_tokens": (5, {}),
    "forced_bos_token_id": (9, {}),
    "forced_eos_token_id": (9, {}),
    "no_repeat_ngram_size": (1, {}),
    "encoder_repetition_penalty": (1.5, {}),
    "encoder_no_repeat_ngram_size": (1, {}),
    "bad_words_ids": ([[0, 9], [5, 6], [7]], {}),
    "sequence_bias": ([[[0, 9], 30.0], [[9], 2.0], [[5, 6], 9.0]], {}),
    "stop_strings": (["e", "q", ">t"], {}),
    "watermarking_config": ({"seeding_scheme": "selfhash", "context_width": 2}, {}),
    "max_time": (100.0, {}),
    "prompt_lookup_num_tokens": (3, {"num_beams": 1}),
    "max_matching_ngram_size": (3, {"num_beams": 1, "prompt_lookup_num_tokens": 3}),
    "repetition_penalty": (1.8, {}),
    "exponential_decay_length_penalty": ([2, 1.5], {}),
    "begin_suppress_tokens": (list(range(40, 90)), {}),
    "suppress_tokens": ([5, 6, 7, 0], {}),
    "renormalize_logits": (True, BEAMS),
    "remove_invalid_values": (True, {}),
    "guidance_scale": (1.7, {}),
    "num_beams": (3, {}),
    "num_return_sequences": (2, BEAMS),
    "early_stopping": ("never", BEAMS),
    "length_penalty": (2.0, BEAMS),
    "pad_token_id": (7, {}),
    "bos_token_id": (5, {}),
    "eos_token_id": (list(range(20, 60)), {}),
    "decoder_start_token_id": (4, {}),
    "use_cache": (False, {}),
}
#: Parameters that have an effect only on random sampling, or on the computation.
SAMPLED = frozenset("do_sample temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff".split())
#: Parameters of Whisper, which tests/integration/test_whisper.py walks.
WHISPER = frozenset(
    "task language condition_on_prev_tokens compression_ratio_threshold "
    "logprob_threshold no_speech_threshold temperature".split()
)


def prompts() -> list[str]:
    """Prompts of one token, of a few, and of many; two of each length, so that some can share a batch."""
    return ["4", "hello world user", "the quick brown fox jumps over the lazy dog about politics", "2"]


def captions() -> list[Any]:
    return samples.images()[:1] * 2 + samples.images()[1:3]


def questions() -> list[dict[str, Any]]:
    return [{"image": samples.images()[0], "question": text} for text in ("what is it ?", "fox", "what is it ?")]


def chats() -> list[Any]:
    return [samples.image_chats()[0], samples.image_chats()[2], samples.image_chats()[0]]


#: Task type, model, inputs, place of the parameters, items in the largest batch with most parameters.
MODELS: list[tuple[str, str, Callable[[], list[Any]], str, int]] = [
    ("text-generation", "writer", prompts, "", 4),
    ("text-generation", "writer_padded", prompts, "", 4),
    ("summarization", "t5", prompts, "", 4),
    ("image-text-to-text", "llava", chats, "generate_kwargs", 3),
    ("text2text-generation", "bart", prompts, "", 4),
    ("image-to-text", "captioner", captions, "generate_kwargs", 4),
    ("visual-question-answering", "blip_vqa", questions, "", 2),
    ("automatic-speech-recognition", "whisper_short", samples.short_clips, "generate_kwargs", 4),
]
#: `make long` walks every parameter through every model; `make test` the first model, and a part of the next three.
EVERY = bool(os.environ.get("TASKS"))
WALKED = MODELS if EVERY else MODELS[:4]
#: Parameters that read an input at all.
SAMPLE = [
    name for name in VALUES if RULES[name].company is not Company.ANY or name in ("repetition_penalty", "num_beams")
]


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Callable[[str, str], TransformersPipeline]:
    found: dict[str, TransformersPipeline] = {}

    def get(task: str, model: str) -> TransformersPipeline:
        if model not in found:
            pipeline = load_pipeline(
                "it", PipelineSettings(task=task, model=str(tiny_models.build(model, tiny))), DEVICE
            )
            assert isinstance(pipeline, TransformersPipeline)
            found[model] = pipeline
        return found[model]

    return get


def parameters(name: str, model: str) -> dict[str, Any]:
    value, more = VALUES[name]
    if name == "max_length" and model == "llava":
        value = 80  # an image is 16 tokens
    given = {"max_new_tokens": 6, "num_beams": 1, "do_sample": False, **more, name: value}
    return {key: one for key, one in given.items() if one is not None}


def wrong(
    pipeline: TransformersPipeline, values: list[Any], name: str, params: dict[str, Any], inside: str
) -> Iterator[tuple[str, int]]:
    """Describes the differences for one parameter in words, and returns the size of the largest batch."""
    beside = {"return_tensors": True} if pipeline.task_type.name == "text-generation" else {}
    report = check(pipeline, values, {**beside, inside: params} if inside else {**beside, **params}, limits=FULLEST)
    alone = {at: why for at, why in report.failed.items() if why.startswith("alone")}
    if report.failed and len(report.failed) < len(values):
        yield f"{name}: of {len(values)} inputs these failed: {report.failed}", report.largest_batch
    elif alone != {} and len(alone) < len(values):
        yield f"{name}: only alone these failed: {alone}", report.largest_batch
    elif report.wrong:
        yield f"{name}: {report.wrong}", report.largest_batch
    else:
        yield "", report.largest_batch


@pytest.mark.parametrize(("task", "model", "inputs", "inside", "batch"), WALKED, ids=[one[1] for one in WALKED])
def test_no_parameter_reads_the_padding(
    loaded: Callable[[str, str], TransformersPipeline],
    task: str,
    model: str,
    inputs: Callable[[], list[Any]],
    inside: str,
    batch: int,
) -> None:
    pipeline, found, full = loaded(task, model), [], 0
    names = list(VALUES) if EVERY or model == MODELS[0][1] else SAMPLE
    rules = pipeline.accepted.rules
    accepted = dict(cast(Fields, rules[inside]).fields) if inside else rules
    # What this model does not take has a reason of its own.
    assert VALUES.keys() & generation_rules(task).keys() <= accepted.keys() | pipeline.accepted.refused.keys()
    for name in names:
        if name not in accepted:
            continue
        for what, largest in wrong(pipeline, inputs(), name, parameters(name, model), inside):
            found += [what] if what else []
            full += largest >= batch
    assert found == []
    assert full >= 3, "hardly anything was batched, so hardly anything was tested"


def test_every_parameter_that_a_task_may_give_has_a_rule_and_is_walked() -> None:
    """A parameter of a later transformers has no line in RULES, and runs alone until it has one."""
    for name, row in TASK_TYPES.items():
        if row.generation is None or row.company == "alone":
            continue
        accepted = generation_rules(name).keys()
        assert accepted - RULES.keys() == set(), name
        # Images have one shape in a batch.
        assert accepted - VALUES.keys() - SAMPLED - WHISPER - {"interpolate_pos_encoding"} == set(), name


def test_every_field_of_a_generation_configuration_has_a_rule() -> None:
    """A checkpoint may set any parameter, also those that no task may set."""
    fields = transformers.GenerationConfig().to_dict().keys() - {"_from_model_config"}
    assert fields - RULES.keys() == set()


def test_parameters_that_the_model_brings_count_too(loaded: Callable[[str, str], TransformersPipeline]) -> None:
    """Fields of generation_config.json that ``generate`` does not know have no effect."""
    pipeline = loaded("text-generation", "writer_padded")
    quirks, config = pipeline.quirks, pipeline._pipe.model.generation_config
    short, long = (
        next(iter(pipeline.prepare(text, pipeline.call({"max_new_tokens": 4})))).features
        for text in ("fox", "the lazy dog")
    )

    def meet(**given: Any) -> bool:
        assert isinstance(quirks, Generates)
        quirks.forget()
        groups = {quirks.group(one, {"do_sample": False, **given}) for one in (short, long)}
        return len(groups) == 1 and SOLO not in groups

    assert meet(max_new_tokens=4)
    assert not meet(max_length=40)
    assert not meet(an_unknown_parameter=1, max_new_tokens=4)
    assert not meet(max_new_tokens=4, bad_words_ids=[[1, 5]]), "the token that fills up"
    assert meet(max_new_tokens=4, bad_words_ids=[[5, 1]], no_repeat_ngram_size=0, min_length=0)
    for name, value in {"max_length": 40, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.5}.items():
        before = getattr(config, name)
        setattr(config, name, value)
        try:
            assert not meet(**({} if name == "max_length" else {"max_new_tokens": 4})), name
            assert meet(max_new_tokens=4) == (name == "max_length")
        finally:
            setattr(config, name, before)
    config.chat_format = "chatml"
    try:
        assert meet(max_new_tokens=4)
    finally:
        del config.chat_format


@pytest.mark.parametrize("model", ["stretched_dynamic", "stretched_longrope"])
def test_a_text_longer_than_the_training_moves_nobody_elses_positions(
    loaded: Callable[[str, str], TransformersPipeline], model: str
) -> None:
    """The answer is the same beside and after a longer text."""
    pipeline = loaded("text-generation", model)
    middle, long = (" ".join([samples.texts()[1]] * times) for times in (2, 4))
    values = [*prompts(), middle, "fox dog jumps over the lazy invoice", long, "the lazy dog", middle]
    params = {"max_new_tokens": 12, "do_sample": False, "return_tensors": True}
    report = check(pipeline, values, params, limits=FULLEST)
    assert (report.failed, report.wrong) == ({}, {})
    assert 4 <= report.largest_batch < len(values), "short ones meet, whatever their length"

    def answer(text: str) -> Any:
        merged = pipeline.merge(params)
        (row,) = pipeline.prepare(text, merged)
        return pipeline.postprocess(pipeline.forward([row.features], merged), merged)

    first = answer(middle)
    answer(long)
    assert answer(middle) == first


@pytest.mark.parametrize(
    "bad", [{"bad_words_ids": "fox"}, {"stop_strings": [1]}, {"sequence_bias": [[]]}, {"top_p": 7}]
)
def test_nonsense_runs_alone_and_fails_there(
    loaded: Callable[[str, str], TransformersPipeline], bad: dict[str, Any]
) -> None:
    for task, model in (("text-generation", "writer"), ("summarization", "t5")):
        quirks = loaded(task, model).quirks
        assert isinstance(quirks, Generates)
        quirks.company({"max_new_tokens": 4, "do_sample": True, **bad})  # raises nothing


@pytest.mark.parametrize(
    ("rows", "more", "want"),
    [
        # [tokens], with a prompt of one token; 0 is the end token, and 9 the padding
        ([[5, 6, 0, 9, 9]], {}, 3),
        ([[5, 6, 7, 7, 9]], {}, 5),
        ([[5, 6, 0, 9, 9], [5, 6, 6, 6, 0]], {}, 5),
        ([[0, 6, 0, 9, 9]], {}, 3),
        ([[5, 6, 7, 0, 0]], {"pad": 0}, 4),
        ([[5, 6, 7, 9, 9]], {"eos": None}, 5),
        ([[5, 6, 7, 9, 9]], {"stop": 7}, 3),
        ([[5, 6, 7, 0, 0]], {"stop": 7, "pad": 0}, 3),
        ([[5, 6, 6, 0, 0]], {"stop": 7, "pad": 0}, 4),
        ([[5, 6, 7, 3, 3]], {"stop": 7, "pad": 0, "eos": 3, "beams": True}, 3),
        ([[5, 7, 7, 7, 7]], {"stop": 5}, 5),
    ],
)
def test_where_a_sequence_would_have_ended_alone(rows: list[list[int]], more: dict[str, Any], want: int) -> None:
    """A sequence may end with the end token, with a stop string, or at the length limit."""
    stop = more.get("stop")

    def ends_with(found: torch.Tensor) -> torch.Tensor:
        return found[:, -1] == stop

    eos, pad = more.get("eos", 0), more.get("pad", 9)
    found = lengths(
        torch.tensor([rows]), eos, pad, start=1, stop=ends_with if stop else None, beams=more.get("beams", False)
    )
    assert found.tolist() == [want]
