"""The hosted checks, the hook before a commit and the templates: read, and compared with the Makefile and pyproject."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            yield f"{path.stem}-{name}", job


JOBS = dict(jobs())


def matrix(job: dict[str, Any]) -> list[dict[str, str]]:
    """Every combination of a job's matrix; one empty one where it has none."""
    given = job.get("strategy", {}).get("matrix", {})
    return [dict(zip(given, values, strict=True)) for values in product(*given.values())]


def commands(job: dict[str, Any]) -> Iterator[str]:
    for values in matrix(job):
        for step in job["steps"]:
            if "run" in step:
                yield re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found, of=values: of[found[1]], step["run"])


@pytest.mark.parametrize("name", JOBS)
def test_a_job_runs_targets_of_the_makefile_and_nothing_else(name: str) -> None:
    ran = list(commands(JOBS[name]))
    assert ran
    for command in ran:
        program, target, *variables = command.split()
        assert program == "make"
        assert target in TARGETS, command
        for variable in variables:
            assert f"\n{variable.partition('=')[0]} ?= " in MAKEFILE, variable


@pytest.mark.parametrize("name", JOBS)
def test_a_job_ends_by_itself_and_uses_pinned_steps(name: str) -> None:
    assert JOBS[name]["timeout-minutes"] <= 360
    for step in JOBS[name]["steps"]:
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) if "uses" in step else step["run"]


def test_what_a_change_must_pass() -> None:
    ran = {command for name, job in JOBS.items() if name.startswith("checks-") for command in commands(job)}
    assert {command.split()[1] for command in ran} == {"lint", "test", "wheel", "images"}
    assert {command.split()[1] for command in commands(JOBS["nightly-walk"])} == {"chaos", "long", "fuzz"}


def test_the_versions_of_python_are_those_that_the_project_names() -> None:
    named = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if re.search(r":: Python :: 3\.\d+$", one)]
    assert JOBS["checks-test"]["strategy"]["matrix"]["python"] == named == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_images_are_those_of_the_dockerfile() -> None:
    targets = JOBS["checks-images"]["strategy"]["matrix"]["target"]
    stages = re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(targets) <= set(stages)
    assert f"\nTARGETS ?= {' '.join(targets)}\n" in MAKEFILE


def test_the_hook_before_a_commit_runs_the_makefile() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local", "nothing is fetched: the tools are those of constraints.txt"
    assert [hook["entry"] for hook in repo["hooks"]] == ["make lint"]


@pytest.mark.parametrize("name", ["bug.yml", "wish.yml"])
def test_templates_of_issues_ask_something(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / name).read_text())
    assert form["name"]
    assert form["description"]
    for field in form["body"]:
        assert field["type"] == "textarea"
        assert field["attributes"]["label"]
