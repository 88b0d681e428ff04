"""A model that is loaded again is the one that it was, although another one lies under its name by now.

The Hub is a folder of its cache, as a download leaves it: ``refs/main`` names a commit, and each commit has a folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeq import Client
from pipeq.demo import embedded
from safetensors.torch import load_file, save_file

from tests import tiny_models
from tests.waiting import until
from tests.worker_process import READY_S, worker

NAME, PIPELINE = "some/model", "text-classification"
OLD, NEW = "1" * 40, "2" * 40
TEXT = "good"


def other_weights(folder: Path) -> None:
    """Makes another model of the one in a folder, with the same shapes."""
    path = folder / "model.safetensors"
    path.chmod(0o644)
    # Its labels change places.
    tensors = {name: one.roll(1, 0) if "classifier" in name else one for name, one in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})


class Hub:
    def __init__(self, home: Path, tiny: Path) -> None:
        self.home = home
        self._folder = home / "hub" / f"models--{NAME.replace('/', '--')}"
        for commit in (OLD, NEW):
            shutil.copytree(tiny_models.build("classifier", tiny), self._folder / "snapshots" / commit)
        other_weights(self._folder / "snapshots" / NEW)
        (self._folder / "refs").mkdir()
        self.push(OLD)

    def push(self, commit: str) -> None:
        (self._folder / "refs" / "main").write_text(commit)


@pytest.fixture
def hub(tmp_path: Path, tiny: Path) -> Hub:
    return Hub(tmp_path / "home", tiny)


@pytest.fixture
def url() -> Iterator[str]:
    with embedded.valkey() as url:
        yield url


def test_a_device_process_that_is_started_again_has_the_same_model(tmp_path: Path, url: str, hub: Hub) -> None:
    with Client(url) as client, worker(tmp_path, url, f"{PIPELINE}={NAME}", HF_HOME=hub.home) as process:
        process.wait_ready(client, PIPELINE)
        before = client.result(client.submit(PIPELINE, TEXT), timeout_s=60)
        hub.push(NEW)
        (device,) = process.roles()["device"]
        os.kill(device, signal.SIGKILL)
        task_id = client.submit(PIPELINE, TEXT)
        assert client.result(task_id, timeout_s=READY_S) == before
        model = client.status(task_id).model
        assert model is not None
        assert model.revision == OLD
        assert process.roles()["device"] != [device]
        assert "is not what it was" not in process.text()


def test_a_folder_that_holds_another_model_by_now_is_told_of(tmp_path: Path, url: str, tiny: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_models.build("classifier", tiny), folder)
    with Client(url) as client, worker(tmp_path, url, f"{PIPELINE}={folder}") as process:
        process.wait_ready(client, PIPELINE)
        before = client.result(client.submit(PIPELINE, TEXT), timeout_s=60)
        other_weights(folder)
        (device,) = process.roles()["device"]
        os.kill(device, signal.SIGKILL)
        assert client.result(client.submit(PIPELINE, TEXT), timeout_s=READY_S) != before
        until(lambda: f"{PIPELINE} is not what it was before it was loaded again: files" in process.text(), 10)


#: Weights that were given back for another pipeline's come from the same commit, too.
_RELOADS = """
import sys
from pathlib import Path
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.settings.sections import PipelineSettings
pipeline = load_pipeline("text-classification", PipelineSettings(model=sys.argv[1]), "cpu")
weights = [one.clone() for one in pipeline._pipe.model.parameters()]
Path(sys.argv[2]).write_text(sys.argv[3])
pipeline.unload()
pipeline.reload()
assert all((one == other).all() for one, other in zip(weights, pipeline._pipe.model.parameters(), strict=True))
assert pipeline.identity["revision"] != sys.argv[3]
"""


def test_weights_that_are_brought_back_are_the_same(hub: Hub) -> None:
    arguments = [NAME, str(hub._folder / "refs" / "main"), NEW]
    subprocess.run(
        [sys.executable, "-c", _RELOADS, *arguments],
        check=True,
        timeout=READY_S,
        env={**os.environ, "HF_HOME": str(hub.home)},
    )
