"""No encoding inside segments."""

import torch
from transformers import LlamaConfig

from bipe.positions import Positions

from .base import IntraEncoding


class ZeroIntra(IntraEncoding):
    """Adds nothing: tokens of a segment are told apart by the causal order alone."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, positions: Positions, dtype: torch.dtype) -> None:
        return None
