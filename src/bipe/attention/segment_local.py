"""Attention that leaves out the keys which a decaying bias has pushed below rounding.

Let `L` be the logit of a query at its own key, where the bias is 0, and `U` the largest that its norm and the
norms of the keys up to it allow (Cauchy and Schwarz). A key at distance D has at most the weight
`exp(U - L - fall(D))`. Where that is at most `2^-24 / max(T, S)`, all keys left out together have at most the
weight `2^-24` in any row, and so has any key in all rows that leave it out. Then the output differs from full
attention by at most `2^-23` of the largest value, which is the rounding of float32, and gradients likewise.
The norms are measured, so this holds for any weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import repeat_kv

from bipe.encodings.inter.base import DecayingBias, Relation

from .blocks import Block, all_blocks, attend_dense, attend_in_blocks, in_one_block, rows_at_once
from .visible import ROUND, Visible

WEIGHT_LEFT_OUT = 24 * math.log(2)
"""Minus the logarithm of the weight that may be left out, in nats."""

ROUNDING = 1e-5
"""Relative error that norms and logits, made in float32, are given credit for; the true one is below 1e-6."""

FAR = 2**32
"""Further than any index reaches inside a document."""

PIECE = 2048
"""Tokens whose products are in memory at once."""

WORTH_FINDING = {"cpu": 512, "cuda": 16_384}
"""Keys from which on finding those in reach costs less than looking at all, by device.

