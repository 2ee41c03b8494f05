"""Where each token stands: the index of its segment, its offset inside it, and its plain index."""

from typing import NamedTuple

import torch
from torch import Tensor


class BilevelPositions(NamedTuple):
    """Positions of a batch of tokens, all counted from 0 inside each document (He et al. 2024, section 3).

    Attributes:
        segment: `(B, T)` int64, index of the token's segment in its document.
        offset: `(B, T)` int64, index of the token in its segment.
        token: `(B, T)` int64, index of the token in its document.
    """

    segment: Tensor
    offset: Tensor
    token: Tensor

    def last(self, count: int) -> "BilevelPositions":
        """The positions of the last `count` columns."""
        return BilevelPositions(*(index[:, index.shape[1] - count :] for index in self))

    def documents(self, real: Tensor | None = None) -> Tensor:
        """Documents as `(B, T)` int64, counted at each token of index 0.

        Args:
            real: `(B, T)`, 0 on padding, which has index 0 too and starts nothing; None where there is none.
        """
        starts = self.token == 0
        return (starts if real is None else starts & real.bool()).long().cumsum(dim=-1)

    def pad_to(self, length: int) -> "BilevelPositions":
        """The positions with zeros appended up to `length` columns, for cache slots not filled yet."""
        missing = max(0, length - self.token.shape[1])
        return BilevelPositions(*(torch.nn.functional.pad(index, (0, missing)) for index in self))


class MultilevelPositions(NamedTuple):
    """Positions with segments of segments, such as paragraphs of sentences; the first three are as ever.

    Attributes:
        segment: as in `BilevelPositions`, of the innermost segments.
        offset: likewise.
        token: likewise.
        outer: `(B, T, L)` int64, for each further level the index of the token's segment in its document,
            the innermost first. An index counts from the document's start, not from that of a longer segment.
    """

    segment: Tensor
    offset: Tensor
    token: Tensor
    outer: Tensor

    def last(self, count: int) -> "MultilevelPositions":
        """As `BilevelPositions.last`."""
        return MultilevelPositions(*(index[:, index.shape[1] - count :] for index in self))

    def documents(self, real: Tensor | None = None) -> Tensor:
        """As `BilevelPositions.documents`."""
        return BilevelPositions(*self[:3]).documents(real)

    def pad_to(self, length: int) -> "MultilevelPositions":
        """As `BilevelPositions.pad_to`."""
        missing = max(0, length - self.token.shape[1])
        outer = torch.nn.functional.pad(self.outer, (0, 0, 0, missing))
        return MultilevelPositions(*BilevelPositions(*self[:3]).pad_to(length), outer)


Positions = BilevelPositions | MultilevelPositions


def _count_before(flags: Tensor) -> Tensor:
    """Number of true columns strictly before each column, `(B, T)` int64."""
    ones = flags.long()
    return ones.cumsum(dim=-1) - ones


def _value_at_last(flags: Tensor, counts: Tensor) -> Tensor:
    """The nondecreasing `counts` at the last true column up to each column, 0 before the first."""
    return torch.where(flags, counts, 0).cummax(dim=-1).values


