"""ROWS: on a CPU, each row of a continuous batch attends to its own tokens alone. Before: continuous_manager.py.

    RowInputs: the requests of a step -> tokens, positions, and a Step: whose keys lie in which pages of the cache
    attend():  in each layer, queries, keys and values of the step -> into the pages -> out of the pages of each row

transformers writes the keys of all rows one after the other, and masks those of the other rows: of 16 rows it computes
16 times what it needs, and makes the numbers of all tokens of all rows anew for each step. Here rows with one new token
(nearly all) are put together in groups of about the same length, and whole pages are copied; a row that reads its
prompt attends by itself. A page that a row has just been given is cleared where it is empty: what another row left
there, maybe NaN, is masked, but NaN times nothing is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.requests import TMP_TOKEN_ID

#: Bytes of keys and values that are read and copied while a group of its own takes to begin.
GROUP_BYTES = 2**19
#: What a layer may ask of attention that has no place here.
UNKNOWN = ("position_bias", "softcap", "sliding_window", "s_aux")


@dataclass(eq=False)
class _Group:
    """Rows with one new token each."""

    #: Their places in the step, ``[rows]``; None if the group is the whole step.
    places: torch.Tensor | None
    #: Of each the pages, ``[rows * width]``, and the number of pages of the longest.
    pages: torch.Tensor
    width: int
    #: ``[rows, 1, 1, width * tokens of a page]``: 0 for tokens of the row, minus infinity beyond its end.
    bias: torch.Tensor


@dataclass(eq=False)
class _Span:
    """A row with several new tokens: a prompt, or a piece of it."""

    start: int
    end: int
    #: Tokens that are in its pages already.
    past: int
    pages: torch.Tensor
    #: ``[new tokens, tokens]``: which it sees; None if they are all new.
    bias: torch.Tensor | None


class _Pages:
    """The cache of a model: a layer's keys, and its values, are ``[pages, tokens of a page, heads, width]``."""

    def __init__(self, cache: Any) -> None:
        (self.allocator,) = cache.cache_allocators.values()
        self.tokens: int = self.allocator.tokens_per_page
        #: From the number of a block (of all layers) to that of a page in the views of any layer.
        self.stride: int = self.allocator.block_physical_stride // self.tokens
        layers = self.allocator.layer_indices
        self.layers = {layer: self.allocator.get_cache_for_block_table(layer) for layer in layers}
        self.flat = {layer: (keys.flatten(0, 1), values.flatten(0, 1)) for layer, (keys, values) in self.layers.items()}
        keys = self.layers[layers[0]][0]
        self.bytes = 2 * keys[0].nbytes
        self._blocks = self.allocator.cache_tensor.view(-1, self.stride, self.tokens, *keys.shape[2:])

    def clear(self, block: int, used: int) -> None:
        """Clears a block from its token ``used`` on."""
        self._blocks[block, :, used:].zero_()


@dataclass(eq=False)
class Step:
    """Where the keys and values of the rows of a step go, and whence they come."""

    pages: _Pages
    #: The places of the new tokens in a layer's pages, ``[tokens]``.
    writes: torch.Tensor
    groups: list[_Group]
    spans: list[_Span]


