"""Chat with a model that is larger than one GPU: accelerate spreads it over the GPUs, the CPU and the disk.

    pipeq worker --config examples/device_map.toml
    python examples/device_map.py [QUESTION]

Only the worker's settings say where a model lies: the producer's code is the same as for a small model.
"""

import sys

from pipeq import Client

question = sys.argv[1] if len(sys.argv) > 1 else "What is the secret to baking a really good cake?"
chat = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": question},
]

with Client() as client:
    # This length is for this question only; the settings have one for tasks that set none.
    task = client.submit("large-chat", chat, params={"max_new_tokens": 60})
    status = client.wait(task, timeout_s=600)
    # The result is the chat, with the model's turn at its end.
    answer = client.result(task)[0]["generated_text"][-1]
    print(f"{answer['role']}: {answer['content']}")
    if status.model:
        print(f"({status.model.id} as {status.model.dtype}, on {status.model.device})")
