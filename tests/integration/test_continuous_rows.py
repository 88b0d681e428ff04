"""On a CPU each row of a continuous batch attends to its own tokens: rows of any length beside each other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from pipeq.contract.errors import PipeqError
from pipeq_worker.models import continuous, continuous_manager, continuous_rows
from pipeq_worker.models.continuous_manager import Manager, can_run_by_rows
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.sampling import Sampling
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import FullAttentionCacheAllocator
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.model_runner import ModelRunner

from tests import tiny_models
from tests.device import DEVICE
from tests.integration.test_continuous import Answers, load, stream_of

torch.set_num_threads(1)

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU, transformers' own attention runs")

#: Over several pages, so that rows grow, and change their groups; no row ends early.
PARAMS = {"max_new_tokens": 70, "do_sample": False, "eos_token_id": None}
#: One token; several pages; more than a step takes; the same beginning several times.
TEXTS = ["a", "the fox", "dog " * 45, "user hello " * 110, "world fox dog " * 30, "world fox dog " * 30 + "a", "fox"]


def shared_heads(tiny: Path, folder: Path) -> Path:
    """Saves a model in which two heads share their keys and values."""
    source = tiny_models.build("writer_padded", tiny)
    config = hf.AutoConfig.from_pretrained(source)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 16
    torch.manual_seed(1)
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipelines(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TransformersPipeline]:
    folder = shared_heads(tiny, tmp_path_factory.mktemp("shared"))
    settings = PipelineSettings(task="text-generation", model=str(folder), continuous=True, max_batch_size=5)
    shared = load_pipeline("it", settings, DEVICE)
    assert isinstance(shared, TransformersPipeline)
    found = {"gpt2": load(tiny, "writer"), "llama": load(tiny, "writer_padded"), "shared heads": shared}
    assert all(stream_of(pipeline).by_rows for pipeline in found.values())
    return found


@pytest.fixture
def running(pipelines: dict[str, TransformersPipeline]) -> Iterator[Callable[[str], TransformersPipeline]]:
    started = []

    def start(name: str) -> TransformersPipeline:
        started.append(stream_of(pipelines[name]))
        started[-1].start()
        return pipelines[name]

    yield start
    for stream in started:
        stream.stop()


def alone(pipeline: TransformersPipeline, text: str, params: dict[str, Any]) -> Any:
    call = pipeline.merge(params)
    (row,) = pipeline.prepare(text, call)
    return pipeline.postprocess(pipeline.forward([row.features], call), call)


@pytest.mark.parametrize(
    ("model", "group_bytes"),
    [
        ("gpt2", continuous_rows.GROUP_BYTES),
        ("llama", 0),
        ("shared heads", 0),
        ("shared heads", 2**40),
        ("llama", None),
    ],
)
def test_rows_of_any_length_answer_beside_each_other_as_alone(
    pipelines: dict[str, TransformersPipeline],
    running: Callable[[str], TransformersPipeline],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    group_bytes: int | None,
) -> None:
    """In groups of any kind, and with transformers' own attention, which other models have (None)."""
    monkeypatch.setattr(continuous_rows, "GROUP_BYTES", group_bytes)
    monkeypatch.setattr(stream_of(pipelines[model]), "by_rows", group_bytes is not None)
    expected = [alone(pipelines[model], text, PARAMS) for text in TEXTS]
    pipeline, answers = running(model), Answers()
    # The second half enters when rows of the first have left their pages.
    for half in range(2):
        for at, text in enumerate(TEXTS):
            answers.ask(pipeline, (half, at), text, **PARAMS)
        found = answers.wait((half + 1) * len(TEXTS))
    assert [found[half, at] for half in range(2) for at in range(len(TEXTS))] == expected * 2


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_a_prompt_of_several_steps_runs_when_nothing_is_beside_it(
    pipelines: dict[str, TransformersPipeline],
    running: Callable[[str], TransformersPipeline],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    by_rows: bool,
) -> None:
    """Its first steps end in no token."""
    monkeypatch.setattr(stream_of(pipelines[model]), "by_rows", by_rows)
    params, text = {**PARAMS, "max_new_tokens": 5}, "user hello " * 110
    expected = alone(pipelines[model], text, params)
    pipeline, answers = running(model), Answers()
    assert len(pipeline.pipe().tokenizer(text)["input_ids"]) > continuous.STEP_TOKENS["cpu"]
    answers.ask(pipeline, "it", text, **params)
    assert answers.wait(1)["it"] == expected


