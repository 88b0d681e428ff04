"""How a model becomes a pipeline: its task type, its parts, its device, and its source."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from click.testing import CliRunner
from pipeq.contract import unlike
from pipeq.contract.errors import PipeqError
from pipeq.demo.embedded import S3Server
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.transformers_loading import task_type_of_config
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.process.cli import worker
from pipeq_worker.settings.sections import PipelineSettings, S3Settings

from tests import samples, tiny_models
from tests.integration.fetching import use_s3
from tests.parity import assert_same

torch.set_num_threads(1)


def settings(tiny: Path, model: str, **more: Any) -> PipelineSettings:
    return PipelineSettings(model=str(tiny_models.build(model, tiny)), **more)


def answer(pipeline: TransformersPipeline, text: str = "the quick fox", **params: Any) -> Any:
    merged = pipeline.merge(params)
    (features,) = pipeline.preprocess(text, merged)
    return pipeline.postprocess(pipeline.forward([features], merged), merged)


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("classifier", "text-classification"),
        ("nli", "zero-shot-classification"),
        ("cross_encoder", "text-ranking"),
        ("token_classifier", "token-classification"),
        ("masked_bert", "fill-mask"),
        ("encoder", "feature-extraction"),
        ("gpt2", "text-generation"),
        ("t5", "text2text-generation"),
        ("bart", "text2text-generation"),
        ("reader", "question-answering"),
        ("tapas", "table-question-answering"),
        ("layoutlm", "document-question-answering"),
        ("vit", "image-classification"),
        ("vit_encoder", "image-feature-extraction"),
        ("segformer", "image-segmentation"),
        ("detr", "object-detection"),
        ("dpt", "depth-estimation"),
        ("superglue", "keypoint-matching"),
        ("sam", "mask-generation"),
        ("clip", "zero-shot-image-classification"),
        ("owlvit", "zero-shot-object-detection"),
        ("videomae", "video-classification"),
        ("upscaler", "image-to-image"),
        ("vilt", "visual-question-answering"),
        ("captioner", "image-to-text"),
        ("llava", "image-text-to-text"),
        ("ctc_layer_norm", "automatic-speech-recognition"),
        ("whisper", "automatic-speech-recognition"),
        ("audio_group_norm", "audio-classification"),
        ("clap", "zero-shot-audio-classification"),
        ("vits", "text-to-audio"),
    ],
)
def test_a_model_says_what_it_is_for(tiny: Path, model: str, task: str) -> None:
    config = transformers.AutoConfig.from_pretrained(tiny_models.build(model, tiny))
    assert task_type_of_config(config) == task


def test_a_folder_of_sentence_transformers_is_for_embeddings(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_models.build("encoder", tiny), folder)
    (folder / "modules.json").write_text("[]")
    assert load_pipeline("mine", PipelineSettings(model=str(folder)), "cpu").task_type.name == "text-embedding"


def test_a_pipeline_of_any_name_is_for_what_its_model_is_for(tiny: Path) -> None:
    assert load_pipeline("reviews", settings(tiny, "classifier"), "cpu").task_type.name == "text-classification"


def test_a_model_alone_on_the_command_line(tiny: Path, tmp_path: Path) -> None:
    model = tiny_models.build("classifier", tiny)
    done = CliRunner().invoke(worker, [str(model), "--check"])
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.output)["pipelines"]) == ["text-classification"]


def test_what_is_neither_task_type_nor_model_is_refused() -> None:
    with pytest.raises(PipeqError, match="'reviews' is no task type; there are: any-to-any, audio-classification"):
        load_pipeline("reviews", PipelineSettings(), "cpu")


def test_a_model_alone_that_is_none_says_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(worker, [str(tmp_path / "no" / "model"), "--check"])
    assert done.exit_code == 2
    assert "is no model that can be read" in done.output


def test_a_default_model_is_named(tiny: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    """There is no Hub in the tests, so the default model is a tiny one."""
    entry = transformers.pipelines.SUPPORTED_TASKS["text-classification"]
    local = {"model": (str(tiny_models.build("classifier", tiny)), "main")}
    monkeypatch.setitem(entry, "default", local)
    with caplog.at_level(logging.INFO):
        pipeline = load_pipeline("text-classification", PipelineSettings(), "cpu")
    assert pipeline.model.id == local["model"][0]
    assert f"{local['model'][0]} (the default model) for text-classification" in caplog.text


def test_parts_of_its_own(tiny: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    model = tiny_models.build("classifier", tiny)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, bare)
    pipeline = load_pipeline("text-classification", PipelineSettings(model=str(bare), tokenizer=str(model)), "cpu")
    assert_same(answer(pipeline), answer(load_pipeline("text-classification", settings(tiny, "classifier"), "cpu")))


def test_a_vocoder_and_a_voice(tiny: Path) -> None:
    """A model of spectrograms needs a vocoder and a voice, which is a list of numbers in the message."""
    one = settings(tiny, "speecht5", vocoder=str(tiny_models.build("vocoder", tiny)))
    pipeline = load_pipeline("text-to-speech", one, "cpu")
    result = answer(pipeline, "hello fox", forward_params={"speaker_embeddings": [[0.1] * 512]})
    assert result["sampling_rate"] == 16_000
    assert result["audio"].size > 0


def test_dtype_and_attention(tiny: Path) -> None:
    pipeline = load_pipeline(
        "text-classification", settings(tiny, "classifier", dtype="bfloat16", attn_implementation="eager"), "cpu"
    )
    assert pipeline.model.dtype == "bfloat16"
    assert pipeline._pipe.model.config._attn_implementation == "eager"
    assert answer(pipeline)["label"].startswith("LABEL_")


@pytest.mark.parametrize("memory", [None, {"cpu": "120KB", "disk": "1GB"}])
def test_a_device_map_spreads_a_model_over_memory_and_disk(
    tiny: Path, tmp_path: Path, memory: dict[str, str] | None
) -> None:
    """With accelerate: the part that fits nowhere else is kept on disk and loaded layer by layer."""
    pipeline = load_pipeline(
        "text-generation",
        settings(tiny, "llama", device_map="auto", max_memory=memory, offload_folder=str(tmp_path / "off")),
        "cpu",
    )
    whole = load_pipeline("text-generation", settings(tiny, "llama"), "cpu")
    params = {"max_new_tokens": 8, "do_sample": False}
    assert answer(pipeline, **params) == answer(whole, **params)
    placed = {str(device) for device in getattr(pipeline._pipe.model, "hf_device_map", {"": "cpu"}).values()}
    assert placed == ({"cpu", "disk"} if memory else {"cpu"})
    assert set(pipeline.model.device.split(", ")) == placed


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own call
def test_an_adapter_changes_the_answer(tiny: Path, tmp_path: Path) -> None:
    import peft

    base = tiny_models.build("classifier", tiny)
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    lora = peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    plain = load_pipeline("text-classification", settings(tiny, "classifier"), "cpu")
    with_adapter = load_pipeline(
        "text-classification", settings(tiny, "classifier", adapter=str(tmp_path / "adapter")), "cpu"
    )
    assert answer(with_adapter) != answer(plain)
    inputs = plain._pipe.tokenizer("the quick fox", return_tensors="pt")
    want = adapted.eval()(**inputs).logits.softmax(-1)[0].max().item()
    assert answer(with_adapter)["score"] == pytest.approx(want, abs=1e-5)


def test_a_pickle_is_not_loaded_unless_it_is_allowed(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_models.build("classifier", tiny), folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(PipeqError, match="allow_pickle = true"):
        load_pipeline("text-classification", PipelineSettings(model=str(folder)), "cpu")
    assert answer(load_pipeline("text-classification", PipelineSettings(model=str(folder), allow_pickle=True), "cpu"))


def _as_pickle(folder: Path, to: Path, weights: str, pickle: str) -> Path:
    shutil.copytree(folder, to)
    torch.save(safetensors.torch.load_file(to / weights), to / pickle)
    (to / weights).unlink()
    return to


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own call
@pytest.mark.parametrize("part", ["vocoder", "default vocoder", "adapter", "language"])
def test_no_part_of_a_model_is_loaded_from_a_pickle(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The model's own weights are safetensors, but a part beside them is not."""
    if "vocoder" in part:
        task, model = "text-to-speech", settings(tiny, "speecht5")
        folder = tiny_models.build("vocoder", tiny)
        pickled = _as_pickle(folder, tmp_path / "part", "model.safetensors", "pytorch_model.bin")
        more: dict[str, Any] = {"vocoder": str(pickled)}
        if part == "default vocoder":
            more = {}
            monkeypatch.setattr("transformers.pipelines.text_to_audio.DEFAULT_VOCODER_ID", str(pickled))
    elif part == "adapter":
        import peft

        task, model = "text-classification", settings(tiny, "classifier")
        lora = peft.LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS")
        base = transformers.AutoModelForSequenceClassification.from_pretrained(model.model)
        peft.get_peft_model(base, lora).save_pretrained(tmp_path / "whole")
        more = {
            "adapter": str(
                _as_pickle(tmp_path / "whole", tmp_path / "part", "adapter_model.safetensors", "adapter_model.bin")
            )
        }
    else:
        # Speech models for many languages keep a file of weights for each, so a language's file is tested, too.
        task, folder = "automatic-speech-recognition", tmp_path / "part"
        shutil.copytree(tiny_models.build("ctc_layer_norm", tiny), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"adapter_attn_dim": 4}))
        torch.save({}, folder / "adapter.deu.bin")
        model, more = PipelineSettings(model=str(folder)), {"model_kwargs": {"target_lang": "deu"}}
    with pytest.raises(PipeqError, match="allow_pickle = true") as caught:
        load_pipeline(task, model.model_copy(update=more), "cpu")
    assert caught.value.code == "invalid_settings"
    if "vocoder" in part:
        assert load_pipeline(task, model.model_copy(update=more | {"allow_pickle": True}), "cpu")
    assert torch.load is torch.serialization.load


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    use_s3(s3_server, monkeypatch, tmp_path)
    monkeypatch.setenv("PIPEQ_CACHE", str(tmp_path / "cache"))
    return s3_server


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_model_in_an_archive_on_s3(s3: S3Server, tiny: Path, tmp_path: Path, kind: str) -> None:
    model, archive = tiny_models.build("classifier", tiny), tmp_path / f"model.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for file in model.iterdir():
                packed.write(file, file.name)
    else:
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(model, "release-1")
    s3.client().upload_file(str(archive), "inputs", f"models/it.{kind}")
    one = PipelineSettings(model=f"s3://inputs/models/it.{kind}")
    plain = answer(load_pipeline("text-classification", settings(tiny, "classifier"), "cpu"))
    for _ in range(2):
        pipeline = load_pipeline("mine", one, "cpu", S3Settings())
        assert pipeline.model.id == one.model
        assert_same(answer(pipeline), plain)
    assert len([name for name in os.listdir(tmp_path / "cache" / "models") if not name.startswith(".")]) == 1


