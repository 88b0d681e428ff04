"""The modules of sentence-transformers that turn the vectors of a text's tokens into one vector.

    {"token_embeddings": [rows, tokens, hidden], "mask": [rows, tokens], ...}
      -> Pooling, Dense, LayerNorm, Normalize, ... -> {"sentence_embedding": [rows, numbers]}

Each module computes what the class of the same name computes in sentence-transformers 6.2. Other modules are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file

from pipeq_worker.models.own.checkpoint import ModuleFiles, refused

Features = dict[str, torch.Tensor]
#: Keys of a pooling's config.json before version 5.4 -> its modes, in the order in which they are concatenated.
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Pooling(torch.nn.Module):
    """Pools the vectors of a text's tokens into one vector; the vectors of several modes are concatenated."""

    def __init__(self, modes: tuple[str, ...], *, include_prompt: bool = True) -> None:
        super().__init__()
        if unknown := set(modes) - set(_OLD_MODES.values()):
            raise ValueError(f"pooling_mode is {sorted(unknown)[0]!r}, not one of {', '.join(_OLD_MODES.values())}")
        self.modes = modes
        #: Whether the tokens of the prompt are pooled, too.
        self.include_prompt = include_prompt

    @classmethod
    def of(cls, config: dict[str, Any]) -> Pooling:
        modes = config.get("pooling_mode") or [mode for key, mode in _OLD_MODES.items() if config.get(key)] or ["mean"]
        modes = (modes,) if isinstance(modes, str) else tuple(modes)
        return cls(modes, include_prompt=config.get("include_prompt", True))

    def forward(self, features: Features) -> None:
        tokens, whole, pooled = features["token_embeddings"], features["mask"], features["mask"]
        if not self.include_prompt and "is_prompt" in features:
            pooled = pooled * (1 - features["is_prompt"])
        vectors = [self._pool(mode, tokens, whole, pooled) for mode in self.modes]
        features["sentence_embedding"] = torch.cat(vectors, -1)

    def _pool(self, mode: str, tokens: torch.Tensor, whole: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pools with one mode.

        Args:
            mode: its name.
            tokens: ``[rows, tokens, hidden]``
            whole: ``[rows, tokens]``, 0 for padding.
            mask: ``[rows, tokens]``, 0 for tokens that are not pooled.
        """
        rows, length = torch.arange(len(tokens), device=tokens.device), mask.shape[1]
        # The mean of many half-precision numbers would be inexact.
        exact = torch.float32 if tokens.dtype in (torch.float16, torch.bfloat16) else tokens.dtype
        if mode == "cls":
            return tokens[rows, mask.int().argmax(1)]
        if mode == "lasttoken":
            last = length - 1 - mask.int().flip(1).argmax(1)
            last = torch.where(mask.any(1), last, 0)
            return tokens[rows, last] * mask[rows, last].unsqueeze(-1).to(tokens.dtype)
        if mode == "max":
            return tokens.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)
        weights = mask.to(exact)
        if mode == "weightedmean":
            # Later tokens weigh more, counted from the first token that is not padding.
            places = torch.arange(1, length + 1, device=tokens.device, dtype=exact)
            weights = weights * (places - whole.int().argmax(1).unsqueeze(1))
        total = weights.sum(1, keepdim=True).clamp(min=1e-9)
        total = total.sqrt() if mode == "mean_sqrt_len_tokens" else total
        return ((tokens * weights.unsqueeze(-1)).sum(1) / total).to(tokens.dtype)


class Dense(torch.nn.Module):
    """A linear layer and an activation function."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        inside, outside = config["in_features"], config["out_features"]
        self.linear = torch.nn.Linear(inside, outside, bias=config.get("bias", True))
        named = config.get("activation_function", "torch.nn.Tanh")
        self.activation = torch.nn.Identity() if named is None else activation(named)
        self.input = config.get("module_input_name", "sentence_embedding")
        self.output = config.get("module_output_name") or self.input
        self.adds = bool(config.get("use_residual", False))
        # Its weights are in the checkpoint only where sizes differ.
        needs_weights = self.adds and inside != outside
        self.residual = torch.nn.Linear(inside, outside, bias=False) if needs_weights else torch.nn.Identity()

    def forward(self, features: Features) -> None:
        given = features[self.input]
        made = self.activation(self.linear(given))
        if self.adds:
            made = made + self.residual(given)
        features[self.output] = made


class LayerNorm(torch.nn.Module):
    """torch's LayerNorm, applied to the text's vector."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(config["dimension"])

    def forward(self, features: Features) -> None:
        features["sentence_embedding"] = self.norm(features["sentence_embedding"])


class Normalize(torch.nn.Module):
    """Scales the vector to length 1."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.input = config.get("module_input_name", "sentence_embedding")
        self.output = config.get("module_output_name") or self.input

    def forward(self, features: Features) -> None:
        if self.input in features:
            features[self.output] = torch.nn.functional.normalize(features[self.input], dim=-1)


class WeightedLayerPooling(torch.nn.Module):
    """Replaces a token's vector by the weighted mean over the layers, if the model returns the layers."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.start = config.get("layer_start", 4)
        self.layer_weights = torch.nn.Parameter(torch.ones(config.get("num_hidden_layers", 12) + 1 - self.start))

    def forward(self, features: Features) -> None:
        if "layers" in features:
            weights = self.layer_weights.view(-1, 1, 1, 1)
            total = (weights * features["layers"][self.start :]).sum(0)
            features["token_embeddings"] = total / self.layer_weights.sum()


_KINDS: dict[str, Any] = {
    "Pooling": Pooling.of,
    "Dense": Dense,
    "LayerNorm": LayerNorm,
    "Normalize": Normalize,
    "WeightedLayerPooling": WeightedLayerPooling,
}


def build(files: tuple[ModuleFiles, ...], *, allow_pickle: bool) -> torch.nn.ModuleList:
    """Builds the modules after the transformer, with their weights.

    Args:
        files: the files of each module.
        allow_pickle: whether weights may have another format than safetensors.

    Raises:
        PipeqError: ``invalid_settings``, naming what this worker does not have.
    """
    made = torch.nn.ModuleList(_one(one, allow_pickle) for one in files if one.kind != "Dropout")
    if not any(isinstance(one, Pooling) for one in made):
        raise refused("its modules.json names no Pooling")
    return made.eval()


def activation(path: str) -> torch.nn.Module:
    """Makes an activation function of torch from the path of its class.

    Raises:
        PipeqError: ``invalid_settings`` for any other path, because code of a checkpoint is not run.
    """
    package, _, name = path.rpartition(".")
    found = getattr(torch.nn, name, None) if package == "torch.nn" or package.startswith("torch.nn.modules.") else None
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise refused(f"its activation function {path!r} is none of torch.nn's")
    return found()


def _one(files: ModuleFiles, allow_pickle: bool) -> torch.nn.Module:
    if files.kind not in _KINDS:
        raise refused(f"its module {files.kind} is none of {', '.join(_KINDS)}")
    try:
        module: torch.nn.Module = _KINDS[files.kind](files.config)
    except (KeyError, TypeError, ValueError) as error:
        raise refused(f"the config.json of its {files.kind} cannot be used: {error!r}") from error
    if module.state_dict():
        try:
            module.load_state_dict(_weights(files, allow_pickle))
        except RuntimeError as error:
            _, *lines = str(error).splitlines()
            raise refused(f"the weights of its {files.kind} do not fit its config.json: {' '.join(lines)}") from error
    return module


def _weights(files: ModuleFiles, allow_pickle: bool) -> dict[str, torch.Tensor]:
    if files.weights is None:
        raise refused(f"its {files.kind} has no weights")
    if files.weights.suffix == ".safetensors":
        return load_file(files.weights)
    if not allow_pickle:
        raise refused(f"the weights of its {files.kind} are a pickle, which runs code: `allow_pickle = true` allows it")
    return dict(torch.load(files.weights, map_location="cpu", weights_only=True))
