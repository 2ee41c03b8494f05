"""Attention written out: the oracle for every other implementation."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import repeat_kv

from bipe.encodings.inter.base import Content, Relation

from .visible import Visible


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Visible,
    *,
    relation: Relation,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Softmax attention in float32, with its weights.

    Args:
        module: the attention layer; its `num_key_value_groups` and `training` are read.
        query: `(B, H, T, K)`, rotated.
        key: `(B, H / groups, S, K)`, rotated.
        value: `(B, H / groups, S, K)`.
        attention_mask: which keys may be seen; a query that sees none gets the mean of all values.
        relation: its bias is added to the logits.
        scaling: factor of the logits.
        dropout: probability of dropping a weight.

    Returns:
        The mixed values `(B, T, H, K)` in the dtype of `query`, and the weights `(B, H, T, S)` float32.
    """
    with torch.autocast(query.device.type, enabled=False):
        groups = cast("int", module.num_key_value_groups)
        sources, values = repeat_kv(key, groups).float(), repeat_kv(value, groups).float()
        logits = torch.matmul(query.float(), sources.transpose(2, 3)) * scaling
        if relation.bias is not None:
            content = Content(query, sources, attention_mask.dense, scaling)
            rows, columns = slice(0, query.shape[2]), slice(0, key.shape[2])
            logits = logits + relation.bias.between(content, rows, columns)
        logits = logits.masked_fill(~attention_mask.dense, torch.finfo(logits.dtype).min)
        weights = nn.functional.softmax(logits, dim=-1)
        weights = nn.functional.dropout(weights, p=dropout, training=module.training)
        mixed = torch.matmul(weights, values).to(query.dtype)
    return mixed.transpose(1, 2).contiguous(), weights
