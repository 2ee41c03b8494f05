"""Attention through torch's fused kernel."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import repeat_kv

from bipe.encodings.inter.base import Bias, Relation

BLOCK = 128
"""Queries handled at once where there is a bias."""


def _masked_bias(bias: Bias, mask: Tensor | None, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
    """The additive mask of a block, `(B, H, t, s)` in `dtype`.

    Without a mask, query `i` sees the keys up to key `i`.
    """
    block = bias.block(rows, columns).to(dtype)
    if mask is None:
        row, column = (torch.arange(part.start, part.stop, device=block.device) for part in (rows, columns))
        hidden = row[:, None] < column
    else:
        hidden = ~mask[:, :, rows, columns]
        block = block.expand(max(len(hidden), len(block)), -1, -1, -1).contiguous()
    # The lowest finite number, not -inf: a row of padding sees nothing, and -inf alone makes NaN.
    return block.masked_fill_(hidden, torch.finfo(dtype).min)


def sdpa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    relation: Relation,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, None]:
    """`scaled_dot_product_attention`: without a bias in one call, with a bias in blocks of queries.

    A block of queries sees only the keys before its end, and only the bias of one block is in memory at a
    time.

    Args:
        module: the attention layer; its `num_key_value_groups` and `training` are read.
        query: `(B, H, T, K)`, rotated.
        key: `(B, H / groups, S, K)`, rotated.
        value: `(B, H / groups, S, K)`.
        attention_mask: `(B, 1, T, S)` bool, true where a key may be seen, or None for the causal order from
            the first key on; a single query without a mask sees all keys.
        relation: its bias is added to the logits.
        scaling: factor of the logits.
        dropout: probability of dropping a weight.

    Returns:
        The mixed values `(B, T, H, K)`, and None for the weights.
    """
    if relation.bias is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=True
        )
    groups = cast("int", module.num_key_value_groups)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    targets, sources = query.shape[2], key.shape[2]
    if attention_mask is None and targets == 1:
        attention_mask = torch.ones(1, 1, 1, sources, dtype=torch.bool, device=query.device)
    mixed = []
    for start in range(0, targets, BLOCK):
        stop = min(start + BLOCK, targets)
        rows = slice(start, stop)
        columns = slice(0, stop if attention_mask is None else sources)
        mixed.append(
            scaled_dot_product_attention(
                query[:, :, rows],
                key[:, :, columns],
                value[:, :, columns],
                attn_mask=_masked_bias(relation.bias, attention_mask, rows, columns, query.dtype),
                dropout_p=dropout,
                scale=scaling,
            )
        )
    return torch.cat(mixed, dim=2).transpose(1, 2).contiguous(), None
