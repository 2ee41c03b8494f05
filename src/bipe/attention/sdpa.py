"""Attention through torch's fused kernel."""

from typing import cast

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import repeat_kv

from bipe.encodings.inter.base import Relation

from .blocks import all_blocks, attend_dense, attend_in_blocks, in_one_block
from .visible import Visible


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
    """`scaled_dot_product_attention`: without a bias in one call, with a bias in blocks of queries.

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
        mask = None if visible.is_causal or visible.is_everything else visible.dense
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=True
        )
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
