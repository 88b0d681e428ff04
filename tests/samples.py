"""Inputs of every kind, of different lengths and sizes; always the same ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDS = "the quick brown fox jumps over lazy dog invoice 42 euros sports politics hello world user".split()


def texts(count: int = 12) -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]


def masked_texts(mask: str, count: int = 5) -> list[str]:
    """Texts with one masked word each."""
    rng = random.Random(2)
    masked = []
    for text in texts(count):
        words = text.split()
        words[rng.randrange(len(words))] = mask
        masked.append(" ".join(words))
    return masked


def chats() -> list[Any]:
    return [[{"role": "user", "content": text}] for text in texts(5)] + texts(3)


def audio(seconds: float, seed: int = 0) -> np.ndarray:
    return (np.random.RandomState(seed).randn(int(seconds * 16000)) * 0.1).astype(np.float32)


def clips() -> list[np.ndarray]:
    return [audio(seconds, seed) for seed, seconds in enumerate((1.0, 0.6, 2.3, 1.0, 3.1))]


def short_clips() -> list[np.ndarray]:
    """Clips for models that hear 2 s at a time."""
    return [audio(seconds, seed) for seed, seconds in enumerate((1.0, 0.6, 1.9, 1.0))]


def sounds() -> list[np.ndarray]:
    """Clips that sound different: tones of rising pitch in noise of growing volume."""
    heard = []
    for at, noise in enumerate(clips()):
        time = np.arange(len(noise)) / 16000
        tone = np.sin(2 * np.pi * 150 * 3**at * time) * 0.5
        heard.append((tone + noise * (at + 0.1)).astype(np.float32))
    return heard


def images() -> list[Image.Image]:
    rng = np.random.RandomState(0)
    sizes = [(64, 48), (30, 40), (100, 20), (64, 48)]
    return [Image.fromarray(rng.randint(0, 255, (h, w, 3), np.uint8)) for w, h in sizes]


def large_images() -> list[Image.Image]:
    """The same images, twice as wide and high."""
    return [image.resize((image.width * 2, image.height * 2)) for image in images()]


def image_pairs() -> list[tuple[Image.Image, Image.Image]]:
    """Pairs of views of the same thing, for keypoint-matching."""
    first = images()
    return [(one, two) for one, two in zip(first, [*first[1:], first[0]], strict=True)]


def documents() -> list[dict[str, Any]]:
    boxes = [["invoice", [10, 10, 60, 20]], ["42", [70, 10, 90, 20]], ["euros", [95, 10, 130, 20]]]
    return [
        {"question": "what is the total ?", "image": images()[0], "word_boxes": boxes},
        {"question": "what is the total amount euros ?", "word_boxes": boxes},
        {"question": "what is the amount ?", "word_boxes": boxes},
        {"question": "what is the total ?", "word_boxes": boxes * 40},
        {"question": "who is the user ?", "word_boxes": boxes},
    ]


def tables() -> list[dict[str, Any]]:
    """Tables as columns, with every cell as text."""
    small = {"name": ["fox", "dog"], "euros": ["42", "7"]}
    large = {"name": WORDS[:5], "sports": WORDS[5:10], "amount": ["1", "2", "3", "4", "5"]}
    return [
        {"table": small, "query": "what is the total amount ?"},
        {"table": small, "query": "who jumps ?"},
        {"table": large, "query": "what is the amount about the lazy dog ?"},
        {"table": large, "query": "fox ?"},
    ]


def queries() -> list[dict[str, Any]]:
    """Images with labels of their own, for zero-shot-object-detection."""
    labels = [["fox", "lazy dog"], ["the invoice about politics"], ["user", "fox", "world"], ["fox"]]
    return [{"image": image, "candidate_labels": own} for image, own in zip(images(), labels, strict=True)]


def image_chats() -> list[list[dict[str, Any]]]:
    """Chats about no image, one image and two images."""
    first, second, third, _ = images()

    def turn(text: str, *shown: Image.Image) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in shown]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    return [
        turn("hello world", first),
        turn("what is this invoice about ?", second),
        turn("the quick brown fox jumps over the lazy dog", third),
        turn("hello"),
        turn("is this a dog or a fox ?", first, second),
    ]


def audio_chats() -> list[list[dict[str, Any]]]:
    """Chats with a sound, and without one."""

    def turn(text: str, *heard: np.ndarray) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"type": "audio", "audio": clip} for clip in heard]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    return [
        turn("hello world", audio(1.0)),
        turn("what is this about ?", audio(0.6, 1)),
        turn("the quick brown fox jumps over the lazy dog", audio(2.3, 2)),
        turn("hello"),
    ]


def decisions() -> list[dict[str, Any]]:
    """A state and one or several questions about it, of every type."""
    noul = {"type": "noul", "instructions": "Is it about sports?"}
    choice = {
        "type": "choice",
        "instructions": "What is the tone?",
        "criteria": {"calm": "A polite message", "angry": None},
    }
    score = {"type": "score", "instructions": "How urgent is it?", "criteria": ["Can wait", "This week", "Today"]}
    return [
        {"state": "hello world", "questions": {"sports": noul}},
        {"state": texts()[2], "questions": {"sports": noul, "tone": choice, "urgency": score}},
        {"state": {"subject": "invoice", "body": texts()[3]}, "questions": {"urgency": score}},
        {"state": texts()[4], "questions": {"tone": choice}},
    ]


def video(path: Path, frames: int, width: int, height: int, seed: int = 0) -> Path:
    """Writes an mp4 of noise, 8 frames a second. Width and height are even."""
    import av

    rng = np.random.RandomState(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            pixels = rng.randint(0, 255, (height, width, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def videos(folder: Path) -> list[Path]:
    sizes = [(12, 64, 48), (8, 32, 40), (20, 100, 20), (12, 64, 48)]
    return [video(folder / f"{seed}.mp4", *size, seed=seed) for seed, size in enumerate(sizes)]
