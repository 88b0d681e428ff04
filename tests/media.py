"""Media made for the tests, as bytes."""

from __future__ import annotations

import io

import av
import numpy as np
from PIL import Image

#: File ending -> (container, codec, sample format).
AUDIO_FORMATS = {
    "wav": ("wav", "pcm_s16le", "s16"),
    "flac": ("flac", "flac", "s16"),
    "mp3": ("mp3", "libmp3lame", "fltp"),
    "m4a": ("ipod", "aac", "fltp"),
}


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    """A slow sweep with noise, float32, mono."""
    at = np.arange(int(seconds * rate)) / rate
    noise = np.random.RandomState(0).randn(at.size) * 0.05
    return (0.3 * np.sin(2 * np.pi * (200 + 20 * at) * at) + noise).astype(np.float32)


def encode_audio(samples: np.ndarray, ending: str, rate: int = 16000) -> bytes:
    container_format, codec, sample_format = AUDIO_FORMATS[ending]
    out = io.BytesIO()
    with av.open(out, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        stream.format = sample_format
        # Whole seconds at a time, because encoders do not take one frame of ten minutes.
        for start in range(0, samples.size, rate):
            pcm = (samples[start : start + rate] * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def picture(width: int = 96, height: int = 64) -> Image.Image:
    rows = np.linspace(0, 255, height)[:, None, None] * np.ones((1, width, 3))
    rows[:, :, 1] = np.linspace(255, 0, width)
    return Image.fromarray(rows.astype(np.uint8))


def encode_image(image: Image.Image, ending: str) -> bytes:
    out = io.BytesIO()
    image.save(out, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[ending])
    return out.getvalue()
