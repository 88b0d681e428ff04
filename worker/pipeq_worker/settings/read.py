"""SETTINGS: pipelines.toml + environment + command line -> one frozen object, read once.

A bad value stops the start, and the error names its key. Environment variables ``PIPEQ_<KEY>`` override the file, and
the command line overrides both. A nested key has two underscores (``PIPEQ_INPUTS__MAX_BYTES``); a list is one value,
several with commas between them, or JSON.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pipeq.contract import keys as queues
from pipeq.contract import schemes, shown
from pipeq.contract.errors import SettingsError
from pipeq.contract.redis_url import options as redis_options
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as EnvironmentVariableError

from pipeq_worker.settings import errors as settings_errors

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(value: Any) -> Any:
    """``"512MiB"`` -> 536870912. Plain integers are bytes.

    Raises:
        ValueError: ``value`` is not a number with one of the units B, KiB, MiB, GiB, kB, MB, GB.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(f"{value!r} is no size like 65536, 64KiB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_list(value: Any) -> Any:
    """Parses a list as it stands in a variable: one value, several with commas between them, or JSON.

    Raises:
        ValueError: the value begins with a bracket and is no JSON.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{shown.line(value)!r} is no JSON list") from error
    return [part.strip() for part in value.split(",") if part.strip()]


def _check_input_prefix(uri: str) -> str:
    return _check_prefix(uri, schemes.known())


def _check_output_prefix(uri: str) -> str:
    return _check_prefix(uri, schemes.writable())


def _check_prefix(uri: str, known: tuple[str, ...]) -> str:
    scheme, _, rest = uri.partition("://")
    if schemes.of(uri) not in known:
        raise ValueError(f"{shown.uri(uri)!r} does not begin with one of {', '.join(f'{one}://' for one in known)}")
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError(f"{shown.uri(uri)!r} is not absolute: write file:///path/")
    if scheme != "file" and not rest.strip("/"):
        first = schemes.SCHEMES[scheme].first if scheme in schemes.SCHEMES else "place"
        raise ValueError(f"{shown.uri(uri)!r} names no {first}")
    return uri


def _check_redis_url(url: str) -> str:
    redis_options(url)
    return url


RedisUrl = Annotated[str, AfterValidator(_check_redis_url)]
Bytes = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
#: Runs before pydantic parses the tuple; NoDecode leaves JSON in the environment to :func:`parse_list`, too.
_Listed = (NoDecode, BeforeValidator(parse_list))
InputPrefix = Annotated[str, AfterValidator(_check_input_prefix)]
OutputPrefix = Annotated[str, AfterValidator(_check_output_prefix)]
Texts = Annotated[tuple[str, ...], *_Listed]


#: The command line's values, while the settings are being read.
_command_line: ContextVar[dict[str, Any]] = ContextVar("command_line", default={})  # noqa: B039 - never changed


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArchiveSettings(_Section):
    """Bounds of a model that is an archive on S3. A worker does not start with an archive that unpacks to more."""

    #: Most bytes, packed or unpacked.
    max_bytes: Bytes = 512 * 2**30
    #: Largest file in it, in bytes.
    max_file_bytes: Bytes = 128 * 2**30
    #: Most files and folders in it.
    max_files: int = Field(default=10_000, gt=0)
    #: Most bytes unpacked for each packed one, beyond 16 MiB. Weights hardly compress; a bomb of zeros gives 1,000.
    max_ratio: float = Field(default=50, ge=1)


class S3Settings(_Section):
    """How to reach S3. Credentials come from the usual AWS chain (environment, profile, role)."""

    #: For an S3 server that is not AWS, for instance ``http://localhost:9000``. Default: AWS_ENDPOINT_URL, then AWS.
    endpoint_url: str | None = None
    #: Default: the AWS chain's.
    region: str | None = None
    #: Address buckets in the path; ``auto`` does so where there is an endpoint URL.
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    #: Bounds of models that are archives.
    archives: ArchiveSettings = ArchiveSettings()


class InputSettings(_Section):
    """What a worker may read, and how much of it."""

    #: Prefixes of URIs that may be read; nothing outside them is. Also ``--allow``.
    allow: Annotated[tuple[InputPrefix, ...], *_Listed] = ()
    #: Largest single input, as stored.
    max_bytes: Bytes = 512 * 2**20
    #: Largest image, in pixels.
    max_pixels: int = Field(default=128_000_000, gt=0)
    #: Most bytes that the inputs of one task may take once they are decoded, with what their preparation takes for a
    #: moment: about 90 minutes of audio that is not cut into chunks (`chunk_length_s`), 500 million pixels, or 130 MB
    #: of text. Of tasks beyond an eighth of it, one at a time is prepared.
    #: Answers of the size of a picture (masks, depth, images) may take as much.
    max_decoded_bytes: Bytes = 4 * 2**30
    #: Longest audio, in seconds.
    max_audio_s: float = Field(default=4 * 3600, gt=0)
    #: Cells of one table, headers aside; a cell of more than 64 characters counts as several. Tokenizers of tables are
    #: Python, look at every cell, and cannot be stopped: 4,096 cells take about 3 seconds.
    max_table_cells: int = Field(default=4096, gt=0)
    #: Columns of one table: each is looked for in every row, and TAPAS knows no more.
    max_table_columns: int = Field(default=512, gt=0)
    #: Frames of a video that are decoded to find those that are asked for.
    max_video_frames: int = Field(default=100_000, gt=0)
    #: How long one connect or read of a remote store may take, in seconds.
    timeout_s: float = Field(default=30, gt=0)
    #: How long a whole input may take to read, from the name look-up to the last byte, redirects and tries included,
    #: however slowly it drips, in seconds.
    max_fetch_s: float = Field(default=600, gt=0)
    #: Networks (CIDR) that https:// may reach although they are private, for stores inside your own network.
    private_networks: Texts = ()
    #: PEM file of the authorities that https:// trusts. Default: the system's, or SSL_CERT_FILE.
    ca_bundle: Path | None = None


class ResultSettings(_Section):
    """Where results go."""

    #: Larger results go to ``store``.
    inline_max_bytes: Bytes = 64 * 2**10
    #: ``s3://bucket/prefix/`` or ``file:///folder/``. Without a store results stay inline up to 8 MiB.
    store: OutputPrefix | None = None
    #: Prefixes below which a producer may ask its output to be written.
    allow: Annotated[tuple[OutputPrefix, ...], *_Listed] = ()
    #: How long a record is kept after its task ended, in seconds.
    expires_s: int = Field(default=queues.RESULT_TTL_S, gt=0)
    #: Messages kept in each queue's dead-letter list, the newest.
    dead_letter_max: int = Field(default=10_000, gt=0)


class ParamLimits(_Section):
    """Ceilings of the parameters that a task, or ``[pipelines.x.params]``, may set."""

    #: Tokens that ``generate`` may write: ``max_new_tokens``, ``max_length`` and their like.
    max_new_tokens: int = Field(default=32_768, gt=0)
    #: Tokens that a text may be cut or filled up to: a tokenizer's ``max_length``, ``max_seq_len``, ``stride``.
    max_tokens: int = Field(default=32_768, gt=0)
    #: ``num_beams``.
    max_beams: int = Field(default=32, gt=0)
    #: ``num_return_sequences``.
    max_sequences: int = Field(default=32, gt=0)
    #: Labels, targets and the like that one task may name.
    max_labels: int = Field(default=1000, gt=0)
    #: ``top_k`` of pipelines that return the best few.
    max_results: int = Field(default=1000, gt=0)
    #: Frames of one video: ``num_frames``.
    max_frames: int = Field(default=512, gt=0)
    #: Width and height that an image may be scaled to, in pixels.
    max_image_side: int = Field(default=2048, gt=0)
    #: Pixels that the images of one input may have once they are scaled for the model; the frames of a video, too.
    max_scaled_pixels: int = Field(default=2**25, gt=0)
    #: Tokens, or sequences of them, in lists such as ``suppress_tokens`` and ``bad_words_ids``.
    max_list_items: int = Field(default=1000, gt=0)
    #: Characters of all the strings that end one generation, together: each is looked for in every token there is.
    max_stop_characters: int = Field(default=128, gt=0)


class PipelineSettings(_Section):
    """One pipeline: a task type, a model, and how to batch it."""

    #: Task type; the pipeline's name where it is absent.
    task: str | None = None
    #: A local folder, a name on the Hub, or an archive (``s3://bucket/model.tar.gz``, ``gs://``, ``az://``);
    #: transformers' default for the task where it is absent.
    model: str | None = None
    revision: str | None = None
    #: ``cpu``, ``cuda:0``, ...; the worker's device where it is absent.
    device: str | None = None
    #: For accelerate, for instance ``auto``; not together with ``device``, which it replaces.
    device_map: str | dict[str, int | str] | None = None
    #: ``float32``, ``float16``, ``bfloat16`` or ``auto`` (as the model was saved).
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    #: Parts of its own, each a folder or a name on the Hub; the model's where they are absent.
    tokenizer: str | None = None
    image_processor: str | None = None
    feature_extractor: str | None = None
    processor: str | None = None
    #: Of text-to-audio models that make spectrograms.
    vocoder: str | None = None
    #: A LoRA or another adapter of PEFT, put onto the model: a folder or a name on the Hub.
    adapter: str | None = None
    #: ``eager``, ``sdpa``, ``flash_attention_2``, ...; what transformers thinks best where it is absent.
    attn_implementation: str | None = None
    #: For ``device_map``: device (``0``, ``cpu``) -> most memory, for instance ``10GiB``.
    max_memory: dict[str, str] | None = None
    #: For ``device_map``: where what fits nowhere else is kept on disk.
    offload_folder: Path | None = None
    #: Whether the Hub's repository may bring code that runs here.
    trust_remote_code: bool = False
    #: Whether weights may be other than safetensors: loading a pickle runs what is in it.
    allow_pickle: bool = False
    #: Whether a model may start without weights that its checkpoint lacks: random numbers take their place, and the
    #: answers are random, too.
    allow_missing_weights: bool = False
    #: Most items in one batch.
    max_batch_size: int = Field(default=64, gt=0)
    #: Most padded cost in one batch (tokens, frames or pixels: see the task type); by default it depends on the device.
    max_batch_cost: int | None = Field(default=None, gt=0)
    #: Most bytes that the forward pass of one item may take beside the model, as estimated from the model's
    #: configuration: attention looks at each pair of tokens, beams and sequences keep what they read. 4 GiB on a CPU, a
    #: quarter of the device's memory elsewhere where it is absent.
    max_item_bytes: Bytes | None = None
    #: Most tokens of one item. Where it is absent, as many as `max_item_bytes` is enough for, 32,768 at most. A model's
    #: table of positions is a bound of its own.
    max_input_tokens: int | None = Field(default=None, gt=0)
    #: How long a ready item may wait for company while the device is idle, in milliseconds.
    max_wait_ms: float = Field(default=5, ge=0)
    #: Parameters of the pipeline's call, each overridden by a task's own.
    params: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_device(self) -> Self:
        if self.device is not None and self.device_map is not None:
            raise ValueError("give `device` or `device_map`, not both")
        return self

    #: Keyword arguments for the model's ``from_pretrained``, for instance ``attn_implementation``.
    model_kwargs: dict[str, JsonValue] = Field(default_factory=dict)


def _check_queue(name: str) -> str:
    if not queues.is_queue_name(name):
        raise ValueError(f"{shown.line(name)!r} is no name of a queue: {queues.QUEUE_NAME_WORDS}")
    return name


def _check_module(name: str) -> str:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{shown.line(name)!r} is no module's name like myapp.tasks")
    return name


QueueName = Annotated[str, AfterValidator(_check_queue)]
ModuleName = Annotated[str, AfterValidator(_check_module)]


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
    #: Name -> pipeline.
    pipelines: dict[QueueName, PipelineSettings] = Field(default_factory=dict)
    #: Modules with ordinary Celery tasks (``@shared_task``), which run in CPU threads beside the pipelines. Also
    #: ``--include``.
    include: Annotated[tuple[ModuleName, ...], *_Listed] = ()
    #: Queues that those tasks are taken from. Also ``--queue``.
    celery_queues: Annotated[tuple[QueueName, ...], *_Listed] = ("celery",)
    #: The device of pipelines that name none: ``auto`` is the first accelerator, else the CPU.
    device: str = "auto"
    #: Largest message, as JSON. Producers have the same limit.
    max_message_bytes: Bytes = queues.MAX_MESSAGE_BYTES
    #: Tasks of one pipeline that may be inside a worker at once; they are the window that batches are picked from.
    prefetch: int = Field(default=512, gt=0)
    #: Bytes of inputs and prepared items that may be inside a worker at once, shared out evenly among its pipelines; a
    #: task larger than a share is let in alone.
    prefetch_bytes: Bytes = 2 * 2**30
    #: Threads that read references, for each pipeline.
    fetch_threads: int = Field(default=16, gt=0)
    #: Items (rows of model input) that one task may become: its inputs, each as often as it has labels or chunks.
    max_items: int = Field(default=20_000, gt=0)
    #: Threads that decode and prepare, for each pipeline; by default the number of CPUs, 8 at most.
    prepare_threads: int | None = Field(default=None, gt=0)
    #: Threads that torch uses for one operation on the CPU; torch's own default where it is absent.
    torch_threads: int | None = Field(default=None, gt=0)
    #: Tries of a task whose store is unreachable, the first one included.
    max_attempts: int = Field(default=4, gt=0)
    #: The first retry waits about this long, each further one twice as long, in seconds.
    retry_backoff_s: float = Field(default=2, gt=0)
    #: A retry never waits longer than this, in seconds.
    retry_backoff_max_s: float = Field(default=300, gt=0)
    #: Workers that may die with a task in a batch before it fails as ``worker_lost``.
    max_deaths: int = Field(default=3, gt=0)
    #: A worker's right to a message lasts this long unless it is renewed, in seconds; it is, three times in that time.
    #: The messages of a worker that died go back on their queues this long after its last renewal ...
    lease_s: float = Field(default=15, gt=0)
    #: ... plus at most this long, in seconds.
    sweep_s: float = Field(default=5, gt=0)
    #: A forward pass beyond this ends the process, in seconds.
    hard_timeout_s: float = Field(default=600, gt=0)
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
