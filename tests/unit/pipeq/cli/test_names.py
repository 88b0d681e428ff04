"""Names that somebody misspelt: commands, options, variables of the environment, parameters."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from pipeq import cli
from pipeq.cli.names import check_params, nearest
from pipeq.contract import variables
from pipeq.contract.errors import PipeqError, SettingsError
from pipeq_worker.models.task_types import TASK_TYPES
from pipeq_worker.settings.read import Settings, load_settings
from pydantic import BaseModel

from tests.commands import run

PRODUCERS = Path(variables.__file__).parents[1]
WORKER = PRODUCERS.parents[1] / "worker/pipeq_worker"
CONTEXT = click.Context(cli.main)
COMMANDS = cli.main.list_commands(CONTEXT)


def sections() -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def misspelt(name: str) -> str:
    """Two letters change places; of a short name, the last one is doubled."""
    if len(name) < 4:
        return name + name[-1]
    at = next(at for at in range(len(name) // 2, len(name) - 1) if name[at] != name[at + 1])
    return name[:at] + name[at + 1] + name[at] + name[at + 2 :]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_command_is_said_with_the_one_that_was_meant(name: str) -> None:
    done = run(misspelt(name))
    assert done.exit_code == 2
    assert f"No such command {misspelt(name)!r}. Did you mean {name!r}?" in done.stderr


def test_commands_of_a_group_too() -> None:
    assert "Did you mean 'retry'?" in run("dead", "rerty").stderr
    assert "Did you mean" not in run("zzzzzz").stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_misspelt_option_is_said_with_the_one_that_was_meant(name: str) -> None:
    command = cli.main.get_command(CONTEXT, name)
    assert command is not None
    for option in command.params:
        if isinstance(option, click.Option):
            written = max(option.opts, key=len)
            done = run(name, f"{written}x")
            assert done.exit_code == 2
            assert written in done.stderr, "the message names what was meant"


def test_the_table_of_settings_is_the_worker_s() -> None:
    assert list(variables.SETTINGS) == list(Settings.model_fields)


def test_every_variable_that_the_code_reads_is_known() -> None:
    for path in (*PRODUCERS.rglob("*.py"), *WORKER.rglob("*.py")):
        for name in re.findall(r"""["'](PIPEQ_[A-Z0-9_]*[A-Z0-9])["']""", path.read_text()):
            assert variables.unknown({name: "x"}) == [], f"{path.name} reads {name}: add it to variables.py"


@pytest.mark.parametrize("name", variables.SETTINGS)
def test_every_misspelt_variable_stops_a_worker_and_a_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = f"PIPEQ_{misspelt(name.upper())}"
    monkeypatch.setenv(variable, "1")
    says = f"no setting is called {variable}; did you mean PIPEQ_"
    with pytest.raises(SettingsError, match=re.escape(says)):
        load_settings()
    done = run("queues", "--redis-url", "redis://127.0.0.1:9")
    assert done.exit_code == 2
    assert says in done.stderr


@pytest.mark.parametrize("name", [f"{name}__{inner}" for name, one in sections().items() for inner in one.model_fields])
def test_every_misspelt_variable_of_a_section_stops_a_worker(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section, _, inner = name.partition("__")
    variable = f"PIPEQ_{section}__{misspelt(inner)}".upper()
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SettingsError, match=rf"{section}\.{misspelt(inner)}: there is no such key; did you mean "):
        load_settings()
    monkeypatch.delenv(variable)
    # One underscore in place of two.
    monkeypatch.setenv(f"PIPEQ_{section}_{inner}".upper(), "1")
    with pytest.raises(SettingsError, match="did you mean PIPEQ_"):
        load_settings()


@pytest.mark.parametrize(
    "key",
    [*Settings.model_fields, *(f"{name}.{inner}" for name, one in sections().items() for inner in one.model_fields)],
)
def test_every_misspelt_key_of_a_settings_file_stops_a_worker(key: str, tmp_path: Path) -> None:
    section, _, name = key.rpartition(".")
    config = tmp_path / "mine.toml"
    config.write_text(f"[{section}]\n{misspelt(name)} = 1\n" if section else f"{misspelt(name)} = 1\n")
    where = f"{section}.{misspelt(name)}" if section else misspelt(name)
    with pytest.raises(SettingsError, match=rf"mine.toml: {re.escape(where)}: there is no such key; did you mean \w+"):
        load_settings(config)


@pytest.mark.parametrize("variable", ["PIPEQ_FOO", "PIPEQ_", "pipeq_zzz", "PIPEQ_" + "X" * 5000, "PIPEQ_É"])
def test_a_stranger_s_variable_is_an_error_that_names_the_nearest(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "bar")
    with pytest.raises(SettingsError, match=r"^invalid_settings: no setting is called .*(nearest is|mean) PIPEQ_\w+"):
        load_settings()
    for command in (("submit", "a", "x"), ("status", "a"), ("queues",), ("purge", "a"), ("dead", "list")):
        done = run(*command)
        assert done.exit_code == 2
        assert re.search(r"no setting is called .*PIPEQ_\w+", done.stderr)
        assert run(command[0], "--help").exit_code == 0


@pytest.mark.parametrize("name", ["PIPEQ_REDIS_PORT_6379_TCP_ADDR", "PIPEQ_REDIS_SERVICE_HOST", "PIPEQ_LEASE_S"])
def test_what_others_set_does_not_stop_a_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert run("queues", "--redis-url", "redis://127.0.0.1:9").exit_code == 5


def test_parameters_are_compared_with_those_that_a_worker_registered() -> None:
    names = [f"p{number}" for number in range(100)] + ["top_k", "return_all_scores"]
    check_params({"top_k": 2}, {"params": names}, "mine")
    for name in names[-2:]:
        with pytest.raises(PipeqError, match=f"'mine' takes no parameter '{misspelt(name)}'; did you mean '{name}'?"):
            check_params({misspelt(name): 1}, {"params": names}, "mine")
    with pytest.raises(PipeqError, match=r"takes no parameter 'zzzz'; there are: p0, .* and 82 more; --no-check"):
        check_params({"zzzz": 1}, {"params": names}, "mine")
    # What a stranger, or an older worker, has written there.
    for odd in ({}, {"params": None}, {"params": "top_k"}, {"params": [1, None]}):
        check_params({"anything": 1}, odd, "mine")
    assert nearest("x" * 10**6, TASK_TYPES).startswith("; there are: ")
    assert nearest("x", []) == "; there are: none"
