"""Servers that the tests share. Each is started when a test first needs it, and removed at the end."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports transformers: tests never ask the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from pipeq.demo import embedded

#: What the shared S3 server has.
BUCKETS = ("inputs", "results")


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
    """The folder of the tiny models; each is built when a test first asks for it."""
    return tmp_path_factory.mktemp("models")
