"""What a cache must remember so that new tokens get their positions: one more layer."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from bipe.positions import BilevelPositions, bilevel_positions, document_starts, token_index
from bipe.segmentation.base import Segmenter


class TokenState(NamedTuple):
    """What is known of every token that a cache holds and of those of this call.

    Attributes:
        segment: `(B, S)` int64, as in `BilevelPositions`.
        offset: `(B, S)` int64, likewise.
        token: `(B, S)` int64, likewise.
        document_ids: `(B, S)` int64.
        is_end: `(B, S)` bool, true on the last token of each segment.
        real: `(B, S)` bool, false on padding and on slots not filled yet.
    """

    segment: Tensor
    offset: Tensor
    token: Tensor
    document_ids: Tensor
    is_end: Tensor
    real: Tensor

    @property
    def positions(self) -> BilevelPositions:
        """Where the tokens stand."""
        return BilevelPositions(self.segment, self.offset, self.token)

    def columns(self, start: int | None, stop: int | None = None) -> "TokenState":
        """The state of some columns."""
        return TokenState(*(part[:, start:stop] for part in self))

    def last_real(self) -> "TokenState":
        """The state of each row's last token that is no padding, one column; of padding where all is."""
        if not torch.compiler.is_compiling() and self.real[:, -1].all():
            return self.columns(-1)
        columns = torch.arange(self.real.shape[1], device=self.real.device)
        last = torch.where(self.real, columns, 0).amax(dim=1, keepdim=True)
        return TokenState(*(part.gather(1, last) for part in self))


def read_tokens(
    segmenter: Segmenter, input_ids: Tensor, real: Tensor, document_ids: Tensor, past: TokenState | None
) -> TokenState:
    """The state of new tokens, counted on from the last one before them.

    Args:
        segmenter: what ends a segment.
        input_ids: `(B, T)` int64.
        real: `(B, T)` bool, false on padding.
        document_ids: `(B, T)` int64.
        past: the state of the tokens before, or None.
    """
    if past is None:
        is_end = segmenter(input_ids, token_index(real, document_ids))
        return TokenState(*bilevel_positions(is_end, document_ids, real), document_ids, is_end, real)
    last = past.last_real()
    if input_ids.shape[1] == 1:
        return _read_token(segmenter, input_ids, real, document_ids, last)
    documents, there = (
        torch.cat((last.document_ids, document_ids), dim=1),
        torch.cat((last.real, real), dim=1),
    )
    goes_on = there & (document_starts(there, documents).long().cumsum(dim=-1) == 1)
    token = token_index(there, documents) + torch.where(goes_on, last.token, 0)
    is_end = torch.cat((last.is_end, segmenter(input_ids, token[:, 1:])), dim=1)
    segment, offset, _ = bilevel_positions(is_end, documents, there)
    offset = offset + torch.where(goes_on & (segment == 0), last.offset, 0)
    segment = segment + torch.where(goes_on, last.segment, 0)
    return TokenState(segment, offset, token, documents, is_end, there).columns(1)


def _read_token(
    segmenter: Segmenter, input_ids: Tensor, real: Tensor, document_ids: Tensor, last: TokenState
) -> TokenState:
    """As `read_tokens` for one token, in a few operations."""
    goes_on = real & last.real & (document_ids == last.document_ids)
    token = torch.where(goes_on, last.token + 1, 0)
    segment = torch.where(goes_on, last.segment + last.is_end, 0)
    offset = torch.where(goes_on & ~last.is_end, last.offset + 1, 0)
    return TokenState(segment, offset, token, document_ids, segmenter(input_ids, token), real)


def past_length(cache: Cache | None) -> int:
    """Number of tokens whose keys a cache has got."""
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
    flags, numbers = layer.keys[:, 0, :length].bool(), layer.values[:, 0, :length]
    return TokenState(*numbers.unbind(dim=-1), *flags.unbind(dim=-1))


def append_state(cache: Cache, index: int, new: TokenState) -> None:
    """Append the tokens of this call.

    The layer is of the cache's own kind with integers for keys and values, so that cropping, reordering,
    repeating and selecting rows treat it as they treat the others.
    """
    while len(cache.layers) <= index:
        first = cache.layers[0] if cache.layers else None
        grown = cache.layer_class_to_replicate or DynamicLayer
        cache.layers.append(StaticLayer(first.max_cache_len) if isinstance(first, StaticLayer) else grown())
    flags = torch.stack((new.is_end.long(), new.real.long()), dim=-1)
    numbers = torch.stack((*new.positions, new.document_ids), dim=-1)
    cast("Any", cache.layers[index]).update(flags[:, None], numbers[:, None])
