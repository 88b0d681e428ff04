"""Classify many texts, and see what batches they ran in. There is no batch_size to choose.

    pipeq worker text-classification=distilbert/distilbert-base-uncased-finetuned-sst-2-english
    python examples/batches.py [FILE WITH A TEXT ON EACH LINE]

The worker picks texts of similar length from its queue, up to the number of padded tokens that suits its device
(`max_batch_cost`), so that texts of mixed lengths need little padding. Each text gets the answer that it would have
alone.
"""

import sys
from collections import Counter
from pathlib import Path

from pipeq import Client

if len(sys.argv) > 1:
    texts = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
else:
    # Texts of 4 to 53 words, ordered so that neighbours differ in length: batches in this order would be half padding.
    texts = [f"film {at} was {'very ' * (at * 37 % 50)}good" for at in range(500)]

with Client() as client:
    ids = client.submit_many("text-classification", texts)
    statuses = list(client.as_completed(ids, timeout_s=600))

batches = [status.batch for status in statuses if status.batch]
# Each text's status gives the size of its batch, so a batch of 20 is counted 20 times.
for size, texts_in in sorted(Counter(batch.size for batch in batches).items()):
    print(f"{texts_in // size} batches of {size}")
print(f"padding: {sum(batch.padding for batch in batches) / max(len(batches), 1):.0%}")
print(f"done: {sum(status.error is None for status in statuses)} of {len(ids)}")
