"""Implementations of attention, by the name that `config._attn_implementation` holds."""

from collections.abc import Callable

from torch import Tensor

from .eager import eager_attention
from .flex import flex_attention
from .sdpa import sdpa_attention
from .segment_local import segment_local_attention
from .visible import Visible

ATTENTIONS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
    "segment_local": segment_local_attention,
    "flex": flex_attention,
}
"""Functions with the signature of transformers' `AttentionInterface`, a `Visible` for a mask, and the keyword
`relation`.

They are looked up here and not among transformers' own of the same names, which drop what they do not know.
"""

__all__ = ["ATTENTIONS", "Visible"]
