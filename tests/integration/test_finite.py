"""NaN in a model's output is an error of its item, in every task type, whatever the result would look like."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pipeq_worker.media.video import Video
from pipeq_worker.models import finite
from pipeq_worker.models.call import Call
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.quirks.vision import MaskGeneration
from pipeq_worker.models.task_types import TASK_TYPES
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings
from pipeq_worker.stages.infer import infer
from pipeq_worker.stages.task import Item, Task
from safetensors.torch import load_file, save_file

from tests import samples, tiny_models
from tests.device import DEVICE
from tests.integration.conftest import Loaded
from tests.zoo import SERVED, inputs_of

torch.set_num_threads(1)

#: A second model, or other parameters, for task types that answer in several ways.
MORE: list[tuple[str, str, dict[str, Any]]] = [
    ("text-generation", "gpt2", {"max_new_tokens": 4, "do_sample": True}),
    ("text-generation", "gpt2", {"max_new_tokens": 4, "num_beams": 3}),
    ("text2text-generation", "bart", {"max_new_tokens": 4, "num_beams": 2}),
    ("automatic-speech-recognition", "whisper", {"max_new_tokens": 4}),
    ("text-to-audio", "musicgen", {"generate_kwargs": {"max_new_tokens": 4}}),
    ("text-to-audio", "speecht5", {"forward_params": {"speaker_embeddings": [[0.1] * 512]}}),
    ("visual-question-answering", "blip_vqa", {"max_new_tokens": 4}),
    ("visual-question-answering", "blip2", {"max_new_tokens": 4}),
    ("image-to-text", "blip_caption", {"max_new_tokens": 4}),
    ("image-segmentation", "detr_panoptic", {}),
    ("keypoint-matching", "lightglue", {}),
    ("zero-shot-image-classification", "siglip", SERVED["zero-shot-image-classification"][1]),
    ("decision", "decision_head", {}),
]
CASES = [(task, *one) for task, one in SERVED.items()] + MORE


def items_of(pipeline: TransformersPipeline, values: list[Any], call: Call) -> list[Item[Task]]:
    """The rows of several inputs that may share a batch with the first one."""
    task, items = Task(id="it", pipeline=pipeline, call=call), []
    for index, value in enumerate(values):
        rows = pipeline.prepare(copy.deepcopy(value), call)
        items += [Item(task, index, at, r.features, r.group, r.cost, r.nbytes) for at, r in enumerate(rows)]
    return [item for item in items if item.group == items[0].group or item is items[0]]


@pytest.mark.parametrize(("task", "model", "params"), CASES, ids=lambda one: one if isinstance(one, str) else "")
def test_weights_that_are_no_numbers(
    loaded: Loaded, tmp_path: Path, task: str, model: str, params: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = loaded(task, model)
    merged = pipeline.merge(params)
    values = inputs_of(task, tmp_path)[: 1 if model == "whisper" else 2]
    values = [Video(one.read_bytes(), one.name, 10**6, 1000) if isinstance(one, Path) else one for one in values]
    items = items_of(pipeline, values, merged)
    infer(pipeline, items)  # type: ignore[arg-type]
    assert [item.error for item in items] == [None] * len(items)
    with no_numbers(pipeline):
        broken = items_of(pipeline, values, merged)
        infer(pipeline, broken)  # type: ignore[arg-type]
        pipeline.warm_up()
    for item in broken:
        assert item.error is not None
        assert item.error.code == "inference_failed"
        assert item.error.message == f"'it': {finite.SENTENCE}"
    assert f"warm-up: 'it': {finite.SENTENCE}" in caplog.text


@contextmanager
def no_numbers(pipeline: TransformersPipeline) -> Iterator[None]:
    """Sets every weight of a model to NaN inside the block."""
    parts = [pipeline._pipe.model, getattr(pipeline._pipe, "vocoder", None)]
    found = [one for part in parts if part is not None for one in part.parameters() if one.is_floating_point()]
    kept, rebuild = [one.detach().clone() for one in found], pipeline.rebuild
    pipeline.rebuild = None  # else it is loaded anew where the pass raises
    with torch.no_grad():
        for one in found:
            one.fill_(float("nan"))
        try:
            yield
        finally:
            for one, before in zip(found, kept, strict=True):
                one.copy_(before)
            pipeline.rebuild = rebuild


def test_a_checkpoint_of_nan_starts_and_its_tasks_fail(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_models.build("gpt2", tiny), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: one * float("nan") for name, one in weights.items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    pipeline = load_pipeline("it", PipelineSettings(task="text-generation", model=str(tmp_path)), DEVICE)
    assert finite.SENTENCE in caplog.text
    assert isinstance(pipeline, TransformersPipeline)
    items = items_of(pipeline, ["hello"], pipeline.merge({"max_new_tokens": 3, "do_sample": True}))
    infer(pipeline, items)  # type: ignore[arg-type]
    assert items[0].error is not None
    assert items[0].error.code == "inference_failed"
    pipeline.recover()


def test_every_task_type_has_a_case() -> None:
    names = {"translation" if task.startswith("translation") else task for task, *_ in CASES}
    assert names == {row.name for row in TASK_TYPES.values() if not row.untested}


@pytest.mark.parametrize(
    ("task", "model", "params"),
    [
        ("text-classification", "classifier", {}),
        ("token-classification", "token_classifier", {}),
        ("feature-extraction", "encoder", {"return_tensors": True}),
        ("text-embedding", "encoder", {}),
        ("zero-shot-classification", "nli", {"candidate_labels": ["fox", "dog"]}),
        ("text-generation", "gpt2", {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2}),
        ("text-generation", "gpt2", {"max_new_tokens": 3, "do_sample": True}),
    ],
)
def test_a_neighbour_of_nan_has_its_answer(loaded: Loaded, task: str, model: str, params: dict[str, Any]) -> None:
    """A word's weights (or those of position 12, if the output shares them) are NaN: only the long text fails."""
    pipeline = loaded(task, model)
    merged = pipeline.merge(params)
    texts = ["hello world", "the fox", "what ?", "42 " * 12]
    table = pipeline._pipe.model.get_input_embeddings().weight
    rows = slice(*[pipeline._pipe.tokenizer.convert_tokens_to_ids("42") + more for more in (0, 1)])
    if model == "gpt2":
        table, rows = pipeline._pipe.model.transformer.wpe.weight, slice(11, None)
    kept = table.detach().clone()
    try:
        with torch.no_grad():
            table[rows] = float("nan")
        items = items_of(pipeline, texts, merged)
        infer(pipeline, items)  # type: ignore[arg-type]
    finally:
        with torch.no_grad():
            table.copy_(kept)
    assert len(items) >= len(texts)
    assert {item.index for item in items if item.error is not None} == {3}


