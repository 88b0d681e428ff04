"""Parameters of a pipeline's call: the worker's settings have defaults, and a task overrides them for itself alone.

    pipeq worker --config examples/parameters.toml
    python examples/parameters.py [TEXT]

Tasks with different parameters may wait on the same queue; only tasks with equal parameters share a batch.
"""

import sys

from pipeq import Client, PipeqError

text = sys.argv[1] if len(sys.argv) > 1 else "You remembered my birthday!"

with Client() as client:
    # The settings say top_k = 1.
    default = client.submit("emotions", text)
    # The task's parameters override those of the settings; the others keep the settings' values.
    overridden = client.submit("emotions", text, params={"top_k": 3})
    # transformers ignores a name that it does not know; here the task fails, and its error names it.
    misspelt = client.submit("emotions", text, params={"topk": 3})

    for said, task in (("by default", default), ("top_k = 3", overridden)):
        labels = client.result(task, timeout_s=60)
        print(f"{said}: {', '.join(label['label'] for label in labels)}")
    try:
        client.result(misspelt, timeout_s=60)
    except PipeqError as error:
        print(f"topk = 3: {error}")
