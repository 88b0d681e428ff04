"""Audio, images and documents through a real worker, from disk and S3."""

from __future__ import annotations

import json

import pytest
import transformers
from pipeq import Ref, State
from pipeq_worker.media.audio import decode_audio
from pipeq_worker.media.images import decode_image

from tests.acceptance.conftest import Service
from tests.device import DEVICE
from tests.media import AUDIO_FORMATS, encode_audio, encode_image, picture, tone
from tests.parity import assert_same, plain

WHISPER = "automatic-speech-recognition"
SPEECH = {"return_timestamps": "word", "max_new_tokens": 12, "language": "en"}


def test_a_task_in_s3_out_to_s3(service: Service) -> None:
    s3 = service.s3.client()
    s3.put_object(Bucket="inputs", Key="text/a b?.txt", Body=b"the quick brown fox")
    task = service.client.submit("text-classification", Ref("s3://inputs/text/a b?.txt"), output="s3://results/out/")
    status = service.client.wait(task, timeout_s=30)
    assert status.state is State.SUCCEEDED, status
    assert status.result_uri == f"s3://results/out/{task}.json"
    stored = json.loads(s3.get_object(Bucket="results", Key=f"out/{task}.json")["Body"].read())
    assert_same(stored, service.client.result(service.client.submit("text-classification", "the quick brown fox"), 30))


@pytest.mark.parametrize("ending", AUDIO_FORMATS)
def test_speech_with_word_timestamps(service: Service, ending: str) -> None:
    data = encode_audio(tone(3.0), ending)
    (service.inputs / f"speech.{ending}").write_bytes(data)
    task = service.client.submit(WHISPER, Ref.from_path(service.inputs / f"speech.{ending}"), params=SPEECH)
    got = service.client.result(task, timeout_s=60)
    alone = transformers.pipeline(WHISPER, model=str(service.models / "whisper"), device=DEVICE)
    assert_same(got, plain(alone(decode_audio(data, ending, 16000, 60), **SPEECH)))
    assert all(len(chunk["timestamp"]) == 2 for chunk in got["chunks"])


def test_ten_minutes_of_audio_in_chunks_with_bounded_memory(service: Service) -> None:
    samples = tone(600)
    service.s3.client().put_object(Bucket="inputs", Key="long.flac", Body=encode_audio(samples, "flac"))
    params = {"chunk_length_s": 5, "stride_length_s": 1, "return_timestamps": "word"}
    # The model is loaded, so the additional memory is this task's.
    service.client.result(service.client.submit("ctc", Ref.from_bytes(encode_audio(tone(2), "flac"))), timeout_s=60)
    before = service.process.peak_mib()
    status = service.client.wait(service.client.submit("ctc", Ref("s3://inputs/long.flac"), params=params), 180)
    assert status.state is State.SUCCEEDED, status.error
    assert status.batch is not None
    assert status.batch.size > 1
    assert service.process.peak_mib() - before < 400
    got = service.client.result(status.id)
    alone = transformers.pipeline(WHISPER, model=str(service.models / "ctc_layer_norm"), device=DEVICE)
    want = alone(decode_audio(encode_audio(samples, "flac"), "long", 16000, 3600), **params)
    assert got["text"] == want["text"]
    assert_same(got["chunks"][-3:], plain(want["chunks"][-3:]))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_images(service: Service, ending: str) -> None:
    data = encode_image(picture(), ending)
    (service.inputs / f"image.{ending}").write_bytes(data)
    uri = (service.inputs / f"image.{ending}").as_uri()
    # For image tasks a plain string is a URI, as in transformers.
    got = service.client.result(service.client.submit("image-classification", uri), timeout_s=30)
    alone = transformers.pipeline("image-classification", model=str(service.models / "vit"), device=DEVICE)
    assert_same(got, plain(alone(decode_image(data, ending, 10**8))))


def test_a_list_of_images_gives_a_list_of_results(service: Service) -> None:
    images = [Ref.from_bytes(encode_image(picture(32 + at, 40), "png")) for at in range(5)]
    status = service.client.wait(service.client.submit("image-classification", images, params={"top_k": 1}), 30)
    assert [len(one) for one in status.result] == [1] * 5  # type: ignore[arg-type, union-attr]


def test_an_image_with_a_question_and_word_boxes(service: Service) -> None:
    words = [["invoice", [10, 10, 60, 20]], ["42", [70, 10, 90, 20]], ["euros", [95, 10, 130, 20]]]
    question = "what is the total amount ?"
    image = Ref.from_bytes(encode_image(picture(), "png"))
    inputs = {"image": image, "question": question, "word_boxes": words}
    got = service.client.result(service.client.submit("document-question-answering", inputs), timeout_s=30)
    alone = transformers.pipeline("document-question-answering", model=str(service.models / "layoutlm"), device=DEVICE)
    assert_same(got, plain(alone(image=picture(), question=question, word_boxes=words)))


def test_large_results_go_to_the_store(service: Service) -> None:
    text = "the quick brown fox " * 60
    status = service.client.wait(service.client.submit("feature-extraction", text), timeout_s=30)
    assert status.state is State.SUCCEEDED, status.error
    assert status.result_uri == f"s3://results/store/{status.id}.json"
    stored = service.s3.client().get_object(Bucket="results", Key=f"store/{status.id}.json")["Body"].read()
    alone = transformers.pipeline("feature-extraction", model=str(service.models / "encoder"), device=DEVICE)
    assert_same(json.loads(stored), plain(alone(text)))


def test_a_file_store_is_written_below_its_prefix(service: Service) -> None:
    task = service.client.submit("text-classification", "fox", output=f"{service.results.as_uri()}/deep/er/")
    assert service.client.result(task, timeout_s=30)[0]["label"].startswith("LABEL_")
    assert (service.results / "deep" / "er" / f"{task}.json").exists()
