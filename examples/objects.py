"""Estimate depth, a result of files: an image becomes PNG, an array NPY; the JSON says where they are.

    pipeq worker depth-estimation=depth-anything/Depth-Anything-V2-Small-hf --allow https://raw.githubusercontent.com/
    python examples/objects.py [FILE OR URI] [PNG TO WRITE]

With `[results] store` in the worker's settings, large results lie there, objects as files of their own.
"""

import base64
import io
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import boto3
import numpy as np

from producers import Client

SAMPLE = (
    "https://raw.githubusercontent.com/huggingface/transformers/main/tests/fixtures/tests_samples/COCO/000000039769.png"
)


def read(part: dict[str, Any]) -> bytes:
    """The bytes of an object: inside the JSON, on a disk that the worker shares with us, or on S3."""
    if "base64" in part:
        return base64.b64decode(part["base64"])
    scheme, _, rest = part["uri"].partition("://")
    if scheme == "file":
        return Path(unquote(rest)).read_bytes()
    bucket, _, key = rest.partition("/")
    return boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()


source = sys.argv[1] if len(sys.argv) > 1 else SAMPLE
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "depth.png")

with Client() as client:
    task = client.submit("depth-estimation", source if "://" in source else Path(source))
    result = client.result(task, timeout_s=120)

picture.write_bytes(read(result["depth"]))
print(f"depth: {result['depth']['media_type']} {result['depth']['shape']}, now {picture}")
depth = np.load(io.BytesIO(read(result["predicted_depth"])), allow_pickle=False)
print(f"predicted_depth: {depth.dtype} {list(depth.shape)}, {depth.min():.3f} to {depth.max():.3f}")
