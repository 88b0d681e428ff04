"""The README's examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pipeq.cli import main as cli
from pipeq_worker.settings.read import load_settings

from tests.acceptance.conftest import Service
from tests.media import encode_audio, encode_image, picture, tone

README = (Path(__file__).parents[2] / "README.md").read_text()
#: The Redis URL in the examples, which the test replaces.
REDIS = "redis://localhost:6379/0"


def example(name: str) -> str:
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, name
    return found[1]


@pytest.mark.parametrize("name", ["client", "celery", "async"])
def test_python_examples(service: Service, name: str) -> None:
    code = example(name)
    assert REDIS in code
    code = code.replace(REDIS, service.client.redis_url).replace("s3://talks/a.flac", "s3://inputs/talk.flac")
    if name == "client":
        service.s3.client().put_object(Bucket="inputs", Key="talk.flac", Body=encode_audio(tone(1), "flac"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "label" in done.stdout


def test_names_are_the_tasks_own(service: Service) -> None:
    code = f"from pipeq import Client\nclient = Client({service.client.redis_url!r})\n{example('once')}"
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)
    for task, found in (("run-7/a", 1), ("run-7/b", 2)):
        assert len(service.client.result(task, timeout_s=60)) == found


def test_a_job(service: Service, tmp_path: Path) -> None:
    (tmp_path / "reviews.jsonl").write_text('{"text": "Fine.", "review_id": 7}\n{"text": 5}\n')
    code = f"from pipeq import Client\nclient = Client({service.client.redis_url!r})\n{example('job')}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"custom_id":"7"' in (tmp_path / "results.jsonl").read_text()
    assert '"line":2' in (tmp_path / "errors.jsonl").read_text()


def test_bulk_is_a_stream(service: Service) -> None:
    code = f"from pipeq import Client\nclient = Client({service.client.redis_url!r})\n{example('bulk')}"
    done = subprocess.run(
        [sys.executable, "-c", code.replace("2000", "300")], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("label") == 300
    *_, last = done.stdout.splitlines()
    assert service.client.result(last, timeout_s=60)


def test_ten_lines_are_enough() -> None:
    code = example("client")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_shell_examples_are_commands_that_exist() -> None:
    for line in example("shell").splitlines():
        command = line.removeprefix("$ pipeq ").split()[0]
        assert cli.get_command(cli.make_context("pipeq", ["--help"], resilient_parsing=True), command), line


def test_a_shell_example_runs(service: Service) -> None:
    (service.inputs / "photo.png").write_bytes(encode_image(picture(), "png"))
    pipeq = [sys.executable, "-m", "pipeq"]
    env = ["--redis-url", service.client.redis_url]
    got = subprocess.run(
        [*pipeq, "submit", "text-classification", "I love this queue", "--wait", *env],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "LABEL_" in got.stdout
    path = str(service.inputs / "photo.png")
    params = ["--params", '{"top_k": 1}', "--wait"]
    got = subprocess.run(
        [*pipeq, "submit", "image-classification", path, *params, *env], capture_output=True, text=True, check=True
    )
    assert "LABEL_" in got.stdout


def test_settings_example_loads(tmp_path: Path) -> None:
    config = tmp_path / "pipelines.toml"
    config.write_text(example("settings"))
    settings = load_settings(config)
    assert settings.inputs.max_bytes == 512 * 2**20
    assert settings.pipelines["podcasts"].params == {"chunk_length_s": 30, "return_timestamps": True}
    # The value that the example calls the default is the default.
    assert settings.prefetch == type(settings).model_fields["prefetch"].default


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target


def test_the_demo_runs() -> None:
    command = [sys.executable, "-m", "pipeq", "demo", "What keeps a bad input from failing its neighbours?"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "What keeps a bad input from failing its neighbours?" in done.stdout
    assert re.search(r"\d+ tasks in \d+ batches", done.stdout)
