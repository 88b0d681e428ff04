"""Classify a Hugging Face dataset: a column, as with KeyDataset, then a stream that is never in memory as a whole.

    pipeq worker text-classification=distilbert/distilbert-base-uncased-finetuned-sst-2-english
    python examples/dataset.py [NAME ON THE HUB OR FOLDER] [COLUMN] [SPLIT]

Needs `datasets`: pip install "pipeq[examples]".
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from datasets import load_dataset
from pipeq import Client, TaskStatus

DEFAULTS = ["cornell-movie-review-data/rotten_tomatoes", "text", "test"]
PIPELINE = "text-classification"
WINDOW = 500

name, column, split = sys.argv[1:4] + DEFAULTS[len(sys.argv[1:4]) :]
client = Client()


def answers(texts: Iterable[str]) -> Iterator[TaskStatus]:
    """Yields a status for each text, with at most two windows in flight, however long the iterator is."""
    texts = iter(texts)
    waiting = client.submit_many(PIPELINE, islice(texts, WINDOW))
    while waiting:
        # Queue the next window before waiting for the last one, so that the worker always has work.
        following = client.submit_many(PIPELINE, islice(texts, WINDOW))
        yield from client.as_completed(waiting, timeout_s=600)
        waiting = following


# A column of datasets 4 is read while it is iterated over. All tasks are queued, and results come as they are done.
ids = client.submit_many(PIPELINE, load_dataset(name, split=split)[column])
row_of = {task: row for row, task in enumerate(ids)}
for status in client.as_completed(ids, timeout_s=600):
    print(f"row {row_of[status.id]}: {client.result(status.id)[0]['label']}")

stream = load_dataset(name, split=split, streaming=True)
labels = Counter(client.result(status.id)[0]["label"] for status in answers(row[column] for row in stream))
print(f"streamed {labels.total()}: {dict(sorted(labels.items()))}")
