"""Segments of equal length, whatever the tokens are."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bipe.registry import check_number
from bipe.segmentation.base import columns_of


@dataclass(frozen=True)
class FixedLength:
    """Ends a segment at every n-th token of a document.

    >>> import torch
    >>> FixedLength(2)(torch.tensor([[5, 6, 7, 8, 9]])).tolist()
    [[False, True, False, True, False]]

    Args:
        n: tokens in a segment, at least 1.

    Raises:
        ValueError: `n` is no whole number of at least 1.
    """

    n: int

    def __post_init__(self) -> None:
        check_number("A segment's length in tokens", self.n, 1, 2**40, whole=True)

    def __call__(self, token_ids: Tensor, token_index: Tensor | None = None) -> Tensor:
        """Return `is_end`, counted from each document's first token; arguments as in `Segmenter`."""
        index = columns_of(token_ids) if token_index is None else token_index
        return (index + 1) % self.n == 0

    def to_spec(self) -> dict[str, Any]:
        """Return `{"type": "fixed_length", "n": n}`."""
        return {"type": "fixed_length", "n": self.n}
