"""One worker that serves every task type with a tiny model, and inputs for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pipeq import Client, Ref
from pipeq.demo import embedded
from pipeq_worker.stages.files import wav

from tests import samples, tiny_models
from tests.worker_process import WorkerProcess, worker

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
    process: WorkerProcess
    models: Path
    #: The folder that the worker may read, and the folder for its objects.
    inputs: Path
    results: Path


@contextmanager
def running(
    models: Path, folder: Path, more: str = "", params: Mapping[str, Sequence[str]] | None = None, **env: Any
) -> Iterator[Zoo]:
    """A Valkey and a worker of their own.

    Args:
        models: where tiny models are, or are built.
        folder: for everything else.
        more: lines of the worker's settings beside those of the pipelines; tables only.
        params: pipeline -> lines of its own parameters.
        env: settings by keyword.
    """
    params = params or {}
    inputs, results = folder / "inputs", folder / "results"
    inputs.mkdir()
    results.mkdir()
    lines = [
        f'[inputs]\nallow = ["{inputs.as_uri()}/"]',
        f'[results]\nstore = "{results.as_uri()}/"\nallow = ["{results.as_uri()}/"]',
        more,
    ]
    for task, (model, _) in SERVED.items():
        path = tiny_models.build(model, models)
        own = "params = { " + ", ".join(params[task]) + " }\n" if task in params else ""
        lines.append(f'[pipelines.{task}]\nmodel = "{path}"\n{own}')
    config = folder / "pipelines.toml"
    config.write_text("\n".join(lines))
    with (
        embedded.valkey() as url,
        worker(folder, url, "--config", config, **env) as process,
        Client(url, allow=[f"{results.as_uri()}/"]) as client,
    ):
        process.wait_ready(client, *SERVED)
        yield Zoo(client, process, models, inputs, results)


def refer(value: Any, folder: Path, at: int) -> Any:
    """A decoded input in the form of a message: images, audio and videos become files."""
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
