"""Each bad message ends as failed, with its code and a helpful sentence; all other tasks go on."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from PIL import Image
from pipeq import Ref, State
from pipeq.contract import keys

from tests.acceptance.conftest import Service
from tests.media import encode_image, picture
from tests.unit.pipeq_worker.media.test_decoded import flac

ANYWHERE = Path("/etc/hostname")


def forbidden_by_link(service: Service) -> Any:
    link = service.inputs / "link.txt"
    if not link.is_symlink():
        os.symlink(ANYWHERE, link)
    return Ref.from_path(service.inputs).model_copy(update={"uri": link.as_uri()})


def many_large_pictures(service: Service) -> Any:
    """A message of 3 KB with pictures of 38 bytes, each of which declares 128 million pixels."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(file, "WEBP", lossless=True)
    data = bytearray(file.getvalue())
    # Width and height, each minus one, in 14 bits each, after the signature of a lossless picture.
    at = data.index(b"VP8L") + 9
    kept = int.from_bytes(data[at : at + 4], "little") >> 28 << 28
    data[at : at + 4] = (kept | 7811 << 14 | 16382).to_bytes(4, "little")
    return [Ref.from_bytes(bytes(data))] * 20


def long_audio(service: Service) -> Any:
    """45 KB of FLAC at 1 kHz, which take half a gigabyte as a whole at a model's 16 kHz."""
    return Ref.from_bytes(flac(600, 1000))


CASES: list[tuple[str, Any, dict[str, Any], str, str]] = [
    ("text-classification", 5, {}, "invalid_input", "inputs: text is a number, not text; text-classification takes"),
    ("text-classification", {"txt": "a"}, {}, "invalid_input", "unknown field 'txt'"),
    ("text-classification", ["a", None], {}, "invalid_input", "inputs[1]: "),
    ("text-classification", "fox " * 600, {}, "invalid_input", "602 tokens, the model takes 512"),
    ("text-classification", "fox", {"topk": 1}, "invalid_params", "did you mean 'top_k'"),
    ("text-classification", "fox", {"batch_size": 8}, "invalid_params", "max_batch_size"),
    ("text-classification", "fox", {"top_k": "three"}, "invalid_params", "top_k"),
    ("zero-shot-classification", "fox", {}, "invalid_params", "candidate_labels"),
    ("automatic-speech-recognition", "s3://inputs/nothing.wav", {}, "input_not_found", "s3://inputs/nothing.wav"),
    ("automatic-speech-recognition", "s3://elsewhere/a.wav", {}, "input_forbidden", "--allow s3://elsewhere/"),
    ("image-classification", "https://example.org/a.png", {}, "input_forbidden", "example.org"),
    ("image-classification", ANYWHERE.as_uri(), {}, "input_forbidden", "[inputs] allow"),
    ("image-classification", forbidden_by_link, {}, "input_forbidden", "link.txt"),
    ("image-classification", "a cat", {}, "invalid_input", 'image is the text "a cat", not a reference'),
    ("image-classification", "ftp://host/a.png", {}, "invalid_input", "ftp://host/a.png"),
    ("image-classification", Ref.from_bytes(b"just some text, really"), {}, "input_undecodable", "text"),
    ("image-classification", Ref.from_bytes(encode_image(picture(), "png")[:200]), {}, "input_undecodable", ""),
    ("automatic-speech-recognition", Ref.from_bytes(os.urandom(500)), {}, "input_undecodable", ""),
    ("text-classification", Ref.from_bytes(b"\xff\xfe\xfa"), {}, "input_undecodable", "UTF-8"),
    ("document-question-answering", {"question": "what?"}, {}, "invalid_input", "neither an `image` nor `word_boxes`"),
    ("document-question-answering", "what?", {}, "invalid_input", "document-question-answering takes"),
    (
        "document-question-answering",
        {"question": "what?", "word_boxes": [["a", [0, 0, 5000, 1]]]},
        {},
        "invalid_input",
        "word_boxes[0]",
    ),
    ("image-classification", many_large_pictures, {}, "input_too_large", "max_decoded_bytes"),
    ("automatic-speech-recognition", long_audio, {}, "input_too_large", "max_decoded_bytes"),
    ("chat", [{"role": "user", "content": 5}], {}, "invalid_input", "turn 0 of the chat"),
    ("chat", [{"rolle": "user", "content": "hi"}], {}, "invalid_input", "did you mean 'role'"),
    ("chat", "hi", {"custom_generate": "/tmp/code"}, "invalid_params", "it names code"),
    ("chat", "hi", {"tokenizer_encode_kwargs": {"chat_template": "{{ 1 }}"}}, "invalid_params", "it is a program"),
    ("chat", "hi", {"num_beams": 2, "length_penalty": 10**12}, "invalid_params", "length_penalty"),
    ("chat", "hi", {"max_new_tokens": 10**30}, "invalid_params", "a whole number of 100 bits"),
    ("chat", "hi", {"assistant_early_exit": 1}, "invalid_params", "changes the model itself"),
    (
        "zero-shot-classification",
        "fox",
        {"candidate_labels": ["a"], "hypothesis_template": "{:>9000000000}"},
        "invalid_params",
        "hypothesis_template",
    ),
    ("automatic-speech-recognition", Ref.from_bytes(b""), {"return_timestamps": "words"}, "invalid_params", "'word'"),
]


