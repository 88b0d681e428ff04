"""A task's parameters are sorted once, and changes that transformers makes to them do not reach the next item."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeq_worker.media.video import Video
from pipeq_worker.models.call import Call
from pipeq_worker.models.seeding import ITEMS, measured
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.stages import prepare
from pipeq_worker.stages.infer import infer
from pipeq_worker.stages.task import Input, Task

from tests.integration.conftest import Loaded
from tests.parity import assert_same
from tests.zoo import SERVED, inputs_of

torch.set_num_threads(1)

#: In addition to those of SERVED: parameters with nested dictionaries and lists, which transformers could change.
MORE: list[tuple[str, str, dict[str, Any]]] = [
    ("text-generation", "gpt2", {"max_new_tokens": 3, "num_beams": 2, "stop_strings": ["fox"]}),
    ("text2text-generation", "t5", {"max_new_tokens": 3, "bad_words_ids": [[5]]}),
    ("automatic-speech-recognition", "whisper", {"generate_kwargs": {"max_new_tokens": 3}, "return_timestamps": True}),
    ("text-to-audio", "speecht5", {"forward_params": {"speaker_embeddings": [[0.1] * 512]}}),
    ("feature-extraction", "encoder", {"tokenize_kwargs": {"truncation": True, "max_length": 8}}),
    ("fill-mask", "masked_bert", {"targets": ["fox", "dog"], "tokenizer_kwargs": {"truncation": True}}),
]
CASES = [*((task, *one) for task, one in SERVED.items()), *MORE]


def answers(pipeline: TransformersPipeline, values: list[Any], call: Call) -> list[Any]:
    """Runs a task with several inputs through the stages that read its parameters."""
    inputs = [Input({"it": copy.deepcopy(one)}, is_plain=True) for one in values]
    task = Task(id="it", pipeline=pipeline, call=call, inputs=inputs)
    found: list[list[Any]] = [[] for _ in values]
    for item in (item for at in range(len(inputs)) for item in prepare.items(task, at)):
        infer(pipeline, [item])
        assert item.error is None
        found[item.index].append(item.output)
    results = [pipeline.postprocess(outputs, call) for outputs in found]
    return [pipeline.result(result, value, call) for result, value in zip(results, values, strict=True)]


@pytest.mark.parametrize(("task", "model", "params"), CASES, ids=lambda one: one if isinstance(one, str) else "")
def test_parameters_are_sorted_once_and_nothing_changes_them(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, model: str, params: dict[str, Any]
) -> None:
    pipeline = loaded(task, model)
    values = inputs_of(task, tmp_path)[:2]
    values = [Video(one.read_bytes(), one.name, 10**6, 1000) if isinstance(one, Path) else one for one in values]
    sorted_by, times = type(pipeline._pipe)._sanitize_parameters, []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        times.append(kwargs)
        return sorted_by(self, *args, **kwargs)

    monkeypatch.setattr(type(pipeline._pipe), "_sanitize_parameters", counted)
    # Tests of other files, which run before in the same process, may have had the same parameters.
    pipeline.calls._calls.clear()
    call = pipeline.merge(params)
    before = repr(call)
    torch.manual_seed(0)
    first = answers(pipeline, values, call)
    assert len(times) == 1
    assert repr(call) == before
    torch.manual_seed(0)
    again = answers(pipeline, values, call)
    assert len(times) == 1
    for one, other in zip(first, again, strict=True):
        assert_same(one, other)


def test_calls_share_a_batch_where_the_forward_pass_is_equal(loaded: Loaded) -> None:
    pipeline = loaded("text-classification", "classifier")
    keys = [pipeline.merge(params).key for params in ({}, {"top_k": 1}, {"top_k": 2})]
    assert len(set(keys)) == 1
    writes = loaded("text-generation", "gpt2")
    asked = ({"max_new_tokens": 2}, {"max_new_tokens": 3}, {"max_new_tokens": 2, "return_full_text": False})
    first, other, same = (writes.merge(params).key for params in asked)
    assert first == same != other


def test_what_is_handed_out_is_a_copy_down_to_its_lists_but_not_to_its_tensors() -> None:
    voice = torch.zeros(3)
    call = Call({}, {"a": [{"b": 1}]}, {"generate_kwargs": {"x": [1]}, "voice": voice}, {}, key="k")
    given = call.handed_out()
    given.preprocess["a"][0].clear()
    given.forward["generate_kwargs"]["x"].append(2)
    given.forward.pop("generate_kwargs")
    given.postprocess["new"] = 1
    assert call.preprocess == {"a": [{"b": 1}]}
    assert call.forward == {"generate_kwargs": {"x": [1]}, "voice": voice}
    assert call.postprocess == {}
    assert given.forward["voice"] is voice
    assert given.key == "k"


#: Task types of whose sample no two share a pass.
ALONE = {"table-question-answering", "decision", "keypoint-matching", "text-to-audio", "any-to-any"}


@pytest.mark.parametrize("task", SERVED)
def test_every_pipeline_says_what_its_first_passes_take(loaded: Loaded, task: str) -> None:
    pipeline = loaded(task, SERVED[task][0])
    one, *more = measured(pipeline, 0.0)
    assert one[0] == 1
    shares = task not in ALONE
    assert [items for items, _, _ in more] == ([min(ITEMS, pipeline.limits.max_size)] if shares else [])
    assert all(cost >= items and seconds > 0 for items, cost, seconds in (one, *more))
    assert not measured(pipeline, 2.0)
