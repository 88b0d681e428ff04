"""One worker serves every task type: references go in, and the answers of transformers' own pipelines come out."""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from pipeq import Ref
from pipeq_worker.media.video import Video
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings
from pipeq_worker.stages.outputs import convert

from tests import samples, tiny_models
from tests.device import DEVICE
from tests.parity import assert_same
from tests.times import adds_up
from tests.zoo import SERVED, Zoo, inputs_of, refer, running

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def zoo(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    # With a prepare process; the other tests run all of it in one. `make long` has two, whatever the task type is.
    preparers = 2 if os.environ.get("LIFTED") == "all" else 1
    with running(tiny, tmp_path_factory.mktemp("zoo"), prepare_processes=preparers) as served:
        yield served


def read_object(entry: dict[str, Any]) -> Any:
    """The content of an object in a result."""
    data = (
        Path(urllib.parse.unquote(urllib.parse.urlparse(entry["uri"]).path)).read_bytes()
        if "uri" in entry
        else base64.b64decode(entry["base64"])
    )
    if entry["media_type"] == "image/png":
        return np.asarray(Image.open(io.BytesIO(data))).astype(np.int32).tolist()
    if entry["media_type"] == "audio/wav":
        with av.open(io.BytesIO(data)) as container:
            return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]).tolist()
    return np.load(io.BytesIO(data), allow_pickle=False).tolist()


def opened(result: Any) -> Any:
    """A result in which objects are replaced by their content."""
    if isinstance(result, dict):
        if "media_type" in result:
            shape = {"shape": result["shape"], "dtype": result["dtype"], "media_type": result["media_type"]}
            return {**shape, "content": read_object(result)}
        return {key: opened(one) for key, one in result.items()}
    return [opened(one) for one in result] if isinstance(result, list) else result


def expected(pipeline: TransformersPipeline, value: Any, params: dict[str, Any]) -> Any:
    """The answer of transformers, as the result of a task with a list."""
    if isinstance(value, Path):
        value = Video(value.read_bytes(), value.name, 10**6, 1000)
    output, objects = convert(
        pipeline.alone(value, dict(pipeline.merge(params).params)), audio_key=pipeline.task_type.audio_key
    )
    for one in objects:
        one.put_inline()
    return opened(json.loads(json.dumps(output)))


@pytest.mark.parametrize("task", SERVED)
def test_through_the_queue(zoo: Zoo, task: str) -> None:
    model, params = SERVED[task]
    values = inputs_of(task, zoo.inputs)
    sent = [refer(value, zoo.inputs, at) for at, value in enumerate(values)]
    ids = zoo.client.submit_many(task, [[one] for one in sent], params=params)
    got = [zoo.client.result(task_id, timeout_s=60) for task_id in ids]
    for status in zoo.client.status_many(ids):
        adds_up(status)
    pipeline = load_pipeline("it", PipelineSettings(task=task, model=str(tiny_models.build(model, zoo.models))), DEVICE)
    assert isinstance(pipeline, TransformersPipeline)
    for (mine,), value, message in zip(got, values, sent, strict=True):
        want = expected(pipeline, value, params)
        if task in ("image-text-to-text", "any-to-any"):
            # This task type repeats its input; our result repeats the references that were sent.
            assert [turn["content"] for turn in mine[0]["input_text"]] == json.loads(
                json.dumps([turn["content"] for turn in message], default=lambda ref: ref.model_dump(exclude_none=True))
            )
            mine, want = mine[0]["generated_text"][-1], want[0]["generated_text"][-1]
        mine = opened(mine)
        if task == "depth-estimation":
            near(mine, want)
            del mine["depth"]["content"], want["depth"]["content"]
        assert_same(mine, want)


@pytest.mark.parametrize("task", SERVED)
def test_a_row_of_a_job_has_the_result_of_a_task(zoo: Zoo, task: str) -> None:
    """Beside rows that fail, of which one is in the middle."""
    _, params = SERVED[task]
    sent = [refer(value, zoo.inputs, at) for at, value in enumerate(inputs_of(task, zoo.inputs))]
    # What no task type takes: an object with a field that none has.
    bad = {"inputs": {"no_such_field": 1}}
    job = zoo.client.jobs.submit(
        task, [{"inputs": sent[0]}, bad, *({"inputs": one} for one in sent[1:])], params=params
    )
    ids = zoo.client.submit_many(task, sent, params=params)
    assert zoo.client.jobs.wait(job, 60).codes == {"invalid_input": 1}
    rows = list(zoo.client.jobs.results(job))
    assert [one["line"] for one in rows if "error" in one] == [2]
    for row, task_id in zip((one["result"] for one in rows if "result" in one), ids, strict=True):
        mine, want = opened(row), opened(zoo.client.result(task_id, timeout_s=60))
        if task == "depth-estimation":
            near(mine, want)
            del mine["depth"]["content"], want["depth"]["content"]
        assert_same(mine, want)


def near(mine: dict[str, Any], want: dict[str, Any]) -> None:
    """Rounding to 256 shades can turn the smallest difference into one shade."""
    apart = np.abs(np.array(mine["depth"]["content"]) - np.array(want["depth"]["content"]))
    assert apart.max() <= 1


def test_objects_of_a_task_with_an_output_lie_beside_it(zoo: Zoo) -> None:
    image = samples.images()[0]
    path = zoo.inputs / "one.png"
    image.save(path)
    task = zoo.client.submit("depth-estimation", Ref.from_path(path), output=f"{zoo.results.as_uri()}/asked/")
    result = zoo.client.result(task, timeout_s=60)
    assert zoo.client.status(task).result_uri == f"{zoo.results.as_uri()}/asked/{task}.json"
    assert result["depth"]["uri"] == f"{zoo.results.as_uri()}/asked/{task}.objects/depth.png"
    # The object can be sent as an input unchanged.
    again = zoo.client.submit("image-classification", result["depth"])
    error = zoo.client.wait(again, timeout_s=60).error
    assert error is not None
    assert error.code == "input_forbidden"  # this worker may not read its results, but knew what it was given
