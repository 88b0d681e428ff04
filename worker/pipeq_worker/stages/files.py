"""MAKE: images, audio and arrays of an output -> the bytes of PNG, WAV, NPY and safetensors files. Used by outputs.

It imports the libraries for that, which outputs does only where a part of an output is no JSON.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

#: Modes that are written to PNG unchanged; others are converted to RGB.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_IMAGE_DTYPES = {"1": "bool", "I;16": "uint16", "I": "uint16"}


@dataclass(frozen=True)
class File:
    """The content of a file, and of what it was made."""

    data: bytes
    media_type: str
    shape: tuple[int, ...]
    dtype: str


def made_of(value: Any) -> Any:
    """A file of an image, a tensor or an array; JSON of what has at most one dimension; None of anything else."""
    if isinstance(value, Image.Image):
        return File(_png(value), "image/png", _image_shape(value), _IMAGE_DTYPES.get(value.mode, "uint8"))
    if hasattr(value, "detach"):  # a tensor; torch itself is not imported here
        return _made_of_tensor(value.detach().cpu())
    if isinstance(value, np.generic):
        return value.item()
    return _made_of_array(value) if isinstance(value, np.ndarray) else None


def audio_of(samples: Any, rate: int) -> File:
    """A file of samples; see :func:`wav`."""
    samples = samples.detach().cpu() if hasattr(samples, "detach") else samples
    samples = np.asarray(samples.float().numpy() if hasattr(samples, "numpy") else samples)
    return File(wav(samples, rate), "audio/wav", samples.shape, str(samples.dtype))


def _made_of_tensor(value: Any) -> Any:
    try:
        array = value.numpy()
    except TypeError:  # bfloat16, float8: numpy has no such type
        if value.ndim <= 1:
            return value.tolist()
        from safetensors.torch import save

        data = save({"tensor": value.contiguous()})
        return File(data, "application/x-safetensors", tuple(value.shape), str(value.dtype).removeprefix("torch."))
    return _made_of_array(array)


def _made_of_array(value: np.ndarray[Any, Any]) -> Any:
    if value.ndim <= 1:
        return value.tolist()
    if value.dtype == np.bool_ and value.ndim == 2:
        return File(_png(Image.fromarray(value)), "image/png", value.shape, "bool")
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(value), allow_pickle=False)
    return File(buffer.getvalue(), "application/x-npy", value.shape, str(value.dtype))


def wav(samples: np.ndarray[Any, Any], rate: int) -> bytes:
    """Returns samples as a WAV file, without loss: 32-bit float for floats, 16-bit integers for 16-bit integers.

    Args:
        samples: shape ``(samples,)`` or ``(channels, samples)``.
        rate: samples a second, in Hz.
    """
    rows = np.atleast_2d(samples)
    if rows.ndim > 2:
        rows = rows.reshape(-1, rows.shape[-1])
    codec, kind, dtype = ("pcm_s16le", "s16", np.int16) if rows.dtype == np.int16 else ("pcm_f32le", "flt", np.float32)
    layout = {1: "mono", 2: "stereo"}.get(len(rows), f"{len(rows)}c")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as container:
        stream: Any = container.add_stream(codec, rate=rate, layout=layout)
        interleaved = np.ascontiguousarray(rows.T.reshape(1, -1).astype(dtype))
        frame = av.AudioFrame.from_ndarray(interleaved, format=kind, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    if image.mode == "I":
        # PNG has at most 16 bits; Pillow's 32-bit modes hold no larger values in practice.
        image = Image.fromarray(np.asarray(image).clip(0, 2**16 - 1).astype(np.uint16))
    elif image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    buffer = io.BytesIO()
    # The fastest level, because masks shrink a hundredfold at every level.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _image_shape(image: Image.Image) -> tuple[int, ...]:
    channels = len(image.getbands())
    return (image.height, image.width) if channels == 1 else (image.height, image.width, channels)