@pytest.mark.parametrize(("pipeline", "inputs", "params", "code", "sentence"), CASES)
def test_bad_input_fails_alone(
    service: Service, pipeline: str, inputs: Any, params: dict[str, Any], code: str, sentence: str
) -> None:
    inputs = inputs(service) if callable(inputs) else inputs
    good = service.client.submit("text-classification", "the fox")
    status = service.client.wait(service.client.submit(pipeline, inputs, params=params), timeout_s=30)
    assert status.state is State.FAILED
    assert status.error is not None
    assert (status.error.code, status.error.retryable) == (code, False), status.error
    assert sentence in status.error.message
    assert service.client.wait(good, timeout_s=30).state is State.SUCCEEDED


def test_too_large(service: Service) -> None:
    service.s3.client().put_object(Bucket="inputs", Key="huge.wav", Body=b"\0" * (33 * 2**20))
    status = service.client.wait(service.client.submit("ctc", Ref("s3://inputs/huge.wav")), timeout_s=30)
    assert status.error is not None
    assert status.error.code == "input_too_large"
    assert "max_bytes" in status.error.message


def test_output_outside_the_allowed_prefixes(service: Service) -> None:
    task = service.client.submit("text-classification", "fox", output="s3://inputs/")
    status = service.client.wait(task, timeout_s=30)
    assert status.error is not None
    assert status.error.code == "input_forbidden"
    assert "[results] allow" in status.error.message


@pytest.fixture
def raw(service: Service) -> redis.Redis:
    return redis.Redis.from_url(service.client.redis_url)


def dead_letters(raw: redis.Redis, queue: str) -> list[dict[str, Any]]:
    return [json.loads(letter) for letter in raw.lrange(keys.dead_letter_key(queue), 0, -1)]


def wait_for_letter(service: Service, raw: redis.Redis, before: int) -> dict[str, Any]:
    # Messages are read in order, so all that were pushed before this task have been read when it is done.
    service.client.result(service.client.submit("text-classification", "fox"), timeout_s=30)
    letters = dead_letters(raw, "text-classification")
    assert len(letters) == before + 1
    return letters[0]


OURS = {"task": "pipeq.infer"}
FRAME = {"content-type": "application/json", "content-encoding": "utf-8"}
PROPERTIES = {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "text-classification"}}


