"""A pipeline without a model that has prepare processes, put into a worker by a ``sitecustomize`` module.

A process of a real model imports torch, which takes seconds; one of this pipeline starts in half a second, so that
hundreds of them can be killed. Rows and outputs are arrays of many lengths, which travel through shared memory like
those of models, and an answer tells whether another row or output was read in their place.
"""

from __future__ import annotations

import os
from pathlib import Path

_MODULE = """
import sys

from pipeq_worker.models import loading

if "pipeq_worker.children.main" in sys.orig_argv:
    import time
    import numpy as np
    from pipeq_worker.models import constant_pipeline
    from pipeq_worker.models.pipeline import Prepared

    class Light(constant_pipeline.ConstantPipeline):
        prepares_together = False  # each value goes through `prepare`

        def prepare(self, value, call):
            time.sleep(0.002)
            row = np.full(500 + value * 37 % 20_000, value, dtype=np.int64)
            yield Prepared(row, (self.name, call.key), 1, row.nbytes)

        def forward(self, features, call, running=None):
            time.sleep(0.02)
            return [row * 2 + 1 for row in features]

        def postprocess(self, outputs, call):
            (row,) = outputs
            return {"length": len(row), "least": int(row.min()), "most": int(row.max())}

    constant_pipeline.ConstantPipeline = Light
    loading.dump_ends = lambda pipeline: b"light"
    loading.load_ends = lambda data, name, settings, limits=None: Light(name, settings)
else:
    # The host: so that it starts prepare processes.
    loading.needs_torch = lambda name, settings: True
"""


def path(folder: Path) -> str:
    """Writes the module. Returns the ``PYTHONPATH`` with which ``constant`` is this pipeline."""
    (folder / "sitecustomize.py").write_text(_MODULE)
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def answer(value: int) -> dict[str, int]:
    """The result of a task."""
    return {"length": 500 + value * 37 % 20_000, "least": value * 2 + 1, "most": value * 2 + 1}
