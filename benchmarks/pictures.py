"""Pictures from disk, a vision transformer: the queue against the plain loop at 32, alone and with loader processes.

A picture costs the CPU more than a text: it is read, decoded, scaled and normalised. The plain loop does that in the
thread that feeds the device, or with ``num_workers`` in as many processes as there are cores; a worker does it in its
prepare processes. The tasks name files, so the queue carries references.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from pipeq import Client, Ref
from pipeq.demo.embedded import valkey

from benchmarks import workers
from benchmarks.report import Options, Result, against, alternate

BATCH_SIZE = 32
#: Size of a picture in pixels.
SIZE = (640, 480)
#: As many different files.
FILES = 256
MOST_PICTURES = 20_000
#: Layers and width of the transformer; on a GPU those of ViT-base.
SMALL, BASE = (4, 192), (12, 768)
PIPELINE = "image-classification"


def make_pictures(folder: Path) -> list[Path]:
    """Writes JPEG files: noise, made smooth, so that they take as long to decode as photographs."""
    import numpy as np
    from PIL import Image

    found, random = [], np.random.default_rng(0)
    for at in range(FILES):
        coarse = random.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
        path = folder / f"{at}.jpg"
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
        found.append(path)
    return found


def vit(folder: Path, layers: int, width: int) -> Path:
    """Saves a classifier of pictures with random weights."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        num_labels=10,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil().save_pretrained(folder)
    return folder


def plain_loop(pipe: Any, paths: list[str], loaders: int) -> float:
    """Returns pictures a second."""
    began = time.perf_counter()
    for _ in pipe(paths, batch_size=BATCH_SIZE, num_workers=loaders):
        pass
    return len(paths) / (time.perf_counter() - began)


def main(options: Options) -> list[Result]:
    """Runs all arms in turn."""
    layers, width = BASE if options.is_gpu else SMALL
    with tempfile.TemporaryDirectory() as name, valkey() as url:
        folder = Path(name)
        files = make_pictures(folder)
        model = vit(folder / "model", layers, width)
        pipe = workers.plain_pipeline(model, PIPELINE)
        config = (
            f'[inputs]\nallow = ["{folder.as_uri()}/"]\n'
            f'[pipelines.{PIPELINE}]\nmodel = "{model}"\nmax_batch_size = {BATCH_SIZE}\n'
        )
        with workers.worker(url, config) as process, Client(url) as client:
            workers.wait_ready(client, PIPELINE, [process])
            rate = plain_loop(pipe, [str(path) for path in files[:64]], 0)
            workers.run(client, PIPELINE, [Ref(path.as_uri()) for path in files])
            count = workers.as_many_as(rate, options.seconds, 64, MOST_PICTURES)
            chosen = [files[at % FILES] for at in range(count)]
            paths, references = [str(path) for path in chosen], [Ref(path.as_uri()) for path in chosen]
            loaders = workers.cores()
            with_loaders = f"plain loop, {BATCH_SIZE}, {loaders} loader processes"
            found = alternate(
                {
                    f"plain loop, {BATCH_SIZE}": partial(plain_loop, pipe, paths, 0),
                    with_loaders: partial(plain_loop, pipe, paths, loaders),
                    "queue": partial(workers.run, client, PIPELINE, references),
                },
                options.rounds,
            )
    return [
        Result(
            "n",
            "Pictures from disk, a vision transformer",
            "pictures/s",
            found,
            [
                against("queue / plain loop", found["queue"], found[f"plain loop, {BATCH_SIZE}"], ""),
                against("queue / plain loop with loader processes", found["queue"], found[with_loaders], ""),
            ],
            f"{count} JPEG pictures of {SIZE[0]} by {SIZE[1]}; {layers} layers of width {width}; one torch thread in "
            "each process. Starting the loader processes is in the time of their arm, as it is for a user.",
        )
    ]
