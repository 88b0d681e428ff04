"""Hostile values, and ways to damage a message with them. All are drawn from one seeded source."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

#: Placeholders for values that Python's encoder cannot write; they are replaced in the text, with their quotes.
_HUGE, _DEEP, _DEEP_OBJECT = "@huge@", "@deep@", "@deep-object@"
_RAW = {
    _HUGE: "1" + "0" * 400,
    _DEEP: "[" * 50_000 + "]" * 50_000,
    _DEEP_OBJECT: '{"a":' * 3000 + "1" + "}" * 3000,
}

NUMBERS: list[Any] = [
    *(
        0,
        1,
        -1,
        2,
        7,
        255,
        2**15,
        2**31,
        2**31 - 1,
        -(2**31),
        2**53,
        2**63,
        2**64,
        10**9,
        10**12,
        10**18,
        10**200,
        _HUGE,
    ),
    *(0.5, -0.5, 1e-9, 1e9, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
]
TEXTS: list[Any] = [
    *(
        "",
        " ",
        "\0",
        "\n",
        "\r\nforged line",
        "\x1b[31mred\x1b[0m",
        "\ud800",
        "\U0001f4a5" * 50,
        "a" * 5000,
        "é",
        "\u202e",
    ),
    *(
        "..",
        "../..",
        "../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "file:///proc/self/environ",
        "s3://b/../k",
    ),
    *(
        "http://h/?sig=SECRET",
        "ftp://user:pw@h/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://h:99999/",
        "s3://",
        "://",
    ),
    *(
        "{}",
        "{:>9000000000}",
        "{0.__class__}",
        "{" * 200,
        "%s%n",
        "${HOME}",
        "$(id)",
        "__import__('os')",
        "[MASK]" * 40,
    ),
    *(
        "true",
        "null",
        "NaN",
        "1e999",
        "none",
        "max",
        "cuda:0",
        "auto",
        "bzip2",
        "punycode",
        "pickle",
        "application/x-yaml",
    ),
    *("celery.chord_unlock", "celery.map", "pipeq.infer", "pipeq:unacked", "celery-task-meta-x", "text-classification"),
]
SHAPES: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: False,
    list,
    dict,
    lambda: [None],
    lambda: [[]],
    lambda: [[], 5, {}],
    lambda: {"": ""},
    lambda: {"a": 1},
    lambda: {"a": {"b": {"c": []}}},
    lambda: {"__class__": "x"},
    lambda: {"uri": "file:///etc/passwd"},
    lambda: {"uri": 5},
    lambda: {"uri": "http://h/?sig=SECRET"},
    lambda: {"base64": "AAAA"},
    lambda: {"base64": "%"},
    lambda: {"base64": "AAAA", "uri": "s3://a/b"},
    lambda: {"audio": [0.5] * 100, "sampling_rate": 16000},
    lambda: {"audio": "x", "sampling_rate": -1},
    lambda: {"..": {"..": {"victim": {"audio": [0.5] * 2000, "sampling_rate": 16000}}}},
    lambda: {"custom_generate": "/tmp", "trust_remote_code": True},
    lambda: {"height": 60_000, "width": 60_000},
    lambda: {"size": {"height": 60_000, "width": 60_000}},
    lambda: [0] * 5000,
    lambda: ["a"] * 2000,
    lambda: ["a", 1, None, {}],
    lambda: [{"role": "user", "content": "hello"}],
    lambda: [{"role": "user", "content": [{"type": "image", "url": "http://h/?sig=SECRET"}]}],
    lambda: [{"rolle": "user", "content": "hello"}],
    lambda: {str(at): at for at in range(500)},
    lambda: _DEEP,
    lambda: _DEEP_OBJECT,
]
KEYS = [
    *(
        "",
        "..",
        "a",
        "id",
        "uri",
        "task",
        "model",
        "device",
        "batch_size",
        "trust_remote_code",
        "custom_generate",
        "inputs",
    ),
    *("generate_kwargs", "forward_params", "preprocess_params", "processor_kwargs", "tokenizer_kwargs", "model_kwargs"),
    *(
        "tokenize_kwargs",
        "tokenizer_encode_kwargs",
        "image_processor_kwargs",
        "images_kwargs",
        "text_kwargs",
        "audio_kwargs",
    ),
    *("decoder_kwargs", "audio", "sampling_rate", "timeout", "callbacks", "errbacks", "chord", "chain", "compression"),
]


def value(rng: random.Random) -> Any:
    """Any hostile value."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(NUMBERS)
    if kind < 0.7:
        return rng.choice(TEXTS)
    return rng.choice(SHAPES)()


def encode(tree: Any) -> bytes:
    """JSON, with what only hostile encoders write."""
    text = json.dumps(tree)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


def spoil(tree: Any, rng: random.Random) -> None:
    """One change somewhere inside an object: a value replaced, a key dropped, added, doubled or renamed."""
    places = list(_places(tree))
    if not places:
        return
    container, key = rng.choice(places)
    act = rng.random()
    if act < 0.6:
        container[key] = value(rng)
    elif act < 0.7 and isinstance(container, dict):
        del container[key]
    elif act < 0.8 and isinstance(container, dict):
        container[rng.choice(KEYS)] = value(rng)
    elif act < 0.87 and isinstance(container, dict):
        container[_misspelt(str(key), rng)] = container.pop(key)
    elif act < 0.94:
        container[key] = [container[key]] * rng.choice((1, 2, 50))
    else:
        container[key] = {rng.choice(KEYS): container[key]}


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, dict):
        for key, one in tree.items():
            yield tree, key
            yield from _places(one)
    elif isinstance(tree, list):
        for at, one in enumerate(tree[:20]):
            yield tree, at
            yield from _places(one)


def _misspelt(name: str, rng: random.Random) -> str:
    at = rng.randrange(len(name) + 1)
    return rng.choice((name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name.upper(), name + "s"))


def scramble(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few of them changed, cut off, doubled or shuffled."""
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if not spoilt:
            break
        at, act = rng.randrange(len(spoilt)), rng.random()
        if act < 0.6:
            spoilt[at] = rng.randrange(256)
        elif act < 0.75:
            del spoilt[at : at + rng.choice((1, 4, 64))]
        elif act < 0.9:
            spoilt[at:at] = spoilt[: rng.choice((1, 4, 64))]
        else:
            del spoilt[at:]
    return bytes(spoilt)


def scramble_base64(tree: Any, rng: random.Random) -> bool:
    """Spoils the bytes of one inline reference inside. Whether there was any."""
    inline = [(one, key) for one, key in _places(tree) if key == "base64" and isinstance(one[key], str)]
    if not inline:
        return False
    container, key = rng.choice(inline)
    container[key] = base64.b64encode(scramble(base64.b64decode(container[key]), rng)).decode()
    return True
