"""Pipelines that stand in for the models of a short soak, put into its workers by a ``sitecustomize`` module.

A process of a real model imports torch, which takes seconds; one of these starts in half a second, so that a quarter of
a minute has room for many deaths. They have prepare processes, read what models read, and their answers tell whether
another row or output was read in their place. `make soak` runs the models themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

_MODULE = """
import sys

from pipeq_worker.models import loading

if "pipeq_worker.children.main" in sys.orig_argv:
    import time
    from dataclasses import replace
    import numpy as np
    from pipeq_worker.models import constant_pipeline
    from pipeq_worker.models.call import Call
    from pipeq_worker.models.pipeline import Prepared
    from pipeq_worker.models.task_type import Media

    class StandIn(constant_pipeline.ConstantPipeline):
        prepares_together = False  # each value goes through `prepare`

        def __init__(self, name, settings):
            super().__init__(name, settings)
            media = Media.IMAGE if name.startswith("image") else Media.TEXT
            self.task_type = replace(self.task_type, fields={"value": media})

        def _merged(self, params):
            return Call(dict(params), key=str(sorted(params.items())))

        def prepare(self, value, call):
            time.sleep(0.002)
            data = value.encode() if isinstance(value, str) else value.tobytes()
            row = np.frombuffer(data, dtype=np.uint8).astype(np.int64)
            yield Prepared(row, (self.name, call.key), 1, row.nbytes)

        def forward(self, features, call, running=None):
            for _ in range(call.params.get("max_new_tokens", 2)):
                time.sleep(0.003)
                if running is not None:
                    running.check()
            return [row * 2 + 1 for row in features]

        def postprocess(self, outputs, call):
            (row,) = outputs
            return {"length": len(row), "sum": int(row.sum()), "steps": call.params.get("max_new_tokens", 2)}

    real = constant_pipeline.load_constant_pipeline
    constant_pipeline.load_constant_pipeline = lambda name, settings: (
        real(name, settings) if name == "constant" else StandIn(name, settings)
    )
    loading.dump_ends = lambda pipeline: b"stand-in" if isinstance(pipeline, StandIn) else None
    loading.load_ends = lambda data, name, settings, limits=None: StandIn(name, settings)
else:
    # The host: so that it starts prepare processes.
    loading.needs_torch = lambda name, settings: True
"""


def path(folder: Path) -> str:
    """Writes the module. Returns the ``PYTHONPATH`` of workers in which all of ``constant`` are stand-ins."""
    (folder / "sitecustomize.py").write_text(_MODULE)
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
