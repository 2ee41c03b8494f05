"""No encoding inside segments."""

import torch

from bipe.positions import BilevelPositions

from .base import IntraEncoding


class ZeroIntra(IntraEncoding):
    """Adds nothing: tokens of a segment are told apart by the causal order alone."""

    def __init__(self, config: object) -> None:
        super().__init__()

    def forward(self, positions: BilevelPositions, dtype: torch.dtype) -> None:
        return None
