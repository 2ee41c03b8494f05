"""The encodings between segments, by name."""

from .alibi import Alibi
from .base import InterEncoding, Relation
from .rope import Rope
from .zero import Zero

INTER_ENCODINGS: dict[str, type[InterEncoding]] = {"alibi": Alibi, "rope": Rope, "zero": Zero}

__all__ = ["INTER_ENCODINGS", "InterEncoding", "Relation"]
