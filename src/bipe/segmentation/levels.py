"""Segments of segments: sentences in paragraphs in sections, lines in blocks in files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bipe.segmentation.base import Reading, Segmenter, columns_of, levels_of, read_ends

MOST_LEVELS = 8
"""Whose memories fit into one number."""

MEMORY = 16
"""More than the memory of any one segmenter here."""


@dataclass(frozen=True, init=False)
class Levels:
    """Several segmenters, the innermost first; where an outer segment ends, so do those inside.

    >>> from bipe.segmentation.token_set import TokenSet
    >>> levels = Levels([TokenSet([1]), TokenSet([2])])
    >>> levels.read(torch.tensor([[5, 1, 5, 2, 5]]), torch.arange(5)[None]).ends.tolist()
    [[0, 1, 0, 2, 0]]

    Args:
        segmenters: two to eight of one level each.

    Raises:
        ValueError: there are fewer or more, or one has levels of its own.
    """

    segmenters: tuple[Segmenter, ...]

    def __init__(self, segmenters: Sequence[Segmenter]) -> None:
        if not 2 <= len(segmenters) <= MOST_LEVELS:
            raise ValueError(
                f"Levels are two to {MOST_LEVELS} segmenters, the innermost first; got {len(segmenters)}."
            )
        if any(levels_of(level) > 1 for level in segmenters):
            raise ValueError("A level of levels must be a segmenter of one level.")
        object.__setattr__(self, "segmenters", tuple(segmenters))

    @property
    def levels(self) -> int:
        """How many there are."""
        return len(self.segmenters)

    def __call__(self, token_ids: Tensor, token_index: Tensor | None = None) -> Tensor:
        """Return `is_end` of the innermost segments; the arguments are those of `Segmenter`."""
        index = columns_of(token_ids) if token_index is None else token_index
        return self.read(token_ids, index).ends > 0

    def read(self, token_ids: Tensor, token_index: Tensor, memory: Tensor | None = None) -> Reading:
        """As `ReadingSegmenter.read`."""
        ends, remembered = torch.zeros_like(token_ids), torch.zeros_like(token_ids)
        for level, segmenter in enumerate(self.segmenters):
            own = None if memory is None else memory // MEMORY**level % MEMORY
            reading = read_ends(segmenter, token_ids, token_index, own)
            ends = torch.where(reading.ends > 0, level + 1, ends)
            remembered = remembered + reading.memory * MEMORY**level
        return Reading(ends, remembered)

    def to_spec(self) -> dict[str, Any]:
        """Return `{"type": "levels", "segmenters": [...]}`."""
        return {"type": "levels", "segmenters": [level.to_spec() for level in self.segmenters]}
