"""Messages for every task type, good ones and damaged ones."""

from __future__ import annotations

import base64
import copy
import json
import random
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from pipeq.contract import bare
from pipeq.contract.message import TaskMessage, plain
from pipeq.envelope import Envelope

from tests.fuzz import hostile
from tests.zoo import SERVED, inputs_of, refer

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
#: Parameters that contain other parameters, in at least one task type.
NESTED = (
    "generate_kwargs forward_params preprocess_params processor_kwargs tokenizer_kwargs tokenize_kwargs decoder_kwargs "
    "tokenizer_encode_kwargs image_processor_kwargs model_kwargs images_kwargs text_kwargs audio_kwargs videos_kwargs "
    "postprocess_params chat_template_kwargs"
).split()


@dataclass(frozen=True)
class Message:
    """A message, and the list that it is pushed to."""

    pipeline: str
    raw: bytes
    #: The way in which it was damaged, for the report.
    kind: str

    @property
    def id(self) -> str | None:
        """The message's id, if a JSON parser can find one that is valid as a key."""
        try:
            found = bare.id_of(json.loads(self.raw))
            return found if isinstance(found, str) and found.encode() else None
        except (ValueError, AttributeError, TypeError, RecursionError):  # among them half a surrogate pair
            return None


class Source:
    """Endless messages; the same seed gives the same ones.

    Args:
        inputs: the folder that the worker may read; files are written there.
        seed: of the source.
    """

    def __init__(self, inputs: Path, seed: int) -> None:
        self._rng = random.Random(seed)
        self._good = {
            task: [_inline(plain(refer(value, inputs, at)), inputs) for at, value in enumerate(inputs_of(task, inputs))]
            for task in SERVED
        }
        self._names = {task: _names(task) for task in SERVED}
        self._generation = sorted(n for n in transformers.GenerationConfig().to_dict() if not n.startswith("_"))

    def good(self, task: str) -> Message:
        """A message that succeeds."""
        return Message(task, hostile.encode(self._frame(task, self._kwargs(task))), "good")

    def spoilt(self) -> Message:
        """A message that may be damaged in any way."""
        rng = self._rng
        task = rng.choice(list(SERVED))
        kwargs = self._kwargs(task)
        draw = rng.random()
        if draw < 0.4:
            kind = "params"
            for _ in range(rng.choice((1, 1, 1, 2, 4))):
                self._spoil_params(task, kwargs)
        elif draw < 0.6:
            kind = "inputs"
            hostile.spoil({"inputs": kwargs} if rng.random() < 0.1 else kwargs, rng)
        elif draw < 0.7 and hostile.scramble_base64(kwargs, rng):
            kind = "media"
        else:
            kind = "frame"
        if rng.random() < 0.2:
            return self._spoilt_bare(task, kwargs)
        body: Any = [[], kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        if kind == "frame" and rng.random() < 0.4:
            kind = "body"
            hostile.spoil(body, rng)
        frame = self._frame(task, kwargs, body)
        if kind == "frame":
            for _ in range(rng.choice((1, 1, 2, 5))):
                hostile.spoil(rng.choice((frame, frame["headers"], frame["properties"])), rng)
                if not isinstance(frame.get("headers"), dict) or not isinstance(frame.get("properties"), dict):
                    break
        raw = hostile.encode(frame)
        if rng.random() < 0.07:
            return Message(task, hostile.scramble(raw, rng), "bytes")
        return Message(task, raw, kind)

    def _spoilt_bare(self, task: str, kwargs: dict[str, Any]) -> Message:
        """A bare message; its own fields may be damaged, too."""
        rng = self._rng
        message = {"id": str(uuid.UUID(int=rng.getrandbits(128))), **kwargs}
        for name in rng.sample(sorted({*TaskMessage.model_fields, *bare.OWN_FIELDS}), rng.choice((0, 1, 1, 2))):
            message[name] = hostile.value(rng)
        if rng.random() < 0.3:
            hostile.spoil(message, rng)
        raw = hostile.encode(message)
        return Message(task, hostile.scramble(raw, rng) if rng.random() < 0.2 else raw, "bare")

    def _kwargs(self, task: str) -> dict[str, Any]:
        inputs = copy.deepcopy(self._rng.choice(self._good[task]))
        if self._rng.random() < 0.3:
            inputs = [inputs]
        return {"pipeline": task, "inputs": inputs, "params": _short(SERVED[task][1])}

    def _spoil_params(self, task: str, kwargs: dict[str, Any]) -> None:
        rng, params = self._rng, kwargs["params"]
        draw = rng.random()
        if draw < 0.45:
            params[rng.choice(self._names[task])] = hostile.value(rng)
        elif draw < 0.65:
            params[rng.choice(self._generation)] = hostile.value(rng)
        elif draw < 0.95:
            into = params
            for _ in range(rng.choice((1, 1, 2))):
                name = rng.choice(NESTED)
                if not isinstance(into.get(name), dict):
                    into[name] = {}
                into = into[name]
            name = rng.choice((rng.choice(self._generation), rng.choice(self._names[task]), rng.choice(hostile.KEYS)))
            into[name] = hostile.value(rng)
        else:
            params[rng.choice(hostile.KEYS)] = hostile.value(rng)

    def _frame(self, task: str, kwargs: dict[str, Any], body: Any = None) -> dict[str, Any]:
        task_id = str(uuid.UUID(int=self._rng.getrandbits(128)))
        envelope = Envelope(task_id, TaskMessage(pipeline=task, inputs=""), self._rng.choice((0, 3, 6, 9)))
        frame: dict[str, Any] = json.loads(envelope.encode(""))
        text = hostile.encode([[], kwargs, {}] if body is None else body)
        if self._rng.random() < 0.2:  # as LPUSH by hand, or Celery over another transport
            frame["body"] = text.decode()
            del frame["properties"]["body_encoding"]
        else:
            frame["body"] = base64.b64encode(text).decode()
        return frame


def _names(task: str) -> list[str]:
    schema = json.loads((SCHEMAS / f"{'translation' if task.startswith('translation') else task}.json").read_text())
    return sorted(schema["properties"]["params"].get("properties", {})) or ["top_k"]


def _short(params: dict[str, Any]) -> dict[str, Any]:
    """A copy whose model generates only two tokens."""
    written = {name: _short(one) if isinstance(one, dict) else copy.deepcopy(one) for name, one in params.items()}
    return written | ({"max_new_tokens": 2} if "max_new_tokens" in params else {})


def _inline(value: Any, inputs: Path) -> Any:
    """Puts small files into the message, so that their bytes can be damaged."""
    if isinstance(value, dict):
        if set(value) == {"uri"}:
            data = (inputs / Path(value["uri"]).name).read_bytes()
            return {"base64": base64.b64encode(data).decode()} if len(data) < 30_000 else value
        return {key: _inline(one, inputs) for key, one in value.items()}
    return [_inline(one, inputs) for one in value] if isinstance(value, list) else value
