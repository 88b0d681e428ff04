"""One worker serves every task type: references go in, the answers of transformers' own pipelines come out."""

from __future__ import annotations

import base64
import io
import json
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from producers import Client, Ref, embedded
from tests import samples, tiny_models
from tests.parity import assert_same
from tests.worker_process import worker
from worker.loading import load
from worker.outputs import convert, wav
from worker.settings import PipelineSettings
from worker.transformers_pipeline import TransformersPipeline
from worker.video import Video

torch.set_num_threads(1)

NESTED = {"generate_kwargs": {"max_new_tokens": 6, "do_sample": False}}
GREEDY = {"max_new_tokens": 6, "num_beams": 1}
LABELS = {"candidate_labels": ["fox", "lazy dog", "politics and sports"]}
#: Task type -> tiny model, parameters.
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "text-classification": ("classifier", {"top_k": 2}),
    "token-classification": ("token_classifier", {"aggregation_strategy": "simple"}),
    "fill-mask": ("masked_bert", {"top_k": 2}),
    "zero-shot-classification": ("nli", LABELS),
    "feature-extraction": ("encoder", {"return_tensors": True}),
    "text-embedding": ("encoder", {}),
    "text-ranking": ("cross_encoder", {}),
    "text-generation": ("gpt2", {"max_new_tokens": 6, "do_sample": False}),
    "text2text-generation": ("t5", GREEDY),
    "summarization": ("t5", {**GREEDY, "min_length": 1}),
    "translation_en_to_de": ("t5", GREEDY),
    "question-answering": ("reader", {}),
    "table-question-answering": ("tapas", {}),
    "decision": ("decision_chat", {}),
    "image-classification": ("vit", {}),
    "image-feature-extraction": ("dinov2", {}),
    "image-segmentation": ("segformer", {}),
    "object-detection": ("yolos", {"threshold": 0.0}),
    "depth-estimation": ("dpt", {}),
    "keypoint-matching": ("superglue", {}),
    "zero-shot-image-classification": ("clip", LABELS),
    "zero-shot-object-detection": ("owlvit", {"threshold": 0.0, "top_k": 3}),
    "video-classification": ("videomae", {}),
    "image-to-image": ("upscaler", {}),
    "automatic-speech-recognition": ("ctc_layer_norm", {"return_timestamps": "word"}),
    "audio-classification": ("audio_group_norm", {}),
    "zero-shot-audio-classification": ("clap", LABELS),
    "text-to-audio": ("vits_quiet", {}),
    "document-question-answering": ("layoutlm", {}),
    "visual-question-answering": ("vilt", {"top_k": 2}),
    "image-to-text": ("captioner", {"max_new_tokens": 6}),
    "image-text-to-text": ("llava", NESTED),
    "any-to-any": ("qwen2_audio", NESTED),
}


@dataclass(frozen=True)
class Zoo:
    client: Client
    models: Path
    #: Folder that the worker may read, and where it puts objects.
    inputs: Path
    results: Path


