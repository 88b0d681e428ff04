"""`pipeq doctor` with a user's own model and inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pipeq_worker.doctor.cli import doctor as command
from pipeq_worker.stages.files import wav

from tests import samples, tiny_models


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def lines(path: Path, values: list[Any]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def test_what_is_the_same(tiny: Path, tmp_path: Path) -> None:
    model, inputs = tiny_models.build("classifier", tiny), lines(tmp_path / "texts.jsonl", samples.texts())
    done = doctor(f"text-classification={model}", "--inputs", inputs, "--params", '{"top_k": 2}')
    assert done.exit_code == 0, done.stderr
    assert "12 of 12 answers are the same" in done.stdout


def test_what_differs_and_what_fails(tiny: Path, tmp_path: Path) -> None:
    model, inputs = tiny_models.build("gpt2", tiny), lines(tmp_path / "texts.jsonl", [*samples.texts(3), "fox " * 700])
    params = {"do_sample": True, "temperature": 5.0, "max_new_tokens": 20}
    done = doctor(f"text-generation={model}", "--inputs", inputs, "--params", json.dumps(params), "--json")
    assert done.exit_code == 1, done.stderr
    found = json.loads(done.stdout)
    assert set(found["differ"]) == {"0", "1", "2"}
    assert "generated_text is" in found["differ"]["0"][0]
    assert list(found["failed"]) == ["3"]
    assert "tokens" in found["failed"]["3"]


def test_chunks_of_a_file_are_those_of_the_whole(tiny: Path, tmp_path: Path) -> None:
    """A worker cuts chunks while it decodes; transformers first has all the samples."""
    refs = []
    for at, clip in enumerate(samples.clips()):
        (tmp_path / f"{at}.wav").write_bytes(wav(clip, 16_000))
        refs.append({"uri": (tmp_path / f"{at}.wav").as_uri()})
    inputs = lines(tmp_path / "clips.jsonl", refs)
    for model in ("ctc_layer_norm", "ctc_group_norm"):
        pipeline = f"automatic-speech-recognition={tiny_models.build(model, tiny)}"
        params = '{"chunk_length_s": 0.7, "stride_length_s": [0.2, 0.1]}'
        allow = f"{tmp_path.as_uri()}/"
        done = doctor(pipeline, "--inputs", inputs, "--params", params, "--allow", allow, "--json")
        found = json.loads(done.stdout)
        assert (done.exit_code, found["differ"], found["failed"]) == (0, {}, {})
        assert found["largest_batch"] > 5


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("fox", "line 1 is no JSON"), ('{"image": 1}', "line 1: inputs[0]: unknown field 'image'")],
)
def test_what_cannot_be_read(tiny: Path, tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    model = tiny_models.build("classifier", tiny)
    done = doctor(f"text-classification={model}", "--inputs", str(tmp_path / "bad.jsonl"))
    assert done.exit_code == 2
    assert sentence in done.stderr
