"""SETTINGS: pipelines.toml + environment + command line -> one frozen object, read once.

A bad value stops the start, and the error names its key. Environment variables ``PIPEQ_<KEY>`` override the file, and
the command line overrides both. A nested key has two underscores (``PIPEQ_INPUTS__MAX_BYTES``); a list is one value,
several with commas between them, or JSON.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal

from pipeq.contract import keys, shown
from pipeq.contract.errors import SettingsError
from pydantic import (
    Field,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as EnvironmentVariableError

from pipeq_worker.settings import errors as settings_errors
from pipeq_worker.settings.sections import (
    InputSettings,
    MetricsSettings,
    ParamLimits,
    PipelineSettings,
    ResultSettings,
    S3Settings,
)
from pipeq_worker.settings.values import LISTED, Bytes, ModuleName, QueueName, RedisUrl

#: The command line's values, while the settings are being read.
_command_line: ContextVar[dict[str, Any]] = ContextVar("command_line", default={})  # noqa: B039 - never changed


class Settings(BaseSettings):
    """Everything a worker can be told."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="PIPEQ_", env_nested_delimiter="__", validate_default=True
    )

    #: ``redis://user:password@host:6379/0``, ``rediss://`` for TLS, ``unix:///path`` for a socket; options of redis-py
    #: may follow, as in ``?health_check_interval=10&socket_timeout=20``.
    redis_url: RedisUrl = "redis://localhost:6379/0"
    s3: S3Settings = S3Settings()
    inputs: InputSettings = InputSettings()
    results: ResultSettings = ResultSettings()
    param_limits: ParamLimits = ParamLimits()
    metrics: MetricsSettings = MetricsSettings()
    #: Name -> pipeline.
    pipelines: dict[QueueName, PipelineSettings] = Field(default_factory=dict)
    #: Modules with ordinary Celery tasks (``@shared_task``), which run in CPU threads beside the pipelines. Also
    #: ``--include``.
    include: Annotated[tuple[ModuleName, ...], *LISTED] = ()
    #: Queues that those tasks are taken from. Also ``--queue``.
    celery_queues: Annotated[tuple[QueueName, ...], *LISTED] = ("celery",)
    #: The device of pipelines that name none: ``auto`` is the first accelerator, else the CPU.
    device: str = "auto"
    #: Largest message, as JSON. Producers have the same limit.
    max_message_bytes: Bytes = keys.MAX_MESSAGE_BYTES
    #: Most tasks of one pipeline that may be inside a worker at once; they are the window that batches are picked from.
    prefetch: int = Field(default=512, gt=0)
    #: A worker takes so many tasks of one pipeline at most that the device needs so long for them, as measured, in
    #: seconds; but at least two batches, and never more than `prefetch`.
    prefetch_s: float = Field(default=5, gt=0)
    #: Bytes of inputs and prepared items that may be inside a worker at once, shared out evenly among its pipelines; a
    #: task larger than a share is let in alone.
    prefetch_bytes: Bytes = 2 * 2**30
    #: Threads that read references, for each pipeline.
    fetch_threads: int = Field(default=16, gt=0)
    #: Items (rows of model input) that one task may become: its inputs, each as often as it has labels or chunks.
    max_items: int = Field(default=20_000, gt=0)
    #: Threads that decode and prepare, for each pipeline; by default the number of CPUs, 8 at most.
    prepare_threads: int | None = Field(default=None, gt=0)
    #: Processes that prepare inputs and finish outputs beside the device process: each takes a few hundred MB for torch
    #: and transformers, and keeps that work off the model's time. 0: threads of the device process do it. ``auto``: one
    #: for four cores, at least 1 where there are two cores, 4 at most.
    prepare_processes: Annotated[int, Field(ge=0, le=16)] | Literal["auto"] = "auto"
    #: Most memory of each of these processes and of the device process, as the data that it allocates on the CPU; what
    #: goes beyond fails there, for its own task. By default there is no limit.
    process_max_bytes: Bytes | None = None
    #: If no task came for so long, the device process ends and gives all its memory back, that of the GPU included; the
    #: next task starts it again, and waits for that, in seconds. By default it stays.
    idle_unload_s: float | None = Field(default=None, gt=0)
    #: Most bytes of weights that the device process holds at a time. Where all pipelines need more, those with waiting
    #: tasks are loaded in turn, and the least wanted one is unloaded for them. By default all are loaded.
    max_loaded_bytes: Bytes | None = None
    #: Threads that torch uses for one operation on the CPU; torch's own default where it is absent.
    torch_threads: int | None = Field(default=None, gt=0)
    #: Whether nobody may serve a pipeline of the same name with another model, revision or parameters: this worker
    #: refuses to start beside such a one, and such a one beside this. If it is false for both, both log a warning.
    strict: bool = False
    #: Tries of a task whose store is unreachable, the first one included. A try that a worker fails by a fault of its
    #: own (no credentials, a full disk) does not count, nor does the wait for a store that is known to be away.
    max_attempts: int = Field(default=12, gt=0)
    #: The first retry waits at most this long, each further one at most twice as long as the one before, in seconds;
    #: how long is chosen at random, so that tasks which failed together do not come back together.
    retry_backoff_s: float = Field(default=2, gt=0)
    #: A retry never waits longer than this, in seconds.
    retry_backoff_max_s: float = Field(default=300, gt=0)
    #: A task that still fails so long after its first try is given up, whatever the reason is, in seconds.
    max_retry_age_s: float = Field(default=86_400, gt=0)
    #: Tasks of one pipeline that fail in a row by a fault of this worker before it stops taking the pipeline's tasks.
    max_own_faults: int = Field(default=5, gt=0)
    #: So long it takes none then, in seconds, and twice as long each time that the one task which it tries after that
    #: fails in the same way, up to `retry_backoff_max_s`.
    own_fault_pause_s: float = Field(default=10, gt=0)
    #: Processes, or whole workers, that may die while they work on a task before it fails as ``worker_lost``. A death
    #: that many tasks share counts once for each, and from then on each is alone.
    max_deaths: int = Field(default=3, gt=0)
    #: A worker's right to a message lasts this long unless it is renewed, in seconds; it is, three times in that time.
    #: The messages of a worker that died go back on their queues this long after its last renewal ...
    lease_s: float = Field(default=15, gt=0)
    #: ... plus at most this long, in seconds.
    sweep_s: float = Field(default=5, gt=0)
    #: A forward pass beyond this ends the process that holds the model, and another one is started, in seconds.
    hard_timeout_s: float = Field(default=600, gt=0)
    #: The same for one step of preparing or finishing a task: decoding one input, preparing one item, making the
    #: result, in seconds. A worker that takes so long to store one task's end, with its links, callbacks and signals,
    #: while Redis answers, ends itself; who started it starts it again.
    step_timeout_s: float = Field(default=300, gt=0)
    #: The same for loading one pipeline, its download included, in seconds. A worker whose processes die three times in
    #: a row while they load, or are ended for this reason, stops.
    load_timeout_s: float = Field(default=3600, gt=0)
    #: How long what runs may go on after SIGTERM, in seconds. What does not run yet goes back on its queue at once, and
    #: in the end what runs still.
    drain_s: float = Field(default=20, ge=0)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    #: ``text`` for people, ``json`` for machines.
    log_format: Literal["text", "json"] = "text"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources of settings, strongest first: command line, environment, and the file."""
        return InitSettingsSource(settings_cls, _command_line.get()), env_settings, init_settings


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Reads the settings.

    Args:
        config: a TOML file; its keys are those of :class:`Settings`.
        overrides: top-level keys from the command line; they override the file and the environment.

    Raises:
        SettingsError: names the file and the key.
    """
    fields: dict[str, Any] = {}
    if config is not None:
        try:
            fields = tomllib.loads(config.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"cannot read {config}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{config} is no TOML: {error}") from error
    where = str(config) if config else "settings"
    if unknown := settings_errors.unknown_variables(os.environ, Settings):
        raise SettingsError("; ".join(unknown))
    token = _command_line.set(overrides)
    try:
        return Settings(**fields)
    except ValidationError as error:
        raise SettingsError(f"{where}: {'; '.join(settings_errors.sentences(error, Settings))}") from error
    except EnvironmentVariableError as error:
        hint = "it takes JSON, or write one variable for each of its keys"
        raise SettingsError(f"{shown.line(str(error))}: {hint}") from error
    finally:
        _command_line.reset(token)


