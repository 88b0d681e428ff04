"""Servers that the tests share. Each is started when a test first needs it, and removed at the end."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything imports transformers: tests never ask the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Test processes share the cores. torch's threads, which wait by spinning, would take them from each other: the slowest
# test of Whisper takes 60 s among three processes with two threads each, and 6 s alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from celery.result import AsyncResult
from pipeq.demo import embedded

HERE = Path(__file__).parent
#: Folders in the order in which they run. What takes longest comes first, so that no process has it left at the end.
#: Those of an entry run by the names of their files: chaos tests wait most of the time, and wait beside others that do
#: not.
ORDER = (("acceptance", "chaos", "fuzz", "gpu"), ("integration",), ("unit",))
#: What the shared S3 server has.
BUCKETS = ("inputs", "results")

# A result of Celery's unsubscribes when it is collected. One that a raised error holds in a cycle is collected during a
# later test, when its own server has stopped: it would wait for that server, and fail the other test.
del AsyncResult.__del__

# Nothing that tests and their libraries are made of becomes garbage, and a look for some among it takes half a second.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts test files by their folders."""
    items.sort(key=lambda item: _place(item.path))


def _place(path: Path) -> tuple[int, str]:
    folder = path.relative_to(HERE).parts[0]
    place = next((at for at, folders in enumerate(ORDER) if folder in folders), 0)
    # Otherwise as pytest found them.
    return place, path.name if place == 0 else ""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Decides what test processes run together."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.scheduling import Scheduling

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """From here on, garbage is what the tests leave."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """The ``redis://`` URL of a real Valkey. Tests share its database and flush it."""
    with embedded.valkey() as url:
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[embedded.S3Server]:
    """A real S3 server with the buckets ``inputs`` and ``results``, which tests share."""
    with embedded.s3(BUCKETS) as server:
        yield server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny models; each is built when a test first asks for it. All test processes share it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of the process is inside that of the run
    folder = folder / "models"
    folder.mkdir(exist_ok=True)
    return folder
