"""Classify images by reference: PNG, JPEG, WebP and others, from a disk, S3 or a web server that the worker may read.

    pipeq worker image-classification=google/vit-base-patch16-224 --allow https://raw.githubusercontent.com/
    python examples/vision.py [FILE OR URI]...

A small image may also travel inside the message: `Ref.from_bytes(data)`, up to 256 KiB for the whole message.
"""

import sys

from pipeq import Client, Ref

FIXTURES = "https://raw.githubusercontent.com/huggingface/transformers/main/tests/fixtures/tests_samples"

sources = sys.argv[1:] or [f"{FIXTURES}/COCO/000000039769.png", f"{FIXTURES}/COCO/apple.jpg"]

with Client() as client:
    images = [Ref.of(source) for source in sources]
    # A list in one task gives one result for each image, in the same order.
    task = client.submit("image-classification", images, params={"top_k": 3})
    for source, labels in zip(sources, client.result(task, timeout_s=120), strict=True):
        print(source)
        for label in labels:
            print(f"  {label['score']:.3f}  {label['label']}")
