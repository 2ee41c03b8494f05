"""What a cache must remember so that new tokens get their positions: one more layer."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from bipe.positions import (
    BilevelPositions,
    MultilevelPositions,
    Positions,
    document_starts,
    multilevel_positions,
    token_index,
)
from bipe.segmentation.base import Segmenter, levels_of, read_ends


class TokenState(NamedTuple):
    """What is known of every token that a cache holds and of those of this call.

    Attributes:
        segment: `(B, S)` int64, as in `BilevelPositions`.
        offset: `(B, S)` int64, likewise.
        token: `(B, S)` int64, likewise.
        outer: `(B, S, L)` int64, as in `MultilevelPositions`; without columns for two levels.
        document_ids: `(B, S)` int64.
        ends: `(B, S)` int64, how many levels of segments end at the token.
        memory: `(B, S)` int64, what the segmenter must know of the tokens up to this one.
        real: `(B, S)` bool, false on padding and on slots not filled yet.
    """

    segment: Tensor
    offset: Tensor
    token: Tensor
    outer: Tensor
    document_ids: Tensor
    ends: Tensor
    memory: Tensor
    real: Tensor

    @property
    def positions(self) -> Positions:
        """Where the tokens stand."""
        if self.outer.shape[-1] == 0:
            return BilevelPositions(self.segment, self.offset, self.token)
        return MultilevelPositions(self.segment, self.offset, self.token, self.outer)

    def columns(self, start: int | None, stop: int | None = None) -> "TokenState":
        """The state of some columns."""
        return TokenState(*(part[:, start:stop] for part in self))

    def last_real(self) -> "TokenState":
        """The state of each row's last token that is no padding, one column; of padding where all is."""
        if not torch.compiler.is_compiling() and self.real[:, -1].all():
            return self.columns(-1)
        columns = torch.arange(self.real.shape[1], device=self.real.device)
        last = torch.where(self.real, columns, 0).amax(dim=1, keepdim=True)
        outer = self.outer.gather(1, last[..., None].expand(-1, -1, self.outer.shape[-1]))
        single = {name: part.gather(1, last) for name, part in self._asdict().items() if name != "outer"}
        return TokenState(outer=outer, **single)


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
        ends, memory = read_ends(segmenter, input_ids, _read_index(token_index(real, document_ids), real))
        found = multilevel_positions(ends, levels_of(segmenter), document_ids, real)
        return _state(found, document_ids, ends, memory, real)
    last = past.last_real()
    if input_ids.shape[1] == 1:
        return _read_token(segmenter, input_ids, real, document_ids, last)
    documents, there = (
        torch.cat((last.document_ids, document_ids), dim=1),
        torch.cat((last.real, real), dim=1),
    )
    goes_on = there & (document_starts(there, documents).long().cumsum(dim=-1) == 1)
    token = token_index(there, documents) + torch.where(goes_on, last.token, 0)
    read, memory = read_ends(segmenter, input_ids, _read_index(token[:, 1:], real), last.memory)
    ends, memory = torch.cat((last.ends, read), dim=1), torch.cat((last.memory, memory), dim=1)
    found = multilevel_positions(ends, levels_of(segmenter), documents, there)
    offset = found.offset + torch.where(goes_on & (found.segment == 0), last.offset, 0)
    segment = found.segment + torch.where(goes_on, last.segment, 0)
    counted = found._replace(segment=segment, offset=offset, token=token)
    if isinstance(counted, MultilevelPositions):
        counted = counted._replace(outer=counted.outer + torch.where(goes_on[..., None], last.outer, 0))
    return _state(counted, documents, ends, memory, there).columns(1)


def _state(
    positions: Positions, document_ids: Tensor, ends: Tensor, memory: Tensor, real: Tensor
) -> TokenState:
    """The state of tokens that stand at these positions."""
    if isinstance(positions, MultilevelPositions):
        return TokenState(*positions, document_ids, ends, memory, real)
    return TokenState(*positions, ends.new_zeros(*ends.shape, 0), document_ids, ends, memory, real)


def _read_index(token: Tensor, real: Tensor) -> Tensor:
    """The index of each token in its document as a segmenter reads it: negative on padding."""
    return torch.where(real, token, -1)


def _read_token(
    segmenter: Segmenter, input_ids: Tensor, real: Tensor, document_ids: Tensor, last: TokenState
) -> TokenState:
    """As `read_tokens` for one token, in a few operations."""
    goes_on = real & last.real & (document_ids == last.document_ids)
    token = torch.where(goes_on, last.token + 1, 0)
    is_end = last.ends > 0
    segment = torch.where(goes_on, last.segment + is_end, 0)
    offset = torch.where(goes_on & ~is_end, last.offset + 1, 0)
    level = torch.arange(1, levels_of(segmenter), device=token.device)
    outer = torch.where(goes_on[..., None], last.outer + (last.ends[..., None] > level), 0)
    ends, memory = read_ends(segmenter, input_ids, _read_index(token, real), last.memory)
    return TokenState(segment, offset, token, outer, document_ids, ends, memory, real)


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
    real, numbers = layer.keys[:, 0, :length, 0].bool(), layer.values[:, 0, :length]
    single, outer = numbers[..., :6], numbers[..., 6:]
    segment, offset, token, document_ids, ends, memory = single.unbind(dim=-1)
    return TokenState(segment, offset, token, outer, document_ids, ends, memory, real)


def append_state(cache: Cache, index: int, new: TokenState) -> None:
    """Append the tokens of this call.

    The layer is of the cache's own kind with integers for keys and values, so that cropping, reordering,
    repeating and selecting rows treat it as they treat the others.
    """
    while len(cache.layers) <= index:
        first = cache.layers[0] if cache.layers else None
        grown = cache.layer_class_to_replicate or DynamicLayer
        cache.layers.append(StaticLayer(first.max_cache_len) if isinstance(first, StaticLayer) else grown())
    single = (new.segment, new.offset, new.token, new.document_ids, new.ends, new.memory)
    numbers = torch.cat((torch.stack(single, dim=-1), new.outer), dim=-1)
    cast("Any", cache.layers[index]).update(new.real.long()[:, None, :, None], numbers[:, None])
    if cache.offloading:
        # After the last layer transformers brings back the next one, which is this, in place of the first.
        cache.prefetch(0, cache.only_non_sliding)
