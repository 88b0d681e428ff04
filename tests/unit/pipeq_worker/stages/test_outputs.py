"""A pipeline's output as JSON and objects."""

from __future__ import annotations

import base64
import io
from enum import StrEnum
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeq.contract.errors import PipeqError
from pipeq.contract.message import Ref
from pipeq_worker.media.audio import decode_audio
from pipeq_worker.media.images import decode_image
from pipeq_worker.stages.files import wav
from pipeq_worker.stages.outputs import convert
from pipeq_worker.stores.signed import sign_objects

from tests.unit.media import picture


class Mode(StrEnum):
    SOFT = "soft"


@pytest.mark.parametrize(
    ("output", "json"),
    [
        ({"score": np.float32(0.5), "index": np.int64(3)}, {"score": 0.5, "index": 3}),
        ((1, (2.5, None), True), [1, [2.5, None], True]),
        (np.array([1, 2]), [1, 2]),
        (torch.tensor([1.5, 2.0]), [1.5, 2.0]),
        (torch.tensor(3), 3),
        (torch.tensor([1.5], dtype=torch.bfloat16), [1.5]),
        ({1: "a"}, {"1": "a"}),
        ([Mode.SOFT], ["soft"]),
    ],
)
def test_what_is_json(output: Any, json: Any) -> None:
    assert convert(output) == (json, [])
    assert type(convert(output)[0]) is type(json)


def test_images_are_png_without_loss() -> None:
    for image in (picture(), picture(mode="L"), picture(mode="RGBA"), Image.fromarray(np.eye(9, dtype=bool))):
        entry, [one] = convert({"mask": image})
        assert (one.name, one.media_type) == ("mask.png", "image/png")
        assert entry["mask"]["shape"][:2] == [image.height, image.width]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(one.data))), np.asarray(image))


def test_depth_keeps_16_bits() -> None:
    depth = np.arange(0, 60_000, 100, dtype=np.uint16).reshape(20, 30)
    for image in (Image.fromarray(depth), Image.fromarray(depth.astype(np.int32))):
        entry, [one] = convert(image)
        assert entry == {"media_type": "image/png", "shape": [20, 30], "dtype": "uint16"}
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(one.data))).astype(np.uint16), depth)


def test_boolean_planes_are_masks_and_other_arrays_npy() -> None:
    mask, rows = np.eye(4, dtype=bool), np.random.RandomState(0).randn(3, 4).astype(np.float32)
    entry, objects = convert({"masks": [mask], "predicted_depth": torch.from_numpy(rows)})
    assert [one.name for one in objects] == ["masks/0.png", "predicted_depth.npy"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(objects[0].data))), mask)
    assert np.array_equal(np.load(io.BytesIO(objects[1].data), allow_pickle=False), rows)
    assert entry["predicted_depth"] == {"media_type": "application/x-npy", "shape": [3, 4], "dtype": "float32"}


def test_what_numpy_has_no_type_for_is_safetensors() -> None:
    from safetensors.torch import load

    tensor = torch.randn(2, 3).to(torch.bfloat16)
    entry, [one] = convert([tensor])
    assert (one.name, entry[0]["dtype"]) == ("0.safetensors", "bfloat16")
    assert torch.equal(load(one.data)["tensor"], tensor)


@pytest.mark.parametrize("channels", [1, 2])
def test_audio_is_wav_without_loss(channels: int) -> None:
    samples = np.random.RandomState(0).uniform(-1, 1, (channels, 16_000)).astype(np.float32)
    entry, [one] = convert({"audio": samples, "sampling_rate": 16_000}, audio_key="audio")
    assert entry["sampling_rate"] == 16_000
    assert entry["audio"]["shape"] == [channels, 16_000]
    assert (one.name, one.media_type) == ("audio.wav", "audio/wav")
    if channels == 1:
        assert np.array_equal(decode_audio(one.data, "it", 16_000, 60), samples[0])


def test_sixteen_bit_audio_stays_so() -> None:
    samples = np.arange(-8000, 8000, dtype=np.int16)
    assert np.allclose(decode_audio(wav(samples, 8000), "it", 8000, 60) * 2**15, samples)


