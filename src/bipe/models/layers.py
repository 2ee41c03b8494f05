"""Llama's decoder layer with an attention that honours a `Relation`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from transformers import Cache
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from bipe.attention import ATTENTIONS
from bipe.attention.damping import attend_damped
from bipe.encodings.inter.base import Relation
from bipe.encodings.inter.rope import rotate
from bipe.registry import choose

from .configuration import BipeConfig


class BipeAttention(LlamaAttention):
    """Llama's attention with the rotation and the bias of a `Relation`."""

    def project(self, hidden_states: Tensor, relation: Relation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `(B, H, T, K)` and keys `(B, H / groups, T, K)`, both rotated, and values like the keys.

        Args:
            hidden_states: `(B, T, D)`, normed.
            relation: how positions relate.
        """
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if relation.query_rotation is not None:
            query = rotate(query, relation.query_rotation)
        if relation.key_rotation is not None:
            key = rotate(key, relation.key_rotation)
        return query, key, value

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - a relation replaces Llama's rotation
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        *,
        relation: Relation,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden_states: `(B, T, D)`.
            attention_mask: a `Visible`.
            past_key_values: cache, updated with this call's keys.
            relation: how positions relate; made once a forward.
            kwargs: what Llama's decoder layer passes on beside these, all of it accounted for elsewhere.
        """
        query, key, value = self.project(hidden_states, relation)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = partial(
            choose("attention implementation", ATTENTIONS, str(self.config._attn_implementation)),
            self,
            relation=relation,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        if relation.damping is not None:
            attend = partial(attend_damped, attend, relation.damping)
        mixed, weights = attend(query, key, value, attention_mask)
        return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), weights


class BipeDecoderLayer(LlamaDecoderLayer):
    """Llama's decoder layer around `BipeAttention`."""

    def __init__(self, config: BipeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = BipeAttention(config, layer_idx)


@contextmanager
def watched(layers: nn.ModuleList, watch: Callable[..., None]) -> Iterator[None]:
    """Call `watch(attention, query, key, value, relation, visible)` whenever a layer is about to attend.

    Queries, keys and values are as `BipeAttention.project` makes them, without a cache's.
    """

    def project(attention: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = named["hidden_states"] if "hidden_states" in named else arguments[0]
        projected = cast("BipeAttention", attention).project(hidden, named["relation"])
        watch(attention, *projected, named["relation"], named["attention_mask"])

    handles = [
        cast("BipeDecoderLayer", layer).self_attn.register_forward_pre_hook(project, with_kwargs=True)
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
