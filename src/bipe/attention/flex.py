"""Attention through torch's FlexAttention, whose compiled kernel makes bias and mask as it goes.

It is meant for CUDA. On a CPU torch has the forward pass alone, and only compiled. Blocks that a decaying
bias has pushed below rounding are left out, by the rule of `segment_local`.
"""

import inspect
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention as kernel
from torch.nn.functional import pad
from transformers.models.llama.modeling_llama import repeat_kv

from bipe.encodings.inter.base import DecayingBias, Relation

from .segment_local import near_blocks
from .visible import ROUND, Visible

FINDING_FROM = 512
"""Keys from which on finding those in reach costs less than looking at all."""

# Dynamo compiles 8 shapes of a function and runs it uncompiled, with all scores in memory, from then on; a
# generation has a shape for every 128 tokens. Releases that lack the argument keep that limit.
MANY = {"recompile_limit": 256} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}


def flex_attention(
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
    """FlexAttention with the bias as a function of positions, and no bias or mask in memory.

    Args:
        module: the attention layer; its `num_key_value_groups` is read.
        query: `(B, H, T, K)`, rotated.
        key: `(B, H / groups, S, K)`, rotated.
        value: `(B, H / groups, S, K)`.
        attention_mask: which keys may be seen.
        relation: its bias is added to the logits.
        scaling: factor of the logits.
        dropout: must be 0.

    Returns:
        The mixed values `(B, T, H, K)`, and None for the weights.

    Raises:
        ValueError: dropout, or gradients on a CPU, neither of which FlexAttention has.
    """
    refuse_unsupported(query, key, value, dropout)
    bias, visible, groups = relation.bias, attention_mask, cast("int", module.num_key_value_groups)
    # Under autocast a rotation leaves float32, and the backward pass takes one dtype.
    query, key = query.to(value.dtype), key.to(value.dtype)
    near = None
    if isinstance(bias, DecayingBias) and visible.targets > 1 and visible.sources >= FINDING_FROM:
        near = near_blocks(query, repeat_kv(key, groups), bias, visible, scaling)
    query, key, value = _rounded(query), _rounded(key), _rounded(value)
    score = None
    if bias is not None:
        with torch.autocast(query.device.type, enabled=False):
            score = bias.scorer(query.shape[2], key.shape[2])
    mixed = compiled()(
        query,
        key,
        value,
        score_mod=score,
        block_mask=visible.block_mask(near),
        scale=scaling,
        enable_gqa=groups > 1,
    )
    return cast("Tensor", mixed)[:, :, : visible.targets].transpose(1, 2).contiguous(), None


def refuse_unsupported(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> None:
    """Raise a ValueError for what FlexAttention cannot do."""
    if dropout:
        raise ValueError(
            "FlexAttention has no dropout: set attention_dropout to 0 or use another implementation."
        )
    differentiated = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    if query.device.type == "cpu" and differentiated:
        raise ValueError("FlexAttention has no backward pass on a CPU: use attn_implementation='sdpa'.")


@lru_cache(maxsize=1)
def compiled(backend: Any = "inductor") -> Any:
    """The kernel, compiled once for each shape."""
    return cast("Any", torch.compile)(kernel, dynamic=False, backend=backend, **MANY)


def _rounded(tensor: Tensor) -> Tensor:
    """`(B, H, n, K)` with zeros appended up to a multiple of `ROUND`, which no real query sees."""
    missing = -tensor.shape[2] % ROUND
    return pad(tensor, (0, 0, 0, missing)) if missing else tensor  # nothing added would be a copy
