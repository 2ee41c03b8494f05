"""No encoding inside segments."""

import torch

from bipe.positions import Positions

from .base import IntraEncoding


class ZeroIntra(IntraEncoding):
    """Adds nothing: tokens of a segment are told apart by the causal order alone."""

    def forward(self, positions: Positions, dtype: torch.dtype) -> None:
        return None
