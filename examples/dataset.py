"""Classify a Hugging Face dataset: a column, as with KeyDataset, then a stream that is never in memory as a whole.

    pipeq worker text-classification=distilbert/distilbert-base-uncased-finetuned-sst-2-english
    python examples/dataset.py [NAME ON THE HUB OR FOLDER] [COLUMN] [SPLIT]

Needs `datasets`: pip install "pipeq[examples]".
"""

import sys
from collections import Counter

from datasets import load_dataset
from pipeq import Client

DEFAULTS = ["cornell-movie-review-data/rotten_tomatoes", "text", "test"]
PIPELINE = "text-classification"

name, column, split = sys.argv[1:4] + DEFAULTS[len(sys.argv[1:4]) :]
client = Client()

# A column of datasets 4 is read while it is iterated over. All tasks are queued, and results come as they are done.
ids = client.submit_many(PIPELINE, load_dataset(name, split=split)[column])
row_of = {task: row for row, task in enumerate(ids)}
for status in client.as_completed(ids, timeout_s=600):
    print(f"row {row_of[status.id]}: {client.result(status.id)[0]['label']}")

stream = load_dataset(name, split=split, streaming=True)
# Results in the order of the rows, with 500 rows under way, however long the stream is.
answers = client.map(PIPELINE, (row[column] for row in stream), in_flight=500)
labels = Counter(best["label"] for best, *_ in answers)
print(f"streamed {labels.total()}: {dict(sorted(labels.items()))}")
