"""Long audio is decoded and cut in bounded memory, and gives the same text as in transformers.

`MINUTES` in the environment says how long (`make long MINUTES=60`).
"""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import transformers
from pipeq import Client, Ref

from tests import tiny_models
from tests.device import DEVICE
from tests.worker_process import worker

torch.set_num_threads(1)

MINUTES = float(os.environ.get("MINUTES", "1"))
#: Memory that a worker may take above its idle use, for audio of any length, in MiB.
MOST_MIB = 600 if MINUTES >= 30 else 300
RATE = 16_000
PARAMS = {"chunk_length_s": 30}


def speech(path: Path) -> Path:
    """FLAC that resembles speech: bursts of noise, one minute at a time."""
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        stream.format = "s16"
        for minute in range(int(np.ceil(MINUTES))):
            rng = np.random.default_rng(minute)
            bursts = np.repeat(rng.uniform(0, 1, 60 * 4) > 0.3, RATE // 4)
            samples = rng.standard_normal(RATE * 60) * 3000 * bursts * np.repeat(rng.uniform(0, 1, 60), RATE)
            samples = samples[: int(RATE * 60 * min(1, MINUTES - minute))]
            frame = av.AudioFrame.from_ndarray(samples.astype(np.int16).reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def samples_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        blocks = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(blocks).astype(np.float32) / 2**15


@pytest.mark.timeout(max(240, MINUTES * 60))
@pytest.mark.parametrize("model", [pytest.param("ctc_layer_norm", marks=pytest.mark.long), "whisper"])
def test_long_audio(redis_url: str, tiny: Path, tmp_path: Path, model: str) -> None:
    audio, checkpoint = speech(tmp_path / "long.flac"), tiny_models.build(model, tiny)
    params = {**PARAMS, **({"max_new_tokens": 20, "return_timestamps": True} if model == "whisper" else {})}
    pipeline = f"automatic-speech-recognition={checkpoint}"
    allow = f"{tmp_path.as_uri()}/"
    with worker(tmp_path, redis_url, pipeline, "--allow", allow) as process, Client(redis_url) as client:
        process.wait_ready(client, "automatic-speech-recognition")
        idle = process.resident_mib()
        task = client.submit("automatic-speech-recognition", Ref.from_path(audio), params=params)
        got = client.result(task, timeout_s=max(200, MINUTES * 50))
        more = process.peak_mib() - idle
        status = client.status(task)
    print(f"{model}: {MINUTES:g} min, {more:.0f} MiB above idle ({idle:.0f}), {status.timing_ms}, {status.batch}")
    assert more < MOST_MIB
    pipe = transformers.pipeline("automatic-speech-recognition", model=str(checkpoint), device=DEVICE)
    want = pipe({"raw": samples_of(audio), "sampling_rate": RATE}, **params)
    assert len(want["text"]) > 20 * MINUTES
    assert got["text"] == want["text"]
    chunks = [{**one, "timestamp": list(one["timestamp"])} for one in want.get("chunks", [])]
    assert got.get("chunks", []) == chunks
