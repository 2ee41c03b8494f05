"""No encoding between segments."""

import torch
from transformers import LlamaConfig

from bipe.positions import Positions

from .base import InterEncoding, Relation


class ZeroInter(InterEncoding):
    """Leaves attention as it is: the logits depend on content alone."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)

    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        return Relation()
