"""SETTINGS: for a misspelt key the error suggests the right one; lists are read as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeq.contract.errors import PipeqError
from pipeq_worker.settings.read import Settings, load_settings
from pipeq_worker.settings.sections import PipelineSettings


def said(config: Path | None = None) -> str:
    with pytest.raises(PipeqError) as caught:
        load_settings(config)
    assert caught.value.code == "invalid_settings"
    return caught.value.message


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("PIPEQ_PREFECH", "PIPEQ_PREFETCH"),
        ("PIPEQ_REDIS", "PIPEQ_REDIS_URL"),
        ("PIPEQ_INPUTS_ALLOW", "PIPEQ_INPUTS__ALLOW"),
        ("PIPEQ_INPUT__ALLOW", "PIPEQ_INPUTS__ALLOW"),
        ("PIPEQ_CLIENT_ALOW", "PIPEQ_CLIENT_ALLOW"),
        ("pipeq_log_levl", "PIPEQ_LOG_LEVEL"),
    ],
)
def test_a_misspelt_variable_is_said_with_what_was_meant(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "4")
    assert f"no setting is called {variable}; did you mean {meant}?" in said()


@pytest.mark.parametrize("name", [f"{key}_" for key in Settings.model_fields] + ["zzzz"])
def test_every_unknown_variable_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"PIPEQ_{name.upper()}", "4")
    assert f"PIPEQ_{name.upper()}" in said()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        # Kubernetes sets these for a service called pipeq-redis, Docker for a link.
        ("PIPEQ_REDIS_SERVICE_HOST", "10.0.0.1"),
        ("PIPEQ_REDIS_SERVICE_PORT_REDIS", "6379"),
        ("PIPEQ_REDIS_PORT", "tcp://10.0.0.1:6379"),
        ("PIPEQ_REDIS_PORT_6379_TCP", "tcp://10.0.0.1:6379"),
        ("PIPEQ_REDIS_PORT_6379_TCP_ADDR", "10.0.0.1"),
        ("PIPEQ_CLIENT_ALLOW", "s3://results/"),
        ("PIPEQ_CACHE", "/tmp/models"),
        ("PIPELINE", "x"),
    ],
)
def test_what_others_set_is_none_of_ours(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    load_settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[pipeline.x]", "pipeline: there is no such key; did you mean pipelines?"),
        (
            "[pipelines.x]\nmax_batchsize = 4",
            "pipelines.x.max_batchsize: there is no such key; did you mean max_batch_",
        ),
        ("[inputs]\nallowed = []", "inputs.allowed: there is no such key; did you mean allow?"),
        ("[results]\nttl = 4", "results.ttl: there is no such key; there are: inline_max_bytes, store"),
        ("[s3.archives]\nmax_byte = 4", "s3.archives.max_byte: there is no such key; did you mean max_bytes?"),
        ("prefech = 4", "prefech: there is no such key; did you mean prefetch?"),
    ],
)
def test_a_misspelt_key_is_said_with_what_was_meant(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "pipelines.toml"
    config.write_text(text)
    assert says in said(config)


@pytest.mark.parametrize("key", list(PipelineSettings.model_fields))
def test_every_key_of_a_pipeline_is_known_by_its_misspelling(tmp_path: Path, key: str) -> None:
    config = tmp_path / "pipelines.toml"
    config.write_text(f"[pipelines.x]\n{key}z = 4")
    assert f"pipelines.x.{key}z: there is no such key; did you mean " in said(config)


LISTS = {
    "PIPEQ_INPUTS__ALLOW": ("s3://x/", "file:///data/"),
    "PIPEQ_RESULTS__ALLOW": ("s3://x/", "file:///data/"),
    "PIPEQ_INPUTS__PRIVATE_NETWORKS": ("10.0.0.0/8", "192.168.0.0/16"),
    "PIPEQ_INCLUDE": ("a.tasks", "b.tasks"),
    "PIPEQ_CELERY_QUEUES": ("celery", "slow"),
}


@pytest.mark.parametrize("variable", LISTS)
def test_a_list_is_read_in_the_usual_ways(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    one, other = LISTS[variable]
    for text, want in {
        one: (one,),
        f"{one},{other}": (one, other),
        f"{one}, {other} ,": (one, other),
        f'["{one}", "{other}"]': (one, other),
        "": (),
    }.items():
        monkeypatch.setenv(variable, text)
        found = load_settings()
        for part in variable.removeprefix("PIPEQ_").lower().split("__"):
            found = getattr(found, part)
        assert found == want, text
    monkeypatch.setenv(variable, '["a",')
    assert "is no JSON list" in said()


def test_every_list_is_among_these() -> None:
    lists = [
        f"PIPEQ_{section}{name}".upper()
        for section, model in {"": Settings, "inputs__": Settings.model_fields["inputs"].annotation,
                               "results__": Settings.model_fields["results"].annotation}.items()
        for name, field in model.model_fields.items()  # type: ignore[union-attr]
        if "tuple" in str(field.annotation)
    ]  # fmt: skip
    assert sorted(lists) == sorted(LISTS)


def test_what_is_no_json_is_said_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEQ_PIPELINES", "text-classification")
    assert '"pipelines"' in said()