@pytest.fixture(scope="module")
def zoo(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    folder = tmp_path_factory.mktemp("zoo")
    inputs, results = folder / "inputs", folder / "results"
    inputs.mkdir()
    results.mkdir()
    lines = [
        f'[inputs]\nallow = ["{inputs.as_uri()}/"]',
        f'[results]\nstore = "{results.as_uri()}/"\nallow = ["{results.as_uri()}/"]',
    ]
    for task, (model, _) in SERVED.items():
        path = tiny_models.build(model, tiny)
        lines.append(f'[pipelines.{task}]\nmodel = "{path}"\n')
    config = folder / "pipelines.toml"
    config.write_text("\n".join(lines))
    with embedded.valkey() as url, worker(folder, url, "--config", config) as process, Client(url) as client:
        process.wait_ready(client, *SERVED)
        yield Zoo(client, tiny, inputs, results)


def refer(value: Any, folder: Path, at: int) -> Any:
    """A decoded input -> the message's: images, audio and videos become files."""
    if isinstance(value, Image.Image):
        path = folder / f"{id(value)}-{at}.png"
        value.save(path)
        return Ref.from_path(path)
    if isinstance(value, np.ndarray):
        path = folder / f"{id(value)}-{at}.wav"
        path.write_bytes(wav(value, 16_000))
        return Ref.from_path(path)
    if isinstance(value, Path):
        return Ref.from_path(value)
    if isinstance(value, dict):
        return {key: refer(one, folder, at) for key, one in value.items()}
    return [refer(one, folder, at) for one in value] if isinstance(value, list | tuple) else value


def inputs_of(task: str, folder: Path) -> list[Any]:
    texts, images = samples.texts(4), samples.images()
    pairs = [{"text": one, "text_pair": two} for one, two in zip(texts, texts[::-1], strict=True)]
    asked = [{"image": image, "question": text} for image, text in zip(images, texts, strict=True)]
    read = [{"question": "what is it ?", "context": " ".join(samples.texts(n))} for n in (1, 9, 4)]
    sees = "image" in task or "detection" in task or "depth" in task
    usual = samples.sounds() if "audio-" in task else images if sees else texts
    return {
        "fill-mask": samples.masked_texts("[MASK]"),
        "text-ranking": pairs,
        "question-answering": read,
        "table-question-answering": samples.tables(),
        "decision": samples.decisions(),
        "keypoint-matching": [{"images": list(pair)} for pair in samples.image_pairs()],
        "zero-shot-object-detection": samples.queries(),
        "video-classification": samples.videos(folder) if task == "video-classification" else [],
        "automatic-speech-recognition": samples.sounds(),
        "document-question-answering": samples.documents(),
        "visual-question-answering": asked,
        "image-text-to-text": samples.image_chats(),
        "any-to-any": samples.audio_chats(),
    }.get(task, usual)


def read_object(entry: dict[str, Any]) -> Any:
    """What an object of a result holds."""
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
    """A result with its objects read."""
    if isinstance(result, dict):
        if "media_type" in result:
            shape = {"shape": result["shape"], "dtype": result["dtype"], "media_type": result["media_type"]}
            return {**shape, "content": read_object(result)}
        return {key: opened(one) for key, one in result.items()}
    return [opened(one) for one in result] if isinstance(result, list) else result


def expected(pipeline: TransformersPipeline, value: Any, params: dict[str, Any]) -> Any:
    """What transformers answers, as the result of a task in a list."""
    if isinstance(value, Path):
        value = Video(value.read_bytes(), value.name, 10**6, 1000)
    output, objects = convert(pipeline.alone(value, pipeline.merge(params)))
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
    pipeline = load("it", PipelineSettings(task=task, model=str(tiny_models.build(model, zoo.models))), "cpu")
    assert isinstance(pipeline, TransformersPipeline)
    for (mine,), value, message in zip(got, values, sent, strict=True):
        want = expected(pipeline, value, params)
        if task in ("image-text-to-text", "any-to-any"):
            # It repeats its input: ours the references that were sent.
            assert [turn["content"] for turn in mine[0]["input_text"]] == json.loads(
                json.dumps([turn["content"] for turn in message], default=lambda ref: ref.model_dump(exclude_none=True))
            )
            mine, want = mine[0]["generated_text"][-1], want[0]["generated_text"][-1]
        mine = opened(mine)
        if task == "depth-estimation":
            near(mine, want)
            del mine["depth"]["content"], want["depth"]["content"]
        assert_same(mine, want)


def near(mine: dict[str, Any], want: dict[str, Any]) -> None:
    """Rounding to 256 shades turns the smallest difference into one."""
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
    # And is an input as it is.
    again = zoo.client.submit("image-classification", result["depth"])
    error = zoo.client.wait(again, timeout_s=60).error
    assert error is not None
    assert error.code == "input_forbidden"  # this worker may not read its results, but knew what it was given
