"""What an encoding inside segments is."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.positions import Positions


class IntraEncoding(nn.Module, ABC):
    """An absolute encoding of the offset, added once to the token embedding.

    The keyword-only parameters of `__init__` are the options of the config's `intra` dictionary.

    Attributes:
        config: of the model.
        max_offset: number of offsets that the encoding can tell apart, or None where there is no limit.
    """

    max_offset: int | None = None

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def longest_offset(self) -> int | None:
        """The longest offset with a vector of its own, which longer ones share; None for no limit.

        By default the longest that training has seen: the vectors after it were never trained.
        """
        trained: int | None = getattr(self.config, "max_trained_offset", None)
        if self.max_offset is None or trained is None:
            return trained if self.max_offset is None else self.max_offset - 1
        return min(trained, self.max_offset - 1)

    @property
    def cacheable(self) -> bool:
        """Whether a token's vector is the same in every call, so that keys made from it may be kept."""
        return True

    def clamp(self, offset: Tensor) -> Tensor:
        """Offsets, int64, with `longest_offset` in place of longer ones."""
        limit = self.longest_offset
        return offset if limit is None else offset.clamp(max=limit)

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        """Check the options of the config.

        Raises:
            ValueError: an option is out of range.
        """

    @abstractmethod
    def forward(self, positions: Positions, dtype: torch.dtype) -> Tensor | None:
        """The vectors to add to the embeddings, `(B, T, D)` in `dtype`, or None to add nothing."""

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        """Give the parameters initial values; `std` is that of the token embeddings."""
