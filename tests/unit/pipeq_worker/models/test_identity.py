"""What decides a pipeline's answers: every setting of a pipeline either counts or not, and so does every file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeq_worker.models.identity import fingerprint, of_settings
from pipeq_worker.settings.sections import PipelineSettings

#: Setting -> a value that no default is.
COUNTS: dict[str, Any] = {
    "revision": "v2",
    "tokenizer": "a/b",
    "image_processor": "a/b",
    "feature_extractor": "a/b",
    "processor": "a/b",
    "vocoder": "a/b",
    "adapter": "a/b",
    "params": {"top_k": 3},
    "model_kwargs": {"num_labels": 3},
}
#: These change where, how fast and how much at once; or what is refused.
DOES_NOT_COUNT: dict[str, Any] = {
    "device": "cuda:0",
    "device_map": "auto",
    "dtype": "float16",
    "attn_implementation": "eager",
    "max_memory": {"0": "1GiB"},
    "offload_folder": "/tmp/x",
    "trust_remote_code": True,
    "allow_pickle": True,
    "allow_missing_weights": True,
    "max_batch_size": 2,
    "max_batch_cost": 7,
    "max_item_bytes": 5,
    "max_input_tokens": 5,
    "max_wait_ms": 0,
    "timeout_s": 5,
    "weight": 2,
    "continuous": True,
    "max_cache_bytes": 5,
}
#: Arguments of :func:`of_settings` beside the settings.
GIVEN = {"task", "model"}


def of(folder: str | None = None, commit: str | None = None, task: str = "fill-mask", **settings: Any) -> dict:
    return of_settings(PipelineSettings(**settings), task, settings.get("model", "a/model"), folder, commit)


def test_every_setting_of_a_pipeline_counts_or_does_not() -> None:
    assert COUNTS.keys() | DOES_NOT_COUNT.keys() | GIVEN == PipelineSettings.model_fields.keys()
    plain = of()
    for name, value in COUNTS.items():
        assert of(**{name: value}) != plain, name
    for name, value in DOES_NOT_COUNT.items():
        assert of(**{name: value}) == plain, name
    assert of(task="text-generation") != plain
    assert of(model="b/model") != plain


def test_a_commit_says_more_than_a_revision_and_null_is_no_parameter() -> None:
    assert of(commit="1f", revision="main") == of(commit="1f") != of(commit="2e", revision="main")
    assert of(params={"top_k": None}) == of()
    assert of(model_kwargs={"attn_implementation": "eager", "token": "secret", "dtype": "float16"}) == of()
    assert "secret" not in str(of(model="s3://me:secret@bucket/m.tar"))


def model(folder: Path, **files: bytes) -> Path:
    contents = {"config_json": b"{}", "model_safetensors": bytes(3 * 2**20), "README_md": b"read", **files}
    for name, content in contents.items():
        stem, _, ending = name.rpartition("_")
        path = folder / f"{stem.replace('__', '/')}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


CHANGED = bytes(2**20) + b"\1" * 2**20 + bytes(2**20)


@pytest.mark.parametrize(
    ("files", "is_other"),
    [
        ({}, False),
        ({"README_md": b"another"}, False),
        ({"training_args_bin": b"x"}, False),
        ({"optimizer_pt": b"x"}, False),
        ({"_hidden__config_json": b"x"}, True),
        ({"_git__config_json": b"x"}, True),
        # Beside safetensors they are not loaded.
        ({"pytorch_model_bin": b"x"}, False),
        ({"config_json": b"{ }"}, True),
        ({"tokenizer_json": b"{}"}, True),
        ({"chat_template_jinja": b"{}"}, True),
        ({"1_Pooling__config_json": b"{}"}, True),
        ({"modeling_it_py": b"x"}, True),
        ({"model_safetensors": CHANGED}, True),
        ({"model_safetensors": bytes(3 * 2**20 + 1)}, True),
        ({"model_safetensors": b"\1" + bytes(3 * 2**20 - 1)}, True),
        ({"model_safetensors": bytes(3 * 2**20 - 1) + b"\1"}, True),
    ],
)
def test_the_files_of_a_folder(tmp_path: Path, files: dict[str, bytes], is_other: bool) -> None:
    usual = fingerprint(model(tmp_path / "here"))
    other = model(tmp_path / "elsewhere/under another name", **files)
    assert (fingerprint(other) != usual) == is_other
    assert (of(str(other)) != {**of(str(tmp_path / "here"))}) == is_other


def test_what_is_hidden_does_not_count_and_links_are_followed(tmp_path: Path) -> None:
    usual = fingerprint(model(tmp_path / "a"))
    (tmp_path / "a/.cache").mkdir()
    (tmp_path / "a/.cache/config.json").write_text("x")
    assert fingerprint(tmp_path / "a") == usual
    (tmp_path / "links").mkdir()
    for path in (tmp_path / "a").iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    assert fingerprint(tmp_path / "links") == usual


def test_parts_that_are_folders_count_by_their_files(tmp_path: Path) -> None:
    one = model(tmp_path / "one")
    shutil.copytree(one, tmp_path / "copy")
    other = model(tmp_path / "other", tokenizer_json=b"{}")
    assert of(tokenizer=str(one)) == of(tokenizer=str(tmp_path / "copy")) != of(tokenizer=str(other))