class RowInputs(ContinuousBatchingIOs):
    """What the model is given in a step, as it is needed for :func:`attend`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._pages = _Pages(self.cache)
        #: Request of the last step -> its blocks, and their pages.
        self._known: dict[str, tuple[list[int], list[int]]] = {}
        self._arguments: dict[str, Any] = {}
        self._numbers = torch.arange(self.cache.max_tokens_read)
        self._no_mask = torch.zeros(1, 1, 1, 1, dtype=self.model_dtype)

    def prepare_batch_tensors(
        self, requests_in_batch: list[Any], logits_processors: Any, *_ignored: Any, **_also_ignored: Any
    ) -> None:
        """Makes the arguments of the model for the next step, and takes note of what it leaves in the requests."""
        ids: list[int] = []
        positions: list[int] = []
        writes: list[int] = []
        ends: list[int] = []
        rows: list[tuple[int, list[int]]] = []
        lengths: list[int] = []
        spans: list[_Span] = []
        known: dict[str, tuple[list[int], list[int]]] = {}
        for request in requests_in_batch:
            state, new = request.state, request.query_length
            past, start = state.position_offset, len(ids)
            pages = known[state.request_id] = self._pages_of(state.request_id, past)
            ids += state.tokens_to_process
            positions += range(past, past + new)
            tokens = self._pages.tokens
            writes += [pages[1][at // tokens] * tokens + at % tokens for at in range(past, past + new)]
            if new == 1:
                rows.append((start, pages[1]))
                lengths.append(past + 1)
            else:
                spans.append(self._span(start, past, new, pages[1]))
            state.position_offset = past + new
            if request.has_new_token:
                ends.append(len(ids) - 1)
                state.tokens_to_process = [TMP_TOKEN_ID]
        self._known = known
        self.requests_in_batch, self.num_request_in_batch = requests_in_batch, len(requests_in_batch)
        storage = self._bulk_input_tensor[self.static_inputs :]
        logits_processors.prepare_tensor_args(requests_in_batch=requests_in_batch, arg_storage=storage)
        groups = self._grouped(rows, lengths, alone=not spans)
        self._arguments = {
            "input_ids": torch.tensor([ids]),
            "position_ids": torch.tensor([positions]),
            # Models leave a mask of four dimensions as it is, unless they add something of their own.
            "attention_mask": self._no_mask,
            # None at all while a prompt that is alone takes more than one step.
            "logits_indices": torch.tensor(ends, dtype=torch.long),
            "logits_processor_args": storage,
            "cache": Step(self._pages, torch.tensor(writes), groups, spans),
            "use_cache": False,
        }

    def get_model_kwargs(self, use_padding: bool = False) -> dict[str, Any]:
        """The arguments of the model."""
        return self._arguments

    def _pages_of(self, request: str, past: int) -> tuple[list[int], list[int]]:
        """A request's blocks, and their pages. Clears its last block if that is new."""
        blocks = self._pages.allocator.block_table[request]
        known = self._known.get(request)
        # Blocks change when the row grows, and when a full one turns out to be the same as that of another row.
        if known is not None and known[0] == blocks:
            return known
        if known is None or len(known[0]) != len(blocks):
            self._pages.clear(blocks[-1], max(0, past - (len(blocks) - 1) * self._pages.tokens))
        return list(blocks), [block * self._pages.stride for block in blocks]

    def _span(self, start: int, past: int, new: int, pages: list[int]) -> _Span:
        bias = None
        if past:
            bias = torch.full((new, past + new), -torch.inf, dtype=self.model_dtype).triu_(past + 1)
        return _Span(start, start + new, past, torch.tensor(pages), bias)

    def _grouped(self, rows: list[tuple[int, list[int]]], lengths: list[int], *, alone: bool) -> list[_Group]:
        """The rows of one token, in groups in which little is padding.

        Args:
            rows: of each its place in the step, and its pages.
            lengths: of each its tokens, with the new one.
            alone: nothing else is in the step.
        """
        order = sorted(range(len(rows)), key=lambda at: -len(rows[at][1]))
        parts: list[list[int]] = []
        for done, at in enumerate(order):
            spared = len(rows[parts[-1][0]][1]) - len(rows[at][1]) if parts else 0
            if not parts or spared * (len(order) - done) * self._pages.bytes > GROUP_BYTES:
                parts.append([])
            parts[-1].append(at)
        if alone and len(parts) == 1:
            # As they come: then nothing has to be picked out or put back.
            return [self._group(rows, lengths, None)]
        return [self._group([rows[at] for at in part], [lengths[at] for at in part], part) for part in parts]

    def _group(self, rows: list[tuple[int, list[int]]], lengths: list[int], part: list[int] | None) -> _Group:
        width = max(len(pages) for _, pages in rows)
        # Page 0 is never given to a row, and holds zeros.
        pages = torch.tensor([pages + [0] * (width - len(pages)) for _, pages in rows]).flatten()
        beyond = self._numbers[: width * self._pages.tokens] >= torch.tensor(lengths).unsqueeze(1)
        bias = torch.zeros(beyond.shape, dtype=self.model_dtype).masked_fill_(beyond, -torch.inf)
        places = None if part is None else torch.tensor([start for start, _ in rows])
        return _Group(places, pages, width, bias[:, None, None])


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    cache: Step,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of a layer, as transformers calls it; dropout is for training.

    Args:
        module: the layer's attention.
        query: ``[1, heads, tokens, width]``, of the rows of the step one after the other.
        key: ``[1, key heads, tokens, width]``.
        value: as ``key``.
        attention_mask: the single 0 that :class:`RowInputs` gives to the model.
        scaling: of the products; None for the usual one.
        cache: what :class:`RowInputs` made for the step.
        kwargs: what else transformers or the model passes on.

    Returns:
        ``[1, tokens, heads, width]``, and None for the weights.

    Raises:
        NotImplementedError: the model asks for more.
    """
    if unknown := [name for name in UNKNOWN if kwargs.get(name) is not None]:
        raise NotImplementedError(f"attention with {unknown[0]}")
    if attention_mask is not None and attention_mask.numel() > 1:
        # Positions added to it, or keys that a layer leaves out, maybe only in a long text.
        raise NotImplementedError("attention with a mask of the model's own")
    queries, keys, values = (one[0].transpose(0, 1) for one in (query, key, value))
    key_tokens, value_tokens = cache.pages.flat[module.layer_idx]
    key_tokens.index_copy_(0, cache.writes, keys)
    value_tokens.index_copy_(0, cache.writes, values)
    if not cache.spans and len(cache.groups) == 1:
        return _attend_group(cache, cache.groups[0], module.layer_idx, queries, scaling).unsqueeze(0), None
    found = queries.new_empty(*queries.shape[:2], values.shape[-1])
    for group in cache.groups:
        found[group.places] = _attend_group(cache, group, module.layer_idx, queries[group.places], scaling)
    for span in cache.spans:
        found[span.start : span.end] = _attend_span(cache, span, module.layer_idx, queries, keys, values, scaling)
    return found.unsqueeze(0), None


def _attend_group(cache: Step, group: _Group, layer: int, queries: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """``[rows, heads, width]`` -> the same."""
    keys, values = (_read(view, group.pages, len(queries)) for view in cache.pages.layers[layer])
    # The heads that share keys stand where a prompt has its tokens.
    packed = queries.reshape(len(queries), keys.shape[1], -1, queries.shape[-1])
    found = scaled_dot_product_attention(packed, keys, values, attn_mask=group.bias, scale=scaling)
    return found.flatten(1, 2)


def _attend_span(
    cache: Step,
    span: _Span,
    layer: int,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """``[tokens of the step, heads, width]`` -> the row's own tokens of it."""
    if span.bias is None:
        key, value = (one[span.start : span.end].transpose(0, 1).unsqueeze(0) for one in (keys, values))
    else:
        length = span.bias.shape[1]
        key, value = (_read(view, span.pages, 1)[:, :, :length] for view in cache.pages.layers[layer])
    query = queries[span.start : span.end].transpose(0, 1).unsqueeze(0)
    found = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=span.bias,
        is_causal=span.bias is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found[0].transpose(0, 1)


def _read(view: torch.Tensor, pages: torch.Tensor, rows: int) -> torch.Tensor:
    """``[rows, heads, tokens, width]``, of rows that have as many pages each."""
    return view.index_select(0, pages).view(rows, -1, *view.shape[2:]).transpose(1, 2)
