"""Answers of 5 to 400 tokens: continuous batching against static batches, throughput and the time of the short half.

The model counts down from the number that it is given: its weights are set so that each token is followed by that of
the number below, and 1 by the end. So lengths are as wanted in both arms, while each step costs what a Llama of its
size costs. A static batch runs until its longest answer ends; in a continuous one an answer that has ended leaves its
place to the next.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from pipeq import Client
from pipeq.demo.embedded import valkey

from benchmarks import workers
from benchmarks.report import Options, Ratio, Result, alternate

SHORTEST, LONGEST = 5, 400
#: Rows of a batch, and places of the stream.
ROWS = 16
LAYERS, WIDTH = 2, 128
#: Tokens a second that the slower arm makes at least on a slow machine; only to choose the number of tasks.
RATE = 700
PARAMS = {"max_new_tokens": LONGEST + 1, "do_sample": False}


def countdown(folder: Path) -> Path:
    """Saves a Llama that counts down from the number in the prompt."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<end>", *map(str, range(1, LONGEST + 1)), "<pad>"]
    numbers = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<end>"))
    numbers.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=numbers, eos_token="<end>", pad_token="<pad>", unk_token="<end>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=LONGEST + 2,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=LONGEST + 1,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:  # they compute, and add nothing
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        directions = torch.nn.functional.normalize(torch.randn(LONGEST + 2, WIDTH), dim=1)
        model.model.embed_tokens.weight.copy_(directions)
        model.lm_head.weight.copy_(directions.roll(-1, 0))
    model.save_pretrained(folder)
    return folder


def lengths(count: int) -> list[int]:
    """As many short answers as long ones on a scale of logarithms, in any order; always the same."""
    rng = random.Random(0)
    return [round(SHORTEST * (LONGEST / SHORTEST) ** rng.random()) for _ in range(count)]


def run(client: Client, pipeline: str, wanted: list[int], shorts: list[float]) -> float:
    """Returns tokens a second, and appends the mean time from submit to result of the shorter half, in seconds."""
    ids = client.submit_many(pipeline, [str(one) for one in wanted], params=PARAMS, check=False)
    statuses = {one.id: one for one in client.as_completed(ids, timeout_s=workers.WAIT_S)}
    in_order = [statuses[one] for one in ids]
    for status, length in zip(in_order, wanted, strict=True):
        # The first number joins the prompt, and the end is not shown.
        result: Any = status.result
        if status.error or len(result[0]["generated_text"].split()) != length - 1:
            sys.exit(f"a task of {length} tokens failed: {status.error or result}")
    began = min(one.submitted_at or 0 for one in in_order)
    spans = [(one.finished_at or 0) - began for one in in_order]
    middle = statistics.median(wanted)
    shorts.append(statistics.mean(span for span, length in zip(spans, wanted, strict=True) if length <= middle))
    return sum(wanted) / max(spans)


def main(options: Options) -> list[Result]:
    """Runs both arms in turn, in one worker."""
    with tempfile.TemporaryDirectory() as name, valkey() as url:
        folder = countdown(Path(name))
        pipeline = f'task = "text-generation"\nmodel = "{folder}"\nmax_batch_size = {ROWS}\n'
        config = f"[pipelines.static]\n{pipeline}[pipelines.continuous]\n{pipeline}continuous = true\n"
        with workers.worker(url, config) as process, Client(url) as client:
            workers.wait_ready(client, "continuous", [process])
            wanted = lengths(workers.as_many_as(RATE / 90, options.seconds, 4 * ROWS, 2000))
            shorts: dict[str, list[float]] = {"static": [], "continuous": []}
            for arm in shorts:
                run(client, arm, lengths(ROWS), [])
            found = alternate(
                {arm: partial(run, client, arm, wanted, into) for arm, into in shorts.items()}, options.rounds
            )
    pairs = list(zip(found["continuous"], found["static"], strict=True))
    sooner = list(zip(shorts["static"], shorts["continuous"], strict=True))
    return [
        Result(
            "i",
            f"Answers of {SHORTEST} to {LONGEST} tokens, a small model",
            "tokens/s",
            found,
            [
                Ratio("continuous / static, tokens a second", [one / other for one, other in pairs], ">= 0.8"),
                Ratio("the short half, times sooner", [one / other for one, other in sooner], ">= 3"),
            ],
            f"{len(wanted)} tasks, all submitted at once; {ROWS} rows at a time in both arms; {LAYERS} layers of width "
            f"{WIDTH}, one torch thread. The short half: mean time from the submit to the result, of the answers up to "
            "the median length.",
        )
    ]