@pytest.mark.parametrize(
    "message",
    [
        b"this is no json",
        b"\xff\xfe\x00",
        b"[1, 2, 3]",
        b"17",
        b'{"hello": "world"}',
        json.dumps({**FRAME, "body": "{}", "headers": {}, "properties": PROPERTIES}).encode(),
        json.dumps(
            {**FRAME, "body": "not json", "headers": {"task": "pipeq.infer"}, "properties": PROPERTIES}
        ).encode(),
        json.dumps({**FRAME, "body": "[]", "headers": {"task": "pipeq.infer"}, "properties": PROPERTIES}).encode(),
        json.dumps({**FRAME, "body": "[1, 2]", "headers": None, "properties": PROPERTIES}).encode(),
        json.dumps({**FRAME, "properties": {**PROPERTIES, "body_encoding": "base64"}, "body": "%%%"}).encode(),
        b"[" * 200_000,
        json.dumps({**FRAME, "body": "", "headers": {}, "properties": {**PROPERTIES, "delivery_tag": None}}).encode(),
        json.dumps({**FRAME, "body": "", "headers": {}, "properties": {**PROPERTIES, "delivery_tag": ["a"]}}).encode(),
        json.dumps({**FRAME, "body": "", "headers": {**OURS, "id": 5}, "properties": PROPERTIES}).encode(),
        json.dumps({**FRAME, "body": "", "headers": {**OURS, "id": ""}, "properties": PROPERTIES}).encode(),
    ],
)
def test_what_has_no_readable_id_goes_to_the_dead_letters(service: Service, raw: redis.Redis, message: bytes) -> None:
    before = len(dead_letters(raw, "text-classification"))
    raw.lpush("text-classification", message)
    letter = wait_for_letter(service, raw, before)
    assert letter["code"] == "invalid_message"
    assert letter["reason"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"task": "somebody.elses", "id": "id-a"}, [[], {}, {}]),
        ({"task": "pipeq.infer", "id": "id-b"}, [1, 2]),
        ({"task": "pipeq.infer", "id": "id-c"}, [[], {"pipeline": "text-classification"}, {}]),
        ({"task": "pipeq.infer", "id": "id-d"}, [[], {"pipeline": "chat", "inputs": "x"}, {}]),
        ({"task": "pipeq.infer", "id": "id-e"}, [["positional"], {}, {}]),
        ({"task": "pipeq.infer", "id": "id-f", "eta": "not a date"}, [[], {"pipeline": "p", "inputs": ""}, {}]),
        ({"task": "pipeq.infer", "id": "id-g"}, [[], {"pipeline": "text-classification", "inputs": "x", "y": 1}, {}]),
        ({"task": "pipeq.infer", "id": "id-h", "retries": "x"}, [[], {"pipeline": "text-classification"}, {}]),
        ({"task": "pipeq.infer", "id": "id-i"}, [[], {"pipeline": "text-classification", "inputs": "x"}, 5]),
    ],
)
def test_a_message_that_is_not_ours_fails_with_its_id(
    service: Service, raw: redis.Redis, headers: dict[str, Any], body: Any
) -> None:
    frame = {
        **FRAME,
        "headers": headers,
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "properties": {**PROPERTIES, "body_encoding": "base64"},
    }
    raw.lpush("text-classification", json.dumps(frame))
    status = service.client.wait(headers["id"], timeout_s=30)
    assert status.state is State.FAILED
    assert status.error is not None
    assert status.error.code == "invalid_message", status.error
    assert dead_letters(raw, "text-classification")[0]["id"] == headers["id"]


def test_a_failed_task_leaves_a_dead_letter_that_can_be_sent_again(service: Service, raw: redis.Redis) -> None:
    task = service.client.submit("text-classification", ["fine", 5])
    service.client.wait(task, timeout_s=30)
    letter = next(one for one in dead_letters(raw, "text-classification") if one["id"] == task)
    assert letter["code"] == "invalid_input"
    assert letter["message"]["headers"]["id"] == task


def test_a_stock_caller_gets_the_error_with_its_code(service: Service) -> None:
    app = Celery(broker=service.client.redis_url, backend=service.client.redis_url)
    message = {"pipeline": "text-classification", "inputs": 5}
    result = app.send_task("pipeq.infer", kwargs=message, queue="text-classification")
    with pytest.raises(Exception, match="invalid_input") as caught:
        result.get(timeout=30)
    assert caught.value.args[0] == "invalid_input"
    assert caught.value.args[2] is False


def test_what_a_producer_ignores_is_recorded_all_the_same(service: Service, raw: redis.Redis) -> None:
    app = Celery(broker=service.client.redis_url, backend=service.client.redis_url)
    message = {"pipeline": "text-classification", "inputs": "fox"}
    task = app.send_task("pipeq.infer", kwargs=message, queue="text-classification", ignore_result=True).id
    assert service.client.wait(task, timeout_s=30).state is State.SUCCEEDED
    assert not raw.hexists(keys.RUNNING, task)
