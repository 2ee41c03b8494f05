"""Bilevel positional encoding (He et al. 2024, arXiv:2401.16421) for decoder-only language models.

Importing this package also registers its model with transformers' Auto classes.
"""

from bipe.evaluation.base import Score
from bipe.evaluation.length_curve import length_curve
from bipe.models import SCHEMES, BipeConfig, BipeForCausalLM, BipeModel, BoundedCache
from bipe.models.convert import convert
from bipe.positions import BilevelPositions, MultilevelPositions, bilevel_positions
from bipe.segmentation import EveryToken, FixedLength, Levels, Never, NewlineRun, TokenSet

__all__ = [
    "SCHEMES",
    "BilevelPositions",
    "BipeConfig",
    "BipeForCausalLM",
    "BipeModel",
    "BoundedCache",
    "EveryToken",
    "FixedLength",
    "Levels",
    "MultilevelPositions",
    "Never",
    "NewlineRun",
    "Score",
    "TokenSet",
    "bilevel_positions",
    "convert",
    "length_curve",
]
