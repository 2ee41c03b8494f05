"""Implementations of attention, by the name that `config._attn_implementation` holds."""

from collections.abc import Callable

from torch import Tensor

from .eager import eager_attention
from .sdpa import sdpa_attention

ATTENTIONS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
}
"""Functions with the signature of transformers' `AttentionInterface` and the keyword `relation`.

They are looked up here and not among transformers' own of the same names, which drop what they do not know.
"""
