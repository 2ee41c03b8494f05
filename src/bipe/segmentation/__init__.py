"""How a stream of tokens is cut into segments."""

from collections.abc import Mapping
from typing import Any

from bipe.registry import split_spec
from bipe.segmentation.base import Segmenter
from bipe.segmentation.every_token import EveryToken
from bipe.segmentation.fixed_length import FixedLength
from bipe.segmentation.never import Never
from bipe.segmentation.rules import RULES
from bipe.segmentation.token_set import TokenSet

__all__ = [
    "RULES",
    "SEGMENTERS",
    "EveryToken",
    "FixedLength",
    "Never",
    "Segmenter",
    "TokenSet",
    "build_segmenter",
]

SEGMENTERS: dict[str, type[Segmenter]] = {
    "every_token": EveryToken,
    "fixed_length": FixedLength,
    "never": Never,
    "token_set": TokenSet,
}


def build_segmenter(spec: Mapping[str, Any]) -> Segmenter:
    """Rebuild a segmenter from what its `to_spec` returned.

    >>> build_segmenter({"type": "fixed_length", "n": 4})
    FixedLength(n=4)

    Raises:
        ValueError: the type, an option or an option's value is wrong; the message says which.
    """
    segmenter, options = split_spec("segmenter", SEGMENTERS, spec)
    return segmenter(**options)
