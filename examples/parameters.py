"""Parameters of a pipeline's call: defaults in the worker's settings, overridden by a task for itself alone.

    pipeq worker --config examples/parameters.toml
    python examples/parameters.py [TEXT]

Tasks with different parameters may wait on the same queue; only those with the same ones share a batch.
"""

import sys

from pipeq import Client, PipeqError

text = sys.argv[1] if len(sys.argv) > 1 else "You remembered my birthday!"

with Client() as client:
    # The settings say top_k = 1.
    default = client.submit("emotions", text)
    # What a task names goes before the settings; what it does not name stays as they have it.
    overridden = client.submit("emotions", text, params={"top_k": 3})
    # transformers passes over a name that it does not know; here the task fails and names it.
    misspelt = client.submit("emotions", text, params={"topk": 3})

    for said, task in (("by default", default), ("top_k = 3", overridden)):
        labels = client.result(task, timeout_s=60)
        print(f"{said}: {', '.join(label['label'] for label in labels)}")
    try:
        client.result(misspelt, timeout_s=60)
    except PipeqError as error:
        print(f"topk = 3: {error}")