On a GPU finding them is many small kernels: measured (`results/gpu.md`), it took twice as long as looking at
all at 8,192 keys, and 0.6 times as long at 32,768.
"""

KEYS_A_CALL = 64
"""Keys whose attention costs about as much as one call of the kernel."""


def segment_local_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Visible,
    *,
    relation: Relation,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, None]:
    """Exact attention whose cost grows with the length where the bias falls by a fixed amount a segment.

    Args:
        module: the attention layer; its `num_key_value_groups` is read.
        query: `(B, H, T, K)`.
        key: `(B, H / groups, S, K)`.
        value: `(B, H / groups, S, K)`.
        attention_mask: which keys may be seen.
        relation: its bias decays.
        scaling: factor of the logits.
        dropout: probability of dropping a weight.

    Returns:
        The mixed values `(B, T, H, K)`, zero for padding, and None for the weights.

    Raises:
        ValueError: there is no bias or it does not decay, or the index falls inside a document of
            `WORTH_FINDING` keys or more.
    """
    bias = relation.bias
    if not isinstance(bias, DecayingBias):
        raise ValueError(
            "segment_local leaves out keys that a decaying bias has pushed far down, and this encoding has "
            "none: use attn_implementation='sdpa'."
        )
    groups, visible = cast("int", module.num_key_value_groups), attention_mask
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if in_one_block(visible):  # while tracing too, since which keys are near depends on values
        mixed = attend_dense(query, key, value, bias, visible, scaling=scaling, dropout=dropout)
    else:
        blocks = all_blocks(visible, query)
        if visible.sources >= WORTH_FINDING.get(query.device.type, WORTH_FINDING["cuda"]):
            blocks = local_blocks(query, key, bias, visible, scaling)
        mixed = attend_in_blocks(query, key, value, bias, visible, blocks, scaling=scaling, dropout=dropout)
    if visible.real is not None:
        own = visible.columns_of(slice(0, visible.targets))
        mixed = mixed.masked_fill(~visible.real[:, None, own, None], 0)
    return mixed.transpose(1, 2).contiguous(), None


@torch.no_grad()
def local_blocks(
    query: Tensor,
    key: Tensor,
    bias: DecayingBias,
    visible: Visible,
    scaling: float,
    rows: int | None = None,
) -> list[Block]:
    """The blocks of work, each with the keys that its queries can reach.

    Args:
        query: `(B, H, T, K)`.
        key: `(B, H, S, K)`.
        bias: which keys are near.
        visible: which keys may be seen.
        scaling: factor of the logits.
        rows: queries in a block; None for as many as `rows_at_once` says.

    Raises:
        ValueError: the index of the keys falls inside a document.
    """
    rows = rows or rows_at_once(query)
    blocks = all_blocks(visible, query, rows)
    if visible.sources <= rows or visible.targets == 1:  # nothing to win
        return blocks
    along = places(bias, visible)
    if (along.diff(dim=-1) < 0).any():
        raise ValueError(
            "The index of the keys falls inside a document, so nearer keys cannot be told from farther ones: "
            "use attn_implementation='sdpa'."
        )
    farthest = farthest_place(query, key, bias, visible, scaling, along, rows)
    first_key = torch.searchsorted(
        along.double().expand(len(farthest), -1).contiguous(), farthest.flatten(1)
    ).view_as(farthest)
    starts = first_key.amin(dim=0).tolist()
    return [
        Block(block.rows, slice(first, last), slice(start, block.columns.stop))
        for block, by_head in zip(blocks, starts, strict=True)
        for first, last, start in _runs(by_head, block.columns.stop)
    ]


@torch.no_grad()
def near_blocks(
    query: Tensor, key: Tensor, bias: DecayingBias, visible: Visible, scaling: float, side: int = ROUND
) -> Tensor:
    """Which blocks of queries and keys hold a key that a query can reach, as `local_blocks` without waiting.

    Args:
        query: `(B, H, T, K)`.
        key: `(B, H, S, K)`.
        bias: which keys are near; their index may fall inside a document.
        visible: which keys may be seen.
        scaling: factor of the logits.
        side: queries and keys of a block.

    Returns:
        `(B, H, T / side, S / side)` bool, for lengths rounded up.
    """
    along = places(bias, visible)
    farthest = farthest_place(query, key, bias, visible, scaling, along, side).transpose(1, 2)
    missing = visible.sources + -visible.sources % side - along.shape[1]
    last = nn.functional.pad(along, (0, missing), value=-(2**62)).unflatten(-1, (-1, side)).amax(dim=-1)
    return last[:, None, None] >= farthest[..., None]


def farthest_place(
    query: Tensor,
    key: Tensor,
    bias: DecayingBias,
    visible: Visible,
    scaling: float,
    along: Tensor,
    rows: int,
) -> Tensor:
    """The place below which keys are out of reach of each query in a block, `(B, blocks, H)` float64.

    Args:
        query: `(B, H, T, K)`.
        key: `(B, H, S, K)`.
        bias: which keys are near.
        visible: which keys may be seen.
        scaling: factor of the logits.
        along: the `places`.
        rows: queries in a block.
    """
    own = along[:, visible.columns_of(slice(0, visible.targets))]
    own = nn.functional.pad(own, (0, -visible.targets % rows), value=2**62)
    first = own.unflatten(-1, (-1, rows)).amin(dim=-1)
    reach = bias.reach(nats_apart(query, key, visible, scaling, rows).transpose(1, 2)).clamp(max=FAR)
    return first[..., None] - reach.double()


def places(bias: DecayingBias, visible: Visible) -> Tensor:
    """The index of the keys made to ascend over documents too, `(B or 1, n)` int64, up to the last query.

    Inside a document its differences are those of the index; documents are further apart than any reach.
    Padding has the place of the token before it.
    """
    stop = visible.columns_of(slice(0, visible.targets)).stop
    index = bias.key_index[:, :stop]
    if visible.real is not None:
        columns = torch.arange(stop, device=index.device)
        last_real = torch.where(visible.real[:, :stop], columns, 0).cummax(dim=-1).values
        index = index.expand(len(last_real), -1).gather(-1, last_real)
    steps = index.diff(dim=-1)
    if visible.documents is not None:
        steps = steps.masked_fill(visible.documents[:, :stop].diff(dim=-1) != 0, 2 * FAR)
    return nn.functional.pad(steps.cumsum(dim=-1), (1, 0))


def nats_apart(query: Tensor, key: Tensor, visible: Visible, scaling: float, rows: int) -> Tensor:
    """How far the bias must have fallen for a key to be left out, `(B, H, blocks)` float32."""
    own = visible.columns_of(slice(0, visible.targets))
    key = key[:, :, : own.stop]
    norms = _in_pieces(_norm, key).cummax(dim=-1).values[..., own]
    highest = _in_pieces(_norm, query) * norms * abs(scaling)
    itself = _in_pieces(_product, query, key[:, :, own]) * scaling
    gap = highest * (1 + 2 * ROUNDING) - itself
    if visible.real is not None:
        gap = gap.masked_fill(~visible.real[:, None, own], 0)
    missing = -visible.targets % rows
    gap = nn.functional.pad(gap, (0, missing)).unflatten(-1, (-1, rows)).amax(dim=-1)
    return gap + WEIGHT_LEFT_OUT + math.log(own.stop) + ROUNDING


def _in_pieces(reduce: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Reduce the last dimension of `(B, H, n, K)` tensors in float32, `(B, H, n)`."""
    pieces = zip(*(tensor.split(PIECE, dim=2) for tensor in tensors), strict=True)
    return torch.cat([reduce(*(part.float() for part in parts)) for parts in pieces], dim=-1)


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dim=-1)


def _product(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(dim=-1)


def _runs(starts: Sequence[int], end: int) -> list[tuple[int, int, int]]:
    """Group neighbouring heads whose slices are about alike: `(first head, end, first key)` of each group."""
    runs: list[tuple[int, int, int]] = []
    for head, start in enumerate(starts):
        if runs:
            first, last, other = runs[-1]
            together = (end - min(start, other)) * (last - first + 1)
            apart = (end - other) * (last - first) + (end - start) + KEYS_A_CALL
            if together <= apart:
                runs[-1] = (first, head + 1, min(start, other))
                continue
        runs.append((head, head + 1, start))
    return runs
