"""The windows of test text that are scored at each context length."""

import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

ENOUGH_WINDOWS = 256
"""Below this many an interval is itself too uncertain to lean on."""


@dataclass(frozen=True)
class Windows:
    """The windows of one length.

    Attributes:
        documents: the texts, each `(n,)` int64.
        spans: `(document, first token, end)` of each window, in the order of the text.
        scored: number of tokens scored at the end of each window.
    """

    documents: Sequence[Tensor]
    spans: list[tuple[int, int, int]]
    scored: int

    def batches(self, size: int) -> Iterator[Tensor]:
        """The windows as `(B, L)` int64, B at most `size`."""
        for start in range(0, len(self.spans), size):
            spans = self.spans[start : start + size]
            yield torch.stack([self.documents[index][first:end].long() for index, first, end in spans])


def _same_targets(
    documents: Sequence[Tensor], lengths: Sequence[int], most: int | None
) -> dict[int, Windows]:
    """Windows that end at the same places for every length and score the same tokens."""
    longest, scored = lengths[-1], max(1, lengths[0] // 2)
    ends = ends_of(documents, longest, scored)
    why = "fit in the test text"
    if most is not None and len(ends) > most:
        ends = spread(ends, most)
        why = "are scored, for max_windows allows no more"
    if len(ends) < ENOUGH_WINDOWS:
        warnings.warn(
            f"Only {len(ends)} windows of {longest} tokens {why}; fewer than {ENOUGH_WINDOWS} are too few "
            "for narrow intervals.",
            stacklevel=3,
        )
    return {
        length: Windows(documents, [(index, end - length, end) for index, end in ends], scored)
        for length in lengths
    }


def _blocks(documents: Sequence[Tensor], lengths: Sequence[int], most: int | None) -> dict[int, Windows]:
    """Consecutive blocks; every token but a block's first, which nothing precedes, is scored.

    The blocks of every length are cut from the same stretches of text, each as long as the longest length and
    with a cap spread evenly, so that lengths differ in their cuts and not in their text.
    """
    whole = [(index, 0, len(document)) for index, document in enumerate(documents)]
    stretches = _cut(whole, lengths[-1])
    count = len(stretches) if most is None else max(1, most * lengths[0] // lengths[-1])
    if len(stretches) > count:
        stretches = spread(stretches, count)
    return {length: Windows(documents, _cut(stretches, length), length - 1) for length in lengths}


def ends_of(documents: Sequence[Tensor], length: int, step: int) -> list[tuple[int, int]]:
    """Document and end of each window of a length, one every `step` tokens."""
    return [
        (index, end)
        for index, document in enumerate(documents)
        for end in range(length, len(document) + 1, step)
    ]


def spread(items: Sequence[T], count: int) -> list[T]:
    """So many of some items, evenly spread from the first to the last.

    >>> spread("abcde", 3)
    ['a', 'c', 'e']
    """
    return [items[place] for place in np.linspace(0, len(items) - 1, count).round().astype(int)]


def without(documents: Sequence[Tensor], separators: Collection[int]) -> list[Tensor]:
    """The documents without some tokens.

    Args:
        documents: each `(n,)` int64.
        separators: the ids to leave out.

    Raises:
        ValueError: there is none.
    """
    if not separators:
        raise ValueError("The protocol 'without_separators' needs the ids that end segments; none are given.")
    left_out = torch.tensor(sorted(separators))
    return [document[~torch.isin(document, left_out)] for document in documents]


def _cut(stretches: Sequence[tuple[int, int, int]], length: int) -> list[tuple[int, int, int]]:
    """Cut stretches, `(document, first, end)`, into pieces of `length`; their rests are left out."""
    return [
        (index, first, first + length)
        for index, start, end in stretches
        for first in range(start, end - length + 1, length)
    ]


PROTOCOLS = {"same_targets": _same_targets, "blocks": _blocks, "without_separators": _same_targets}


def checked_lengths(documents: Sequence[Tensor], lengths: Sequence[int]) -> list[int]:
    """The lengths in order, each once.

    Raises:
        ValueError: there is none, one is below 2, or one fits in no document; or documents are not token ids.
    """
    if not isinstance(lengths, Iterable) or not (ordered := sorted(set(lengths))) or ordered[0] < 2:
        raise ValueError(f"Lengths are whole numbers of tokens, at least 2; got {lengths}.")
    for document in documents:
        if not isinstance(document, Tensor) or document.dim() != 1 or document.is_floating_point():
            got = (document.dtype, tuple(document.shape)) if isinstance(document, Tensor) else repr(document)
            raise ValueError(
                "The test documents are a list of tensors (tokens,) int64, a text's token ids each; got "
                f"{got!s:.100}."
            )
    longest = max((len(document) for document in documents), default=0)
    if longest < ordered[-1]:
        raise ValueError(
            f"The longest length, {ordered[-1]}, does not fit in any test document; the longest has "
            f"{longest} tokens. Test on longer documents or ask for shorter lengths."
        )
    return ordered
