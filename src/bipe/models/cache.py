"""What a cache must remember so that new tokens get their positions: one more layer."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer


class TokenState(NamedTuple):
    """What positions are computed from, of every token a cache holds and of those of this call.

    Attributes:
        is_end: `(B, S)` bool, true on the last token of each segment.
        real: `(B, S)` bool, false on padding and on slots not filled yet.
        document_ids: `(B, S)` int64.
    """

    is_end: Tensor
    real: Tensor
    document_ids: Tensor


def past_length(cache: Cache | None) -> int:
    """Number of tokens whose keys a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def has_state(cache: Cache | None, index: int) -> bool:
    """Whether the layer at `index` remembers all tokens that the cache holds."""
    return (
        cache is not None
        and len(cache.layers) > index
        and int(cache.get_seq_length(index)) == past_length(cache)
    )


def read_state(cache: Cache, index: int, length: int) -> TokenState:
    """The state of the first `length` tokens of a cache."""
    layer = cast("Any", cache.layers[index])
    flags = layer.keys[:, 0, :length]
    return TokenState(flags[..., 0].bool(), flags[..., 1].bool(), layer.values[:, 0, :length, 0])


def append_state(cache: Cache, index: int, new: TokenState) -> None:
    """Append the tokens of this call.

    The layer is of the cache's own kind with integers for keys and values, so that cropping, reordering,
    repeating and selecting rows treat it as they treat the others.
    """
    while len(cache.layers) <= index:
        first = cache.layers[0] if cache.layers else None
        cache.layers.append(
            StaticLayer(first.max_cache_len) if isinstance(first, StaticLayer) else DynamicLayer()
        )
    flags = torch.stack((new.is_end.long(), new.real.long()), dim=-1)[:, None]
    cast("Any", cache.layers[index]).update(flags, new.document_ids[:, None, :, None])
