"""Attention through torch's fused kernel."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import repeat_kv

from bipe.encodings.inter.base import Relation

from .blocks import all_blocks, attend_dense, attend_in_blocks, in_one_block
from .visible import Visible

MASKED_PAIRS = 2**22
"""Queries times keys whose mask is made whole; torch makes numbers of it in each layer."""

MASKED_ROWS = 512
"""Queries at a time where there are more pairs than that."""


def sdpa_attention(
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
    """`scaled_dot_product_attention`: in one call, or in blocks of queries where masks would be large.

    Args:
        module: the attention layer; its `num_key_value_groups` is read.
        query: `(B, H, T, K)`, rotated.
        key: `(B, H / groups, S, K)`, rotated.
        value: `(B, H / groups, S, K)`.
        attention_mask: which keys may be seen.
        relation: its bias is added to the logits.
        scaling: factor of the logits.
        dropout: probability of dropping a weight.

    Returns:
        The mixed values `(B, T, H, K)`, and None for the weights.
    """
    visible = attention_mask
    if relation.bias is None:
        return _without_bias(module, query, key, value, visible, dropout=dropout, scaling=scaling), None
    groups = cast("int", module.num_key_value_groups)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if in_one_block(visible):
        mixed = attend_dense(query, key, value, relation.bias, visible, scaling=scaling, dropout=dropout)
    else:
        blocks = all_blocks(visible, query)
        mixed = attend_in_blocks(
            query, key, value, relation.bias, visible, blocks, scaling=scaling, dropout=dropout
        )
    return mixed.transpose(1, 2).contiguous(), None


def _without_bias(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, visible: Visible, **options: Any
) -> Tensor:
    """The mixed values, `(B, T, H, K)`; large masks are made for some queries at a time, in each layer."""
    simple, targets = visible.is_causal or visible.is_everything, visible.targets
    if simple or targets * visible.sources <= MASKED_PAIRS or torch.compiler.is_compiling():
        mask = None if simple else visible.dense
        return sdpa_attention_forward(module, query, key, value, mask, is_causal=True, **options)[0]
    mixed = []
    for start in range(0, targets, MASKED_ROWS):
        rows = slice(start, min(start + MASKED_ROWS, targets))
        columns = slice(0, visible.columns_of(rows).stop)
        mask = visible.part(rows, columns).dense
        parts = query[:, :, rows], key[:, :, columns], value[:, :, columns]
        mixed.append(sdpa_attention_forward(module, *parts, mask, is_causal=True, **options)[0])
    return torch.cat(mixed, dim=1)
