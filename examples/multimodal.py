"""Ask about an image: visual question answering, and a chat with a model that sees.

    pipeq worker visual-question-answering=Salesforce/blip-vqa-base image-text-to-text=llava-hf/llava-interleave-qwen-0.5b-hf --allow https://raw.githubusercontent.com/
    python examples/multimodal.py [FILE OR URI] [QUESTION]

Here one worker serves both models; two workers with one model each would work as well.
"""  # noqa: E501 - a command is one line

import sys

from pipeq import Client, Ref

SAMPLE = (
    "https://raw.githubusercontent.com/huggingface/transformers/main/tests/fixtures/tests_samples/COCO/000000039769.png"
)

source = sys.argv[1] if len(sys.argv) > 1 else SAMPLE
question = sys.argv[2] if len(sys.argv) > 2 else "What animals are in the picture?"
image = Ref.of(source)

with Client() as client:
    # An input with several fields is an object. Both tasks are queued before the first result is waited for.
    asked = client.submit("visual-question-answering", {"image": image, "question": question})
    turn = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}
    chatted = client.submit("image-text-to-text", [turn], params={"max_new_tokens": 40})

    print("answer:", client.result(asked, timeout_s=120)[0]["answer"])
    # The result is the chat, with the model's turn at its end, and with the image as the reference that was sent.
    chat = client.result(chatted, timeout_s=300)[0]["generated_text"]
    print("chat:", chat[-1]["content"])
