"""Segments of one token: the segment index is the token index, as in plain relative encodings."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class EveryToken:
    """Ends a segment at every token.

    >>> EveryToken()(torch.tensor([[5, 6, 7]])).tolist()
    [[True, True, True]]
    """

    def __call__(self, token_ids: Tensor, token_index: Tensor | None = None) -> Tensor:
        """Return `is_end`: all true, in the shape of `token_ids`."""
        return torch.ones_like(token_ids, dtype=torch.bool)

    def to_spec(self) -> dict[str, Any]:
        """Return `{"type": "every_token"}`."""
        return {"type": "every_token"}
