"""Some task types repeat what a producer sent. It comes back as it was sent, and never as an object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeq import Client, Ref, State
from pipeq_worker.stages.files import wav

from tests import samples
from tests.acceptance.conftest import Service

GREEDY = {"generate_kwargs": {"max_new_tokens": 2, "do_sample": False}}
SOUND = {"audio": [0.5] * 2000, "sampling_rate": 16_000}
CLIMBING = {"..": {"..": {"victim.objects": SOUND}}}
#: Additional fields that a turn or a part may have.
MORE: list[dict[str, Any]] = [
    SOUND,
    CLIMBING,
    {"audio": None, "sampling_rate": "x"},
    {"audio": [[0.5], []], "sampling_rate": 0},
    {"mask": {"base64": "AAAA"}, "generated_text": [SOUND], "more": {"audio": SOUND, "sampling_rate": SOUND}},
    {"uri_": "s3://b/k", "messages": [SOUND], "deep": [[[[CLIMBING]]]], "": "", "\0": "\n"},
]


@dataclass(frozen=True)
class Served:
    client: Client
    inputs: Path
    results: Path

    def answer(self, pipeline: str, inputs: Any, params: dict[str, Any] | None = None) -> Any:
        """Returns a task's result, and checks that the store holds nothing else."""
        # It goes to the store, so that nothing hides inline.
        task = self.client.submit(pipeline, inputs, params=params, output=f"{self.results.as_uri()}/")
        status = self.client.wait(task, timeout_s=60)
        assert status.state is State.SUCCEEDED, status.error
        written = [path for path in self.results.parents[1].rglob("*") if path.is_file()]
        assert written == [self.results / f"{task}.json"]
        result = self.client.result(task, timeout_s=10)
        written[0].unlink()
        return result


@pytest.fixture(scope="module")
def served(service: Service) -> Served:
    results = service.results / "echoes" / "deep" / "er"
    results.mkdir(parents=True)
    return Served(service.client, service.inputs, results)


@pytest.mark.parametrize("more", MORE)
def test_a_turn_comes_back_as_it_was_sent(served: Served, more: dict[str, Any]) -> None:
    chat = [{**more, "role": "system", "content": "hello"}, {**more, "role": "user", "content": "hello world"}]
    got = served.answer("chat", chat, GREEDY["generate_kwargs"])
    assert got[0]["generated_text"][:-1] == chat
    # A turn that was continued has only the model's text in addition.
    chat = [{"role": "user", "content": "hello"}, {**more, "role": "assistant", "content": "hello"}]
    got = served.answer("chat", [chat, chat], GREEDY["generate_kwargs"])
    assert [one[0]["generated_text"][0] for one in got] == chat[:1] * 2
    assert got[0][0]["generated_text"][1].keys() == {"role", "content"}


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("pipeline", ["image-text-to-text", "any-to-any"])
def test_a_part_comes_back_as_it_was_sent(served: Served, pipeline: str, more: dict[str, Any]) -> None:
    kind = "image" if pipeline == "image-text-to-text" else "audio"
    path = served.inputs / f"one.{kind}"
    if kind == "image":
        samples.images()[0].save(path, "PNG")
    else:
        path.write_bytes(wav(samples.audio(1.0), 16_000))
    more = {key: value for key, value in more.items() if key != kind}
    ref = Ref.from_path(path).model_dump(exclude_none=True)
    parts = [{**more, "type": kind, kind: ref}, {**more, "type": "text", "text": "what is it ?"}]
    chat = [{**more, "role": "user", "content": parts}]
    got = served.answer(pipeline, chat, GREEDY)
    assert got[0]["input_text"] == chat
    assert got[0]["generated_text"][:-1] == chat


def test_names_and_labels_come_back_as_they_were_sent(served: Served) -> None:
    names = ["..", "../..", "audio", "sampling_rate", "a/b", "mask", "victim.objects"]
    noul = {"type": "noul", "instructions": "Is it about sports?"}
    got = served.answer(
        "decision", {"state": [CLIMBING, SOUND["sampling_rate"]], "questions": dict.fromkeys(names, noul)}
    )
    assert list(got) == names
    got = served.answer("zero-shot-classification", "fox", {"candidate_labels": names[2:]})
    assert sorted(got["labels"]) == sorted(names[2:])