def test_mask_generation(tiny: Path) -> None:
    """Its postprocessing needs torchvision, so only its forward passes run here."""
    pipe = transformers.pipeline("mask-generation", model=str(tiny_models.build("sam", tiny)), device=DEVICE)
    finite.hook(pipe.model)
    call = Call({}, *pipe._sanitize_parameters(points_per_batch=8, points_per_crop=4))
    for value, is_bad in ((0.0, False), (float("nan"), True)):
        quirks = MaskGeneration(pipe)
        if is_bad:
            for weights in pipe.model.parameters():
                weights.data.fill_(value)
        (features,) = quirks.preprocess(pipe, samples.images()[0], call)
        with finite.watched(1) as watch:
            (output,) = quirks.forward(pipe, [features], call)
        assert (any(watch.bad()) or finite.not_finite(output, 0, 0, left=False)) == is_bad


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("output", "is_wrong"),
    [
        ({"logits": torch.tensor([[0.0, -INF]])}, False),  # a token that is ruled out
        ({"logits": torch.tensor([[0.0, INF]])}, True),
        ({"logits": torch.tensor([[0.0, NAN]])}, True),
        ({"enc_outputs_coord_logits": torch.tensor([[0.0, INF]])}, False),  # a place that is no proposal
        ({"enc_outputs_coord_logits": torch.tensor([[0.0, NAN]])}, True),
        ({"last_hidden_state": torch.tensor([[[0.0, -INF]]])}, True),
        ((torch.tensor([[[1.0, 2.0], [3.0, NAN]]]),), True),
        ({"embedding": torch.tensor([[-INF, 1.0]])}, True),
        ({"audio": torch.tensor([0.0, NAN])}, True),
        ([{"masks": torch.tensor([[True]]), "iou_scores": torch.tensor([NAN])}], True),
        ({"parts": [{"scores": torch.tensor([[NAN]])}]}, True),
        ({"generated_sequence": torch.tensor([[1, 2]]), "text": "nan", "empty": torch.empty(1, 0)}, False),
        ({"depth": torch.tensor(NAN)}, True),
        (torch.tensor([[INF]], dtype=torch.float16), True),
    ],
)
def test_what_is_no_answer(output: Any, is_wrong: bool) -> None:
    assert finite.not_finite(output, 0, 0, left=False) == is_wrong
    # One look at a batch never finds it finite then; it may leave it open.
    good = {"logits": torch.rand(1, 3)}
    assert not (is_wrong and finite.are_finite([good, output, good]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_look_at_a_batch(kind: torch.dtype, bad: float) -> None:
    outputs: list[Any] = [{"logits": torch.rand(1, 3).to(kind), "ids": torch.arange(3)} for _ in range(8)]
    assert finite.are_finite(outputs)
    assert finite.are_finite([*outputs, {"logits": torch.rand(1, 2)}])
    assert not finite.are_finite([*outputs, (torch.rand(1, 3),)])
    assert not finite.are_finite([*outputs, {"logits": torch.rand(1, finite.SMALL + 1)}])
    outputs[5]["logits"][0, 1] = bad
    assert not finite.are_finite(outputs)


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_nobodys(left: bool) -> None:
    rows = torch.ones(1, 3, 2)
    rows[:, 0 if left else 2] = NAN
    assert not finite.not_finite({"logits": rows}, 2, 3, left=left)
    assert finite.not_finite({"logits": rows}, 2, 3, left=not left)
    assert finite.not_finite({"logits": rows}, 3, 3, left=left)
