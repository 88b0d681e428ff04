"""The device on which tests run their models: the CPU, or what ``TEST_DEVICE`` names (``make gpu``)."""

import os

DEVICE = os.environ.get("TEST_DEVICE", "cpu")

if DEVICE != "cpu":
    import torch

    # By default cuDNN rounds what it convolves to ten bits, and batches of other sizes in another way.
    torch.backends.cudnn.allow_tf32 = False
