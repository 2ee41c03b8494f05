"""The encodings between segments, by name."""

from .alibi import Alibi
from .base import InterEncoding, Relation
from .rope import Rope
from .zero import ZeroInter

INTER_ENCODINGS: dict[str, type[InterEncoding]] = {"alibi": Alibi, "rope": Rope, "zero": ZeroInter}

__all__ = ["INTER_ENCODINGS", "InterEncoding", "Relation"]
