"""Sort a text under labels that the model was never trained on: zero-shot classification.

    pipeq worker zero-shot-classification=facebook/bart-large-mnli
    python examples/text.py [TEXT] [LABEL]...

Each label is an item of its own, so the labels of one text run as a batch, together with those of other tasks.
"""

import sys

from pipeq import Client

TEXT = "I have a problem with my iPhone that needs to be resolved asap!!"

text = sys.argv[1] if len(sys.argv) > 1 else TEXT
labels = sys.argv[2:] or ["urgent", "not urgent", "phone", "tablet", "computer"]

with Client() as client:
    task = client.submit("zero-shot-classification", text, params={"candidate_labels": labels})
    result = client.result(task, timeout_s=120)
    for label, score in zip(result["labels"], result["scores"], strict=True):
        print(f"{score:.3f}  {label}")
