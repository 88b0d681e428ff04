"""A real worker whose inputs say how long each stage takes, and what goes wrong there.

Its pipeline is put into the children by a ``sitecustomize`` module: no model can be made to do all this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.worker_process import WorkerProcess, worker

#: In the child only: an input such as ``prepare=0.2 items=3`` says what happens.
SLOW = """
import sys

if "pipeq_worker.children.main" in sys.orig_argv:
    import os, signal, time
    from dataclasses import replace
    from pathlib import Path
    from pipeq.contract.errors import PipeqError
    from pipeq_worker.models import constant_pipeline
    from pipeq_worker.models.pipeline import Prepared
    from pipeq_worker.models.task_type import Media

    def wishes(value):
        return dict(part.split("=", 1) for part in str(value).split() if "=" in part)

    def happen(value, stage):
        wanted = wishes(value)
        time.sleep(0 if stage == "forward" else float(wanted.get(stage, 0)))
        if wanted.get("fails") == stage:
            raise PipeqError("invalid_input", f"it fails in {stage}")
        if (once := wanted.get(f"away_in_{stage}")) and not Path(once).exists():
            Path(once).touch()
            raise PipeqError("input_unavailable", "it is away", True)
        if (once := wanted.get(f"dies_in_{stage}")) and not Path(once).exists():
            if once != "/always":
                Path(once).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    class Slow(constant_pipeline.ConstantPipeline):
        prepares_together = False

        def __init__(self, name, settings):
            super().__init__(name, settings)
            self.task_type = replace(self.task_type, fields={"value": Media.TEXT})  # which may be references

        def prepare(self, value, call):
            for _ in range(int(wishes(value).get("items", 1))):
                happen(value, "prepare")
                yield Prepared(str(value), (self.name,), 1, 1)

        def forward(self, features, call, running=None):
            seconds = max(float(wishes(value).get("forward", 0)) for value in features)
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                time.sleep(min(left, 0.05))
                if running is not None:
                    running.check()
            for value in features:
                happen(value, "forward")
            return features

        def postprocess(self, outputs, call):
            happen(outputs[0], "deliver")
            return outputs[0][:20]

    constant_pipeline.ConstantPipeline = Slow
"""
CONFIG = """
max_attempts = 3
max_deaths = 2
retry_backoff_s = 0.4
retry_backoff_max_s = 0.4
lease_s = 2
sweep_s = 0.5
[inputs]
allow = ["file://{folder}/"]
[pipelines.slow]
task = "constant"
max_batch_size = 4
max_wait_ms = 0
"""
PIPELINE = "slow"


@contextmanager
def serving(folder: Path, url: str, **settings: Any) -> Iterator[WorkerProcess]:
    (folder / "sitecustomize.py").write_text(SLOW)
    config = folder / "pipelines.toml"
    config.write_text(CONFIG.format(folder=folder))
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    with worker(folder, url, "--config", config, PYTHONPATH=path, **settings) as process:
        yield process