def test_why_a_model_cannot_be_loaded(tiny: Path) -> None:
    """transformers tries several classes, and gives the reasons after pages of tracebacks."""
    spread = settings(tiny, "llama", device_map="auto", max_memory={"0": "1GiB", "cpu": "1GiB"})
    with pytest.raises(PipeqError, match=r"accelerator|Device 0 is not available|CUDA"):
        load_pipeline("text-generation", spread, "cpu")


def test_an_archive_that_leads_outside_is_refused(s3: S3Server, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{}")
    with tarfile.open(tmp_path / "evil.tar", "w") as packed:
        packed.add(tmp_path / "x", "../../config.json")
    s3.client().upload_file(str(tmp_path / "evil.tar"), "inputs", "models/evil.tar")
    with pytest.raises(PipeqError, match=r"cannot be unpacked: its member '\.\./\.\./config\.json' would"):
        load_pipeline("mine", PipelineSettings(model="s3://inputs/models/evil.tar"), "cpu", S3Settings())
    assert not (tmp_path / "cache" / "config.json").exists()
    assert os.listdir(tmp_path / "cache" / "models") == []


@pytest.mark.parametrize(
    ("model", "sentence"),
    [("s3://inputs/models/none.tar.gz", "the store does not have it"), ("s3://inputs/models/", "is no archive")],
)
def test_an_archive_that_is_not_there(s3: S3Server, model: str, sentence: str) -> None:
    with pytest.raises(PipeqError, match=sentence) as caught:
        load_pipeline("mine", PipelineSettings(model=model), "cpu", S3Settings())
    assert caught.value.code == "invalid_settings"


def test_a_decision_by_any_chat_model_fills_no_memory(tiny: Path) -> None:
    """transformers treats it as a model with a head, and would fill billions of parameters with random numbers."""
    pipeline = load_pipeline("decision", settings(tiny, "decision_chat"), "cpu")
    assert sum(parameter.numel() for parameter in pipeline._pipe.model.parameters()) < 10**6
    assert answer_of_decision(pipeline)


def answer_of_decision(pipeline: TransformersPipeline) -> Any:
    call = pipeline.call({})
    (features,) = pipeline.preprocess(samples.decisions()[0], call)
    return pipeline.postprocess(pipeline.forward([features], call), call)


def test_models_of_one_name_with_other_weights_are_told_apart(tiny: Path, tmp_path: Path) -> None:
    """Two folders of one name, on two machines: a copy is the same model, one that was trained on is another."""
    found = {}
    for name in ("model", "copy", "trained"):
        folder = tmp_path / name / "model"
        shutil.copytree(tiny_models.build("classifier", tiny), folder)
        if name == "trained":
            weights = {
                key: one * 1.01 for key, one in safetensors.torch.load_file(folder / "model.safetensors").items()
            }
            safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        task = "sentiment-analysis" if name == "copy" else "text-classification"
        found[name] = load_pipeline("it", PipelineSettings(task=task, model=str(folder)), "cpu").identity
    assert unlike.differences(found["model"], found["copy"]) is None
    sentence = unlike.differences(found["model"], found["trained"])
    assert sentence is not None
    assert sentence.startswith("files ")
    # A long path is cut.
    assert f" of {str(tmp_path)[:30]}" in sentence
