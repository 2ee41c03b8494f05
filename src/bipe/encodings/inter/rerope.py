"""RoPE whose distances stop growing."""

import torch
from torch import Tensor
from transformers import LlamaConfig

from .remapped import RemappedRope


class Rerope(RemappedRope):
    """ReRoPE (Su 2023, "Rectified Rotary Position Embeddings"): distances of at least `window` count as it.

    Options:
        window: the largest distance, in the unit of the index; it should be below the trained length.
        theta, index: as of `Rope`.
    """

    shift_invariant = True

    def __init__(
        self,
        config: LlamaConfig,
        *,
        window: int = 64,
        index: str = "segment",
    ) -> None:
        super().__init__(config, window, index)

    def far(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(index, self.window), torch.zeros_like(index)
