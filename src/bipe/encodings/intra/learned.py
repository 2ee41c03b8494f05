"""A learned vector for each offset."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.positions import Positions
from bipe.registry import check_number

from .base import IntraEncoding


class Learned(IntraEncoding):
    """A table of learned vectors, one an offset (He et al. 2024, section 3; 1,024 rows in the paper).

    Offsets beyond `config.max_trained_offset`, and beyond the table, use the last row before that limit.
    """

    def __init__(self, config: LlamaConfig, *, max_offset: int = 1024) -> None:
        super().__init__(config)
        self.max_offset = max_offset
        self.embedding = nn.Embedding(max_offset, config.hidden_size)

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        rows = options.get("max_offset", 1024)
        check_number("max_offset, its number of rows,", rows, 1, 2**24, whole=True)

    def forward(self, positions: Positions, dtype: torch.dtype) -> Tensor:
        return self.embedding(self.clamp(positions.offset)).to(dtype)

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.embedding.weight, std=std)