def test_a_row_that_was_left_out_of_a_step_finds_its_pages_as_they_were(
    pipelines: dict[str, TransformersPipeline],
    running: Callable[[str], TransformersPipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = continuous_rows.RowInputs._pages_of

    def forgets(self: Any, request: str, past: int) -> Any:
        self._known = {}
        return real(self, request, past)

    monkeypatch.setattr(continuous_rows.RowInputs, "_pages_of", forgets)
    expected = [alone(pipelines["llama"], text, PARAMS) for text in TEXTS]
    pipeline, answers = running("llama"), Answers()
    for at, text in enumerate(TEXTS):
        answers.ask(pipeline, at, text, **PARAMS)
    found = answers.wait(len(TEXTS))
    assert [found[at] for at in range(len(TEXTS))] == expected


def test_groups_are_of_about_one_length(running: Callable[[str], TransformersPipeline]) -> None:
    """Short rows beside a long one are not filled up to its length, where that would cost more than a group."""
    sizes: list[list[tuple[int, int]]] = []
    real = continuous_rows.RowInputs._grouped

    def grouped(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = real(self, *args, **kwargs)
        sizes.append([(len(group.bias), group.width) for group in found])
        return found

    pipeline, answers = running("llama"), Answers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuous_rows.RowInputs, "_grouped", grouped)
        patch.setattr(continuous_rows, "GROUP_BYTES", 2**15)
        answers.ask(pipeline, "long", "dog " * 200, **{**PARAMS, "max_new_tokens": 20})
        for at in range(4):
            answers.ask(pipeline, at, "fox", **{**PARAMS, "max_new_tokens": 20})
        answers.wait(5)
    full = [one for one in sizes if sum(rows for rows, _ in one) == 5]
    assert full
    assert all([rows for rows, _ in one] == [1, 4] and one[1][1] == 1 for one in full)


def test_nan_that_a_row_left_in_its_pages_reaches_no_other_row(
    pipelines: dict[str, TransformersPipeline], running: Callable[[str], TransformersPipeline]
) -> None:
    expected = alone(pipelines["llama"], "hello", PARAMS)
    pipeline, answers = running("llama"), Answers()
    handle = pipeline._pipe.model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: torch.full_like(output, torch.nan)
    )
    try:
        for at in range(3):
            answers.ask(pipeline, f"bad {at}", "dog " * (40 * at + 1), **PARAMS)
            answers.wait(at + 1)
    finally:
        handle.remove()
    answers.ask(pipeline, "good", "hello", **PARAMS)
    found = answers.wait(4)
    assert all(isinstance(found[f"bad {at}"], PipeqError) for at in range(3))
    assert found["good"] == expected


def test_a_layer_that_asks_for_more_runs_with_the_attention_of_transformers(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError("attention with a bend")

    monkeypatch.setattr(continuous_rows, "_attend_group", refuses)
    pipeline = load(tiny, "writer")
    assert not stream_of(pipeline).by_rows
    expected = alone(pipeline, "hello world", PARAMS)
    stream_of(pipeline).start()
    answers = Answers()
    try:
        answers.ask(pipeline, "it", "hello world", **PARAMS)
        assert answers.wait(1)["it"] == expected
    finally:
        stream_of(pipeline).stop()


@pytest.mark.parametrize("name", continuous_rows.UNKNOWN)
def test_what_attention_does_not_know_is_an_error(name: str) -> None:
    one = torch.zeros(1, 1, 1, 1)
    with pytest.raises(NotImplementedError, match=name):
        continuous_rows.attend(None, one, one, one, None, cache=None, **{name: 1})  # type: ignore[arg-type]


def test_a_model_that_adds_to_the_mask_runs_with_the_attention_of_transformers(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ALiBi does, and layers that leave out keys."""
    real = continuous_rows.attend

    def adds(module: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        return real(module, query, key, value, mask + torch.zeros(1, 1, 1, key.shape[2]), *args, **kwargs)

    monkeypatch.setitem(hf.AttentionInterface._global_mapping, continuous_manager.ATTENTION, adds)
    pipeline = load(tiny, "writer")
    assert not stream_of(pipeline).by_rows


def test_a_window_of_attention_is_left_to_transformers(tiny: Path) -> None:
    model = hf.AutoModelForCausalLM.from_pretrained(tiny_models.build("writer_padded", tiny))
    assert can_run_by_rows(model)
    model.config.sliding_window = 8
    assert not can_run_by_rows(model)
    model.config.sliding_window = None
    model.set_attn_implementation("eager")
    assert not can_run_by_rows(model)


def test_the_model_gets_its_attention_back(running: Callable[[str], TransformersPipeline]) -> None:
    pipeline = running("llama")
    config = pipeline._pipe.model.config
    assert config._attn_implementation == continuous_manager.ATTENTION
    stream_of(pipeline).stop()
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize("model", ["stretched_dynamic", "stretched_longrope"])
def test_rows_whose_length_would_change_how_others_are_read_are_refused(tiny: Path, model: str) -> None:
    pipeline = load(tiny, model)
    params = {**PARAMS, "max_new_tokens": 10}
    expected = alone(pipeline, "hello world", params)
    stream_of(pipeline).start()
    answers = Answers()
    try:
        answers.ask(pipeline, "short", "hello world", **params)
        answers.ask(pipeline, "long", "fox " * 40, **params)
        found = answers.wait(2)
    finally:
        stream_of(pipeline).stop()
    assert found["short"] == expected
    assert found["long"].code == "invalid_input"
    assert "only without `continuous`" in found["long"].message


#: What is private to transformers and overridden or called here, with its parameters.
OWN_PARTS: list[tuple[Any, list[str]]] = [
    (ContinuousBatchingManager.switch_to_cb_friendly_attn, ["self", "model", "auto_switch_to_flash"]),
    (ContinuousBatchingManager._create_batch_processor, ["self"]),
    (
        ModelRunner._forward_process_and_sample,
        ["self", "model", "batch_data", "carry_over_ids", "prev_output_ids", "output_ids"],
    ),
    (
        ModelRunner.__init__,
        ["self", "logit_processor", "cb_config", "inputs_and_outputs", "cache", "do_sample", "return_logprobs"],
    ),
    (
        ContinuousBatchingIOs.__init__,
        ["self", "cache", "config", "continuous_batching_config", "device", "model_dtype", "logit_processor"],
    ),
    (
        ContinuousBatchingIOs.prepare_batch_tensors,
        [
            "self",
            "requests_in_batch",
            "logits_processors",
            "use_decode_fast_path",
            "num_q_tokens",
            "max_kv_read",
            "use_padding",
        ],
    ),
    (ContinuousBatchingIOs.get_model_kwargs, ["self", "use_padding"]),
    (Sampling.__mro__[1].prepare_tensor_args, ["self", "requests_in_batch", "arg_storage"]),  # type: ignore[attr-defined]
    (FullAttentionCacheAllocator.get_cache_for_block_table, ["self", "layer_idx"]),
]


@pytest.mark.parametrize(("part", "expected"), OWN_PARTS, ids=lambda one: getattr(one, "__qualname__", ""))
def test_what_is_private_to_transformers_is_as_it_was(part: Any, expected: list[str]) -> None:
    assert sorted(inspect.signature(part).parameters) == sorted(expected)


def test_the_cache_is_laid_out_as_pages_are_read(running: Callable[[str], TransformersPipeline]) -> None:
    """Block n of a layer is the page that its views have there, and clearing it clears all layers of that block."""
    pipeline, answers = running("llama"), Answers()
    answers.ask(pipeline, "it", "dog " * 10, **{**PARAMS, "max_new_tokens": 1})
    answers.wait(1)
    manager = stream_of(pipeline)._manager
    assert isinstance(manager, Manager)
    cache = manager.batch_processor.cache
    assert isinstance(cache, PagedAttentionCache)
    pages = continuous_rows._Pages(cache)
    for layer, views in pages.layers.items():
        for view in views:
            view[7 * pages.stride] = 1.0
            assert view[7 * pages.stride].count_nonzero() == view[0].numel(), layer
    pages.clear(7, 3)
    for keys, values in pages.layers.values():
        for view in (keys, values):
            assert view[7 * pages.stride, :3].all()
            assert not view[7 * pages.stride, 3:].any()