def from_command_line(
    config: Path | None,
    pipelines: Iterable[str] = (),
    allow: Iterable[str] = (),
    redis_url: str | None = None,
    log_format: str | None = None,
    include: Iterable[str] = (),
    celery_queues: Iterable[str] = (),
) -> Settings:
    """Reads the settings of ``pipeq worker``.

    What the command line names replaces the values of the file and of the environment, or adds to them.

    Raises:
        SettingsError: names the file and the key; also if there is no pipeline at all.
    """
    base = load_settings(config)
    overrides: dict[str, Any] = {}
    named = dict(_pipeline_argument(text) for text in pipelines)
    if named:
        overrides["pipelines"] = {**base.model_dump()["pipelines"], **named}
    if allow:
        overrides["inputs"] = {**base.inputs.model_dump(), "allow": (*base.inputs.allow, *allow)}
    if redis_url is not None:
        overrides["redis_url"] = redis_url
    if log_format is not None:
        overrides["log_format"] = log_format
    if include:
        overrides["include"] = (*base.include, *include)
    if celery_queues:
        overrides["celery_queues"] = tuple(celery_queues)
    settings = load_settings(config, **overrides)
    if not settings.pipelines and not settings.include:
        raise SettingsError(
            "no pipeline to serve: name one, as in `pipeq worker text-classification`, or give --config"
        )
    return settings


def _pipeline_argument(text: str) -> tuple[str, dict[str, Any]]:
    """``TASK[=MODEL]`` -> a section of [pipelines]."""
    name, _, model = text.partition("=")
    return name, {"model": model or None}
