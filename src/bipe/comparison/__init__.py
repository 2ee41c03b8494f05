"""Comparing schemes: what `bipe compare` does."""

from .compare import compare
from .settings import Comparison

__all__ = ["Comparison", "compare"]
