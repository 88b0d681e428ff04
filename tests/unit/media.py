"""Sounds and pictures that are computed."""

from __future__ import annotations

import io
import wave
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

RATE = 16_000


def pcm(seconds: float = 0.5, rate: int = RATE, channels: int = 1) -> NDArray[np.int16]:
    """A tone of 440 Hz at half volume, shape (samples, channels)."""
    time = np.arange(int(seconds * rate)) / rate
    tone = (np.sin(2 * np.pi * 440 * time) * 16_384).astype(np.int16)
    return np.repeat(tone[:, None], channels, axis=1)


def wav(samples: NDArray[np.int16], rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def encoded(
    container: str, codec: str, rate: int, channels: int, sample_format: str | None = None, seconds: float = 1
) -> bytes:
    """The tone, encoded by one of ffmpeg's encoders."""
    buffer = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        if sample_format:
            stream.format = sample_format
        samples = pcm(seconds, rate, channels)
        for start in range(0, len(samples), 4096):
            block = np.ascontiguousarray(samples[start : start + 4096].reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout=layout)
            frame.sample_rate = rate
            frame.pts = start
            frame.time_base = Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def pitch(samples: NDArray[np.float32], rate: int = RATE) -> float:
    """The strongest frequency, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def image_bytes(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    ramp = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3) % 251
    return Image.fromarray(ramp.astype(np.uint8)).convert(mode)
