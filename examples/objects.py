"""Estimate depth. The result has files: an image becomes PNG, an array NPY, and the JSON says where they are.

    pipeq worker depth-estimation=depth-anything/Depth-Anything-V2-Small-hf --allow https://raw.githubusercontent.com/
    python examples/objects.py [FILE OR URI] [PNG TO WRITE]

With `[results] store` in the worker's settings, large results go to that store, and their objects become files of their
own. A client reads them from there if it is allowed to: PIPEQ_CLIENT_ALLOW=s3://results/, or
Client(allow=["s3://results/"]).
"""

import io
import sys
from pathlib import Path

import numpy as np
from pipeq import Client, Ref

SAMPLE = (
    "https://raw.githubusercontent.com/huggingface/transformers/main/tests/fixtures/tests_samples/COCO/000000039769.png"
)


source = sys.argv[1] if len(sys.argv) > 1 else SAMPLE
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "depth.png")

with Client() as client:
    task = client.submit("depth-estimation", Ref.of(source))
    result = client.result(task, timeout_s=120)
    # The bytes are in the JSON, or in the store: on a disk that the worker shares with us, or on S3.
    png, npy = client.read(result["depth"]), client.read(result["predicted_depth"])

picture.write_bytes(png)
print(f"depth: {result['depth']['media_type']} {result['depth']['shape']}, now {picture}")
depth = np.load(io.BytesIO(npy), allow_pickle=False)
print(f"predicted_depth: {depth.dtype} {list(depth.shape)}, {depth.min():.3f} to {depth.max():.3f}")
