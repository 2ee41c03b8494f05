"""Tokens per segment, and whether their distribution stays alike as texts grow."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from bipe.registry import check_number
from bipe.segmentation.base import Segmenter

HISTOGRAM_CAP = 256
"""The last bin of a histogram holds all segments of at least this many tokens."""


@dataclass(frozen=True)
class SegmentStatistics:
    """The distribution of tokens per segment.

    >>> SegmentStatistics.from_counts(torch.tensor([2, 4, 3])).to_dict()
    {'segments': 3, 'mean': 3.0, 'p50': 3, 'p99': 4, 'max': 4, 'histogram': [0, 0, 1, 1, 1]}
    """

    segments: int
    """Number of segments."""
    mean: float
    """Mean tokens per segment."""
    p50: int
    """Median: the smallest number of tokens that at least half of the segments do not exceed."""
    p99: int
    """The smallest number of tokens that at least 99 % of the segments do not exceed."""
    max: int
    """Tokens of the longest segment."""
    histogram: tuple[int, ...]
    """Number of segments of i tokens at index i; index `HISTOGRAM_CAP` counts all longer ones too."""

    @classmethod
    def from_counts(cls, counts: Tensor) -> Self:
        """Summarise `counts`: `(segments,)` int64, at least one; the tokens of each segment."""
        if counts.numel() == 0:
            raise ValueError("There is no segment to describe: the text holds no tokens.")
        bins = torch.bincount(counts.clamp(max=HISTOGRAM_CAP))
        p50, p99 = np.percentile(counts.numpy(), [50, 99], method="inverted_cdf")  # numbers that occur
        return cls(
            segments=counts.numel(),
            mean=counts.double().mean().item(),
            p50=int(p50),
            p99=int(p99),
            max=int(counts.max()),
            histogram=tuple(bins.tolist()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self) | {"histogram": list(self.histogram)}


def tokens_per_segment(is_end: Tensor) -> Tensor:
    """Count the tokens of each segment, row by row.

    >>> is_end = torch.tensor([False, True, False, False, True, False])
    >>> tokens_per_segment(is_end).tolist()
    [2, 3, 1]

    Args:
        is_end: `(T,)` or `(B, T)` bool, true on the last token of each segment. A row's last token ends one.

    Returns:
        `(segments,)` int64; the counts add up to the number of tokens.
    """
    ends = torch.atleast_2d(is_end).clone()
    ends[:, -1:] = True
    last = ends.flatten().nonzero().flatten()
    return last.diff(prepend=last.new_tensor([-1]))


def segment_statistics(
    documents: Sequence[Tensor], segmenter: Segmenter, lengths: Sequence[int]
) -> dict[int, SegmentStatistics]:
    """Describe tokens per segment in texts of several lengths (Figure 1 of the paper).

    For each length the documents are cut into consecutive windows of so many tokens, each a text of its own;
    what is left at a document's end, and documents shorter than the length, do not count.

    Args:
        documents: `(n,)` int64 token ids each.
        segmenter: cuts each window.
        lengths: tokens in a window.

    Returns:
        The statistics by length, in the order given.

    Raises:
        ValueError: a length is less than 1, or longer than every document.
    """
    return {
        length: SegmentStatistics.from_counts(_counts_in_windows(documents, segmenter, length))
        for length in lengths
    }


def fitting_lengths(
    documents: Sequence[Tensor], lengths: Sequence[int] = (256, 512, 1024, 2048, 4096, 8192)
) -> list[int]:
    """Return the lengths that the longest document has room for, or that document's own length if none fits.

    >>> fitting_lengths([torch.zeros(600), torch.zeros(90)])
    [256, 512]

    Raises:
        ValueError: all documents are empty.
    """
    longest = max((len(document) for document in documents), default=0)
    if longest == 0:
        raise ValueError("The documents hold no tokens.")
    return [length for length in lengths if length <= longest] or [longest]


def mean_tokens_per_segment(documents: Sequence[Tensor], segmenter: Segmenter, cap: int) -> float:
    """Return the mean of min(tokens, cap): the scale at which BiPE-ALiBi fades per token as ALiBi does.

    >>> from bipe.segmentation.token_set import TokenSet
    >>> mean_tokens_per_segment([torch.tensor([1, 1, 0, 1, 1, 1, 1, 0])], TokenSet([0]), cap=4)
    3.5

    Args:
        documents: `(n,)` int64 token ids each; a document's end ends a segment.
        segmenter: cuts each document.
        cap: tokens beyond which a segment counts no further: the training length, as training sees no longer
            one.

    Raises:
        ValueError: `cap` is less than 1, or the documents hold no tokens.
    """
    check_number("cap", cap, 1, whole=True)
    counts = [tokens_per_segment(segmenter(document[None])) for document in documents if len(document)]
    if not counts:
        raise ValueError("The documents hold no tokens, so their segments have no mean length.")
    return torch.cat(counts).clamp(max=cap).double().mean().item()


def _counts_in_windows(documents: Sequence[Tensor], segmenter: Segmenter, length: int) -> Tensor:
    """Return the tokens of each segment in the documents' windows of `length` tokens: `(segments,)` int64."""
    counts = [tokens_per_segment(segmenter(windows)) for windows in _windows(documents, length)]
    if not counts:
        longest = max((len(document) for document in documents), default=0)
        raise ValueError(
            f"No document has {length} tokens (the longest has {longest}). Choose shorter lengths."
        )
    return torch.cat(counts)


def _windows(documents: Sequence[Tensor], length: int) -> Iterator[Tensor]:
    """Yield each document's full windows, `(windows, length)`."""
    check_number("A length in tokens", length, 1, whole=True)
    for document in documents:
        if len(document) >= length:
            yield document[: len(document) // length * length].view(-1, length)