def document_starts(real: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """The first real token of each document, `(B, T)` bool.

    Args:
        real: `(B, T)` bool, false on padding.
        document_ids: `(B, T)` int64, equal on the tokens of a document and different on neighbouring
            documents. None means one document a row.
    """
    first = real & (_count_before(real) == 0)
    if document_ids is None:
        return first
    columns = torch.arange(real.shape[1], device=real.device)
    # A border is judged against the previous real token, so that padding between two tokens makes none.
    previous = torch.where(real, columns, 0).cummax(dim=-1).values.roll(1, dims=-1)
    return first | (real & (document_ids != document_ids.gather(-1, previous)))


def token_index(real: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Index of each token in its document, `(B, T)` int64; padding is not counted and has index 0.

    Args:
        real: `(B, T)` bool, false on padding.
        document_ids: as for `document_starts`.
    """
    before = _count_before(real)
    return torch.where(real, before - _value_at_last(document_starts(real, document_ids), before), 0)


def bilevel_positions(
    is_end: Tensor, document_ids: Tensor | None = None, attention_mask: Tensor | None = None
) -> BilevelPositions:
    """Positions from the flags that end segments.

    The token that ends a segment belongs to it. `segment`, `offset` and `token` restart at 0 at the first
    token of each document and at the first real token after padding on the left. Padding is not counted and
    has position 0. No position depends on later tokens.

    >>> is_end = torch.tensor([[False, False, True, False, True, True, False]])
    >>> bilevel_positions(is_end).offset.tolist(), bilevel_positions(is_end).segment.tolist()
    ([[0, 1, 2, 0, 1, 0, 0]], [[0, 0, 0, 1, 1, 2, 3]])

    Args:
        is_end: `(B, T)` bool, true on the last token of each segment.
        document_ids: `(B, T)` int64, or None for one document a row; a document border also ends a segment.
        attention_mask: `(B, T)` bool or integers, 0 on padding, or None for no padding.

    Raises:
        ValueError: the arguments do not all have the same two-dimensional shape.
    """
    for name, tensor in (
        ("is_end", is_end),
        ("document_ids", document_ids),
        ("attention_mask", attention_mask),
    ):
        if tensor is not None and (tensor.dim() != 2 or tensor.shape != is_end.shape):
            raise ValueError(
                f"{name} must have the shape (B, T) of is_end, {tuple(is_end.shape)}; "
                f"got {tuple(tensor.shape)}."
            )
    real = torch.ones_like(is_end, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    starts = document_starts(real, document_ids)
    ended = real & is_end.bool()
    tokens_before, ends_before = _count_before(real), _count_before(ended)
    # `roll` brings the last column to the front, which is harmless: no token precedes column 0, so its count
    # is 0.
    segment_starts = starts | ended.roll(1, dims=-1)
    segment = ends_before - _value_at_last(starts, ends_before)
    offset = tokens_before - _value_at_last(segment_starts, tokens_before)
    token = tokens_before - _value_at_last(starts, tokens_before)
    return BilevelPositions(*(torch.where(real, index, 0) for index in (segment, offset, token)))


def multilevel_positions(
    ends: Tensor,
    levels: int,
    document_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Positions:
    """Positions from the number of levels that end at each token.

    >>> ends = torch.tensor([[0, 1, 0, 2, 0, 1, 2]])
    >>> multilevel_positions(ends, 2).segment.tolist(), multilevel_positions(ends, 2).outer[..., 0].tolist()
    ([[0, 0, 1, 1, 2, 2, 3]], [[0, 0, 0, 0, 1, 1, 1]])

    Args:
        ends: `(B, T)` int64; 1 ends a segment, 2 also the segment of segments, and so on.
        levels: how many there are; with one this is `bilevel_positions`.
        document_ids: as there.
        attention_mask: likewise.
    """
    inner = bilevel_positions(ends > 0, document_ids, attention_mask)
    if levels == 1:
        return inner
    outer = [
        bilevel_positions(ends > level, document_ids, attention_mask).segment for level in range(1, levels)
    ]
    return MultilevelPositions(*inner, torch.stack(outer, dim=-1))


def document_ids_from_position_ids(position_ids: Tensor, real: Tensor | None = None) -> Tensor:
    """Documents of a packed batch that is described by `position_ids` alone.

    Any step other than +1 between neighbouring real tokens starts a document, as in transformers' mask
    creation; behind padding inside a row a token may go on from the token before it or from the padding.

    >>> document_ids_from_position_ids(torch.tensor([[0, 1, 2, 0, 1]])).tolist()
    [[0, 0, 0, 1, 1]]

    Args:
        position_ids: `(B, T)` int64.
        real: `(B, T)` bool, false on padding, or None for no padding.
    """
    columns = torch.arange(position_ids.shape[1], device=position_ids.device)
    border = (position_ids != position_ids.roll(1, dims=-1) + 1) & (columns > 0)
    if real is not None:
        before = torch.where(real, columns, 0).cummax(dim=-1).values.roll(1, dims=-1)
        is_first = real & (_count_before(real) == 0)
        border = border & real & ~is_first & (position_ids != position_ids.gather(-1, before) + 1)
    return border.long().cumsum(dim=-1)
