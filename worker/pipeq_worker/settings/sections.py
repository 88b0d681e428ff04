"""The tables of pipelines.toml: one class each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pipeq.contract import keys
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from pipeq_worker.settings.values import (
    LISTED,
    Bytes,
    InputPrefix,
    OutputPrefix,
    Texts,
)


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
    allow: Annotated[tuple[InputPrefix, ...], *LISTED] = ()
    #: Largest single input, as stored.
    max_bytes: Bytes = 512 * 2**20
    #: Largest image, in pixels.
    max_pixels: int = Field(default=128_000_000, gt=0)
    #: Most bytes that the inputs of one task may take once they are decoded, with what their preparation takes for a
    #: moment: about 90 minutes of audio that is not cut into chunks (`chunk_length_s`), 500 million pixels, or 130 MB
    #: of text. Of tasks beyond an eighth of it, one at a time is prepared.
    #: What they take before they are decoded, at a time, and what the results of a task take until it ends, are bounded
    #: by as much, each by itself.
    max_decoded_bytes: Bytes = 4 * 2**30
    #: Longest audio, in seconds.
    max_audio_s: float = Field(default=4 * 3600, gt=0)
    #: Cells of one table, headers aside; a cell of more than 64 characters counts as several. Tokenizers of tables are
    #: Python, look at every cell, and cannot be stopped: 4,096 cells take about 3 seconds. All questions of one input
    #: may look at 16 times as many.
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
    allow: Annotated[tuple[OutputPrefix, ...], *LISTED] = ()
    #: How long one object may take to write to a store, tries included, in seconds.
    max_write_s: float = Field(default=600, gt=0)
    #: How long a record is kept after its task ended, in seconds.
    expires_s: int = Field(default=keys.RESULT_TTL_S, gt=0)
    #: Messages kept in each queue's dead-letter list, the newest.
    dead_letter_max: int = Field(default=10_000, gt=0)


class MetricsSettings(_Section):
    """What others may see of a worker, by HTTP: metrics for Prometheus, and whether it lives and is ready."""

    #: Port of ``/metrics``, ``/livez`` and ``/readyz``; nothing listens where it is absent. 0 takes any free port. With
    #: ``--devices`` the process of the first device has this port, and each further one the next.
    port: int | None = Field(default=None, ge=0, le=65535)
    #: Address to listen on. There are no passwords: anybody who reaches it may read names of pipelines, and numbers.
    host: str = Field(default="127.0.0.1", min_length=1)
    #: A part of the worker that has not turned for so long hangs, in seconds: ``/livez`` answers 503 then. A child that
    #: does not answer for so long is ended, and another one started. If Celery's event loop does not turn while the
    #: worker's host computes for so long, the kernel ends the worker.
    hung_s: float = Field(default=60, gt=0)


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
    #: Most padded cost in one batch (tokens, frames or patches: see the task type), or ``auto``: chosen from measured
    #: forward passes, so that launching them takes little of the time.
    max_batch_cost: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    #: Most bytes that the forward pass of one item may take beside the model, as estimated from the model's
    #: configuration: attention looks at each pair of tokens, beams and sequences keep what they read. 4 GiB on a CPU, a
    #: quarter of the device's memory elsewhere where it is absent.
    max_item_bytes: Bytes | None = None
    #: Most tokens of one item. Where it is absent, as many as `max_item_bytes` is enough for, 32,768 at most. A model's
    #: table of positions is a bound of its own.
    max_input_tokens: int | None = Field(default=None, gt=0)
    #: How long a ready item may wait for company while the device is idle and company is likely, in milliseconds.
    max_wait_ms: float = Field(default=5, ge=0)
    #: How long a task may take from the start of a try, when a worker begins to read and prepare its inputs, to its
    #: result, in seconds. Then it fails as ``timeout``, in whatever stage it is. A task may say less (``timeout_s`` of
    #: a submit); as long as it takes where this is absent.
    timeout_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    #: Share of the device's time that it gets while several pipelines have work, beside the weights of the others.
    weight: float = Field(default=1, gt=0, allow_inf_nan=False)
    #: Whether a text-generation pipeline generates continuously: a task gets a place among `max_batch_size` as soon as
    #: one is free, and leaves it with its last token, so that short answers do not wait for long ones. It knows
    #: max_new_tokens, max_length, eos_token_id, do_sample, temperature, top_k and top_p.
    continuous: bool = False
    #: Most bytes of the keys and values of all texts that `continuous` has at a time. 1 GiB on a CPU, half of the
    #: memory that is free elsewhere where it is absent.
    max_cache_bytes: Bytes | None = None
    #: Parameters of the pipeline's call, each overridden by a task's own.
    params: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_device(self) -> Self:
        if self.device is not None and self.device_map is not None:
            raise ValueError("give `device` or `device_map`, not both")
        return self

    #: Keyword arguments for the model's ``from_pretrained``, for instance ``attn_implementation``.
    model_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
