"""What an encoding inside segments is."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.positions import BilevelPositions


class IntraEncoding(nn.Module, ABC):
    """An absolute encoding of the offset, added once to the token embedding.

    The keyword-only parameters of `__init__` are the options of the config's `intra` dictionary.

    Attributes:
        max_offset: number of offsets that the encoding can tell apart, or None where there is no limit.
    """

    max_offset: int | None = None

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        """Check the options of the config.

        Raises:
            ValueError: an option is out of range.
        """

    @abstractmethod
    def forward(self, positions: BilevelPositions, dtype: torch.dtype) -> Tensor | None:
        """The vectors to add to the embeddings, `(B, T, D)` in `dtype`, or None to add nothing."""

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        """Give the parameters initial values; `std` is that of the token embeddings."""


def clamp_offsets(offset: Tensor, config: LlamaConfig) -> Tensor:
    """Offsets beyond the longest trained one use its vector: the vectors after it were never trained.

    Args:
        offset: `(B, T)` int64.
        config: its `max_trained_offset` is the limit, or None for no limit.
    """
    limit = getattr(config, "max_trained_offset", None)
    return offset if limit is None else offset.clamp(max=limit)
