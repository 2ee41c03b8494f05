"""One segment a document: the offset is the token index, as in plain absolute encodings."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Never:
    """Ends no segment, so each document is a single one.

    >>> Never()(torch.tensor([[5, 6, 7]])).tolist()
    [[False, False, False]]
    """

    def __call__(self, token_ids: Tensor, token_index: Tensor | None = None) -> Tensor:
        """Return `is_end`: all false, in the shape of `token_ids`."""
        return torch.zeros_like(token_ids, dtype=torch.bool)

    def to_spec(self) -> dict[str, Any]:
        """Return `{"type": "never"}`."""
        return {"type": "never"}