def test_an_echo_of_the_input_is_the_reference_again() -> None:
    image, ref = picture(), {"uri": "s3://b/a.png"}
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]}]
    got, objects = convert([{"generated_text": chat}], {id(image): ref})
    assert objects == []
    assert got[0]["generated_text"][0]["content"][0] == {"type": "image", "image": ref}


def test_an_object_is_an_input_again() -> None:
    image = picture()
    entry, [one] = convert(image)
    one.put_inline()
    data = base64.b64decode(Ref(**entry).base64 or "")
    assert np.array_equal(np.asarray(decode_image(data, "it", 10**6)), np.asarray(image))


#: Names that a producer may give to its own things.
KEYS = [
    "../../etc",
    "..",
    ".",
    "a/b",
    "",
    "0",
    "\0",
    "mask/../..",
    "Mask",
    "x" * 500,
    "äöü",
    "audio.wav",
    "victim.objects",
]


def test_names_are_made_of_numbers_and_known_words_and_none_twice() -> None:
    """Objects at any depth, below any keys."""
    leaf = {key: picture() for key in [*KEYS, "mask", "depth"]}
    nested = {key: [leaf, {key: {key: picture()}}] for key in KEYS}
    _, objects = convert([nested, {"masks": [picture(), picture()]}, leaf])
    assert len(objects) == 13 * (15 + 1) + 2 + 15
    names = [one.name for one in objects]
    assert len(set(names)) == len(names)
    parts = {part for name in names for part in name.removesuffix(".png").split("/")}
    assert {part for part in parts if not part.isdecimal()} == {"mask", "masks", "depth"}
    # No name is both a folder and a file.
    assert not {name.removesuffix(".png") for name in names} & {name.rpartition("/")[0] for name in names}


#: Mappings that look like audio, or nearly.
LOOKALIKES: list[Any] = [
    {"audio": audio, "sampling_rate": rate}
    for audio in (
        [0.5] * 20,
        [[0.5], [0.5]],
        [[0.5], []],
        [],
        None,
        "x",
        {"audio": [1], "sampling_rate": 1},
        10**30,
        [None],
    )
    for rate in (16_000, 0, -1, 10**30, None, "x", [], {"a": 1}, 1.5)
]


@pytest.mark.parametrize("audio_key", [None, "", "audio"])
def test_what_looks_like_audio_inside_a_result_is_data(audio_key: str) -> None:
    """Only the result itself can be audio, and only if the task type says so."""
    for one in LOOKALIKES:
        inside = [{"generated_text": [{"role": "user", "content": "x", **one, "more": one}]}]
        assert convert(inside, audio_key=audio_key) == (inside, [])
        assert convert({"": one}) == ({"": one}, [])


def test_several_sounds_of_different_lengths_are_a_file_each() -> None:
    sounds = [np.zeros(10, np.float32), np.zeros(20, np.float32)]
    entry, objects = convert([{"audio": sounds, "sampling_rate": 16_000}], audio_key="audio")
    assert [one.name for one in objects] == ["0/audio/0.wav", "0/audio/1.wav"]
    assert [one["shape"] for one in entry[0]["audio"]] == [[10], [20]]


def test_anything_else_is_an_error_that_names_it() -> None:
    with pytest.raises(PipeqError, match="the output holds a object: neither JSON nor an array"):
        convert([object()])


def test_what_a_result_repeats_is_not_signed() -> None:
    """Only names that a worker makes, below the result's own place."""

    class Signer:
        def sign(self, uri: str, kind: str) -> str:
            return f"{kind} {uri}"

    own = "file:///store/id.objects/"
    bad = [
        "../../secret.json",
        "%2e%2e/x.png",
        "..",
        "",
        "a/../b.png",
        "a//b.png",
        "A.png",
        "a.png/",
        "a.png?x",
        "\n.png",
    ]
    value = {"mine": [{"uri": f"{own}0/mask.png"}], "theirs": [{"uri": own + one} for one in bad]}
    value["other"] = [{"uri": "file:///store/id2.objects/0.png"}, {"uri": "file:///store/id.json"}, {"uri": 5}]
    sign_objects(value, "file:///store/id.json", Signer())  # type: ignore[arg-type]
    assert value["mine"][0]["signature"] == f"object {own}0/mask.png"
    assert not [one for one in (*value["theirs"], *value["other"]) if "signature" in one]
