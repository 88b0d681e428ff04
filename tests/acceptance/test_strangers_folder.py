"""The wheel in a fresh environment, used from a folder whose files have names like those of our modules."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Names of the user's own files. Most of these files report if another package imports them.
NOT_OURS = "worker producers queues status errors message client settings models pipelines tests benchmarks tools cli"
TASKS = """
from celery import shared_task

@shared_task(name="tasks.add")
def add(a, b):
    return a + b
"""
SUBMIT = """
import sys
from celery import Celery
from pipeq import Client, State

url = sys.argv[1]
with Client(url) as client:
    task_id = client.submit("constant", "hello")
    status = client.wait(task_id, timeout_s=30)
    assert status.state is State.SUCCEEDED, status
    print("result", client.result(task_id))
app = Celery(broker=url, backend=url)
print("sum", app.send_task("tasks.add", (2, 3), queue="mine").get(timeout=30))
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment with only our wheel installed, built from the files that git tracks."""
    folder = tmp_path_factory.mktemp("fresh")
    source = folder / "source"
    source.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "env")
    python = folder / "env/bin/python"
    # The wheel's dependencies come from this environment, because installing torch again would take minutes.
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for path in map(Path, sys.path):
        if path.name == "site-packages":
            for one in path.iterdir():
                if "pipeq" not in one.name and one.suffix != ".pth" and not (dependencies / one.name).exists():
                    (dependencies / one.name).symlink_to(one)
    (Path(site) / "dependencies.pth").write_text(f"{dependencies}\n")
    # By this environment's pip, because installing another one takes seconds.
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-qq", "--no-deps", "--no-index", wheel], check=True)
    return python.parent


def test_it_serves_submits_and_polls_from_there(fresh: Path, redis_url: str, tmp_path: Path) -> None:
    for name in NOT_OURS.split():
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('somebody imported my own file')\n")
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "submit.py").write_text(SUBMIT)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [fresh / "pipeq", "worker", "constant", "--redis-url", redis_url]
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--include", "tasks", "--queue", "mine"], cwd=tmp_path, env=env, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while b"ready: serving" not in (tmp_path / "worker.log").read_bytes():
            assert process.poll() is None, (tmp_path / "worker.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "worker.log").read_text()
            time.sleep(0.1)
        done = subprocess.run(
            [fresh / "python", "submit.py", redis_url], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.stdout == "result constant\nsum 5\n", done.stderr + (tmp_path / "worker.log").read_text()
        for start in ([fresh / "pipeq"], [fresh / "python", "-m", "pipeq"]):
            shown = subprocess.run(
                [*start, "queues", "--redis-url", redis_url], cwd=tmp_path, env=env, capture_output=True, text=True
            )
            assert "constant" in shown.stdout, shown.stderr
    finally:
        process.terminate()
        assert process.wait(60) == 0, (tmp_path / "worker.log").read_text()


@pytest.mark.parametrize("name", ["redis.py", "celery.py", "json.py", "kombu.py", "pydantic/__init__.py"])
def test_a_file_that_hides_a_package_is_named(fresh: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine = True\n")
    (tmp_path / "app.py").write_text("from pipeq import Client\n\nClient()\n")
    package = name.removesuffix(".py").removesuffix("/__init__")
    says = f"{path} hides the package '{package}', which pipeq needs: give your file another name"
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    for command in (["app.py"], ["-m", "pipeq", "queues"]):
        done = subprocess.run([fresh / "python", *command], cwd=tmp_path, env=env, capture_output=True, text=True)
        if package in ("celery", "kombu"):
            assert "hides" not in done.stderr, "a producer does not need it"
        elif command == ["app.py"]:
            assert done.stderr.splitlines()[-1] == f"ImportError: {says}"
        else:
            assert done.stderr == f"pipeq: missing_package: {says}\n"


def test_the_wheel_holds_two_packages_and_nothing_else(fresh: Path) -> None:
    [wheel] = fresh.parents[1].glob("*.whl")
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    tops = {line.split("/")[0] for line in names[1:] if line}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pipeq", "pipeq_worker"}
    held = {line.split()[0] for line in names[1:] if line}
    for folder in ("producers", "worker"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".lua", ".typed"):
                assert path.relative_to(ROOT / folder).as_posix() in held
