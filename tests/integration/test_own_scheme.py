"""A scheme that a package registers by an entry point: the example of docs/stores.md, installed as it stands."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs/stores.md"
TOML, EXAMPLE, FSSPEC = re.findall(r"```(?:toml|python)\n(.*?)```", DOCS.read_text(), re.DOTALL)

PROGRAM = """
from pipeq import Ref
from pipeq.contract.errors import PipeqError
from pipeq.contract.message import Output
from pipeq_worker.settings.read import load_settings
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stores import registry
from pipeq_worker.stores.writer import Writer

registry.check()
settings = load_settings(None, inputs={"allow": ("sqlite://talks/", "sqlite://none/"), "max_bytes": 100},
                results={"allow": ("sqlite://results/",)})
fetcher, writer = Fetcher(settings.inputs, settings.s3), Writer(settings.results, settings.s3)
print(fetcher.fetch(Ref("sqlite://talks/a.flac")))
writer.put(Output(uri="sqlite://results/").object_uri("1"), b"{}", "application/json")
for uri in ("sqlite://talks/none", "sqlite://none/a", "sqlite://talks/large", "sqlite://private/a",
            "sqlite://talks/../private/a", "sqlite://talks/"):
    try:
        fetcher.fetch(Ref(uri))
    except PipeqError as error:
        print(error.code, error.retryable, error.message)
"""


def install(folder: Path, module: str, code: str, points: dict[str, str], package: str = "blobs-in-sqlite") -> None:
    """As pip leaves a package: its module, and its metadata beside it."""
    (folder / f"{module}.py").write_text(code)
    about = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    (about / "entry_points.txt").write_text(f"[pipeq.stores]\n{lines}\n")


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    def run(code: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "PYTHONPATH": path, "BLOBS_DATABASE": str(tmp_path / "blobs.db")}
        return subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, timeout=120)

    return run


def test_the_example_reads_and_writes(tmp_path: Path, run: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    install(tmp_path, "blobs_in_sqlite", EXAMPLE, tomllib.loads(TOML)["project"]["entry-points"]["pipeq.stores"])
    with closing(sqlite3.connect(tmp_path / "blobs.db")) as database, database:
        for table in ("talks", "results", "private"):
            database.execute(f"CREATE TABLE {table} (name TEXT PRIMARY KEY, data BLOB)")
        database.execute("INSERT INTO talks VALUES ('a.flac', 'sound'), ('large', ?)", (bytes(101),))
        database.execute("UPDATE talks SET data = CAST(data AS BLOB)")
    done = run(PROGRAM)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "b'sound'",
        "input_not_found False sqlite://talks/none: the database does not have it",
        "input_not_found False sqlite://none/a: the database says: no such table: none",
        "input_too_large False sqlite://talks/large has 101 bytes, and this worker reads 100 ([inputs] max_bytes)",
        "input_forbidden False this worker's settings do not allow sqlite://private/a: "
        'add "sqlite://private/" to [inputs] allow, or start the worker with --allow sqlite://private/',
        'input_forbidden False sqlite://talks/../private/a is not touched: its table or key holds "." or ".." segments',
        "input_not_found False sqlite://talks/ names a table but no object in it",
    ]
    with closing(sqlite3.connect(tmp_path / "blobs.db")) as database:
        [row] = database.execute("SELECT name, data FROM results")
    assert row == ("1.json", b"{}")


def test_without_the_package_it_is_no_scheme(run: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    done = run("from pipeq import Ref; Ref('sqlite://talks/a')")
    assert "'sqlite://talks/a' is not an s3://, file://, https://, gs://, az:// or hf:// URI" in done.stderr


def test_the_one_over_fsspec_is_a_store(tmp_path: Path, run: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    install(tmp_path, "files_by_sftp", FSSPEC, {"sftp": "files_by_sftp:Sftp"}, "files-by-sftp")
    done = run(
        "from pipeq_worker.stores import registry; registry.check(); print(registry.find('sftp').prefix('sftp://a/'))"
    )
    assert (done.stdout, done.returncode) == ("sftp://a/\n", 0), done.stderr


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ({"s3": "other:Sqlite"}, "the package other (other:Sqlite) registers s3://, which pipeq reads itself"),
        ({"x": "other:none"}, "the package other (other:none) registers x:// and cannot be loaded (AttributeError:"),
        ({"x": "nothing:X"}, "registers x:// and cannot be loaded (ModuleNotFoundError:"),
        ({"x": "other:os"}, "with what is not a subclass of pipeq_worker.stores.base.Store"),
        ({"x": "other:Sqlite"}, 'whose `scheme` is "x"'),
        ({"sqlite": "other:Sqlite"}, "both register sqlite://"),
    ],
)
def test_what_cannot_be_used_stops_the_start(
    tmp_path: Path, run: Callable[[str], subprocess.CompletedProcess[str]], point: dict[str, str], says: str
) -> None:
    install(tmp_path, "blobs_in_sqlite", EXAMPLE, {"sqlite": "blobs_in_sqlite:Sqlite"})
    install(tmp_path, "other", EXAMPLE, point, "other")
    done = run("from pipeq_worker.process.cli import worker; worker(['constant', '--check'])")
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.split()), done.stderr
