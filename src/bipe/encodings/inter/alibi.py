"""A penalty in proportion to the distance in segments."""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from bipe.positions import BilevelPositions

from .base import DecayingBias, InterEncoding, Relation


def alibi_slopes(heads: int) -> list[float]:
    """The slopes of ALiBi (Press et al. 2022, arXiv:2108.12409).

    For a power of two, a geometric sequence that starts and divides by `2^(-8/heads)`. For other counts, the
    sequence of the next smaller power of two, followed by every other slope of the next larger one.

    >>> alibi_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    return slopes + [2.0 ** (-4 * (2 * head + 1) / power) for head in range(heads - power)]


class AlibiBias(DecayingBias):
    """`-slope * (query segment - key segment)`, from integer distances in float32.

    Raises:
        ValueError: a slope is negative, where looking at them costs no waiting.
    """

    def __init__(self, slopes: Tensor, query_segment: Tensor, key_segment: Tensor) -> None:
        if not torch.compiler.is_compiling() and slopes.device.type == "cpu" and (slopes < 0).any():
            raise ValueError(f"ALiBi's slopes must be at least 0; got {slopes.tolist()}.")
        if _rows_agree(key_segment):  # the queries are among the keys
            query_segment, key_segment = query_segment[:1], key_segment[:1]
        self.slopes, self.query_index, self.key_index = slopes, query_segment, key_segment

    def block(self, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        distance = self.key_index[:, None, None, columns] - self.query_index[:, None, rows, None]
        return self.slopes[None, heads, None, None] * distance.float()

    def score(self, score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_segment, key_segment = (
            index[batch.clamp(max=index.shape[0] - 1), column.clamp(max=index.shape[1] - 1)]
            for index, column in ((self.query_index, query), (self.key_index, key))
        )
        return score + self.slopes[head] * (key_segment - query_segment).float()

    def reach(self, nats: float | Tensor) -> Tensor:
        return torch.where(self.slopes > 0, torch.floor(nats / self.slopes), torch.inf)


def _rows_agree(segment: Tensor) -> bool:
    """Whether all rows of the batch have equal positions, where looking at them costs no waiting."""
    if torch.compiler.is_compiling() or segment.device.type != "cpu":
        return len(segment) == 1
    return len(segment) == 1 or bool((segment == segment[:1]).all())


class Alibi(InterEncoding):
    """ALiBi (Press et al. 2022, arXiv:2108.12409) on the distance in segments.

    The logits get `-scale * slope_h * (s_i - s_j)` (He et al. 2024, section 3, with scale 96). On one token
    a segment and scale 1 this is ALiBi itself.
    """

    decays = True

    def __init__(self, config: LlamaConfig, *, scale: float = 96.0) -> None:
        super().__init__()
        self.scaled_slopes = [scale * slope for slope in alibi_slopes(config.num_attention_heads)]

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        scale = options.get("scale", 96.0)
        if scale == "auto":
            raise ValueError(
                "ALiBi's scale 'auto' is the mean number of tokens in a segment of the training text: "
                "measure it and give the number, BipeConfig.from_scheme(..., tokens_per_segment=12.3); "
                "`bipe train` does both."
            )
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not (0 <= scale < math.inf):
            raise ValueError(f"ALiBi's scale must be a finite number, at least 0; got {scale!r}.")

    def slopes(self, device: torch.device) -> Tensor:
        """The slopes times the scale, `(H,)` float32, from Python floats that no cast has touched."""
        return torch.tensor(self.scaled_slopes, dtype=torch.float32, device=device)

    def forward(self, query: BilevelPositions, key: BilevelPositions, dtype: torch.dtype) -> Relation:
        return Relation(bias=AlibiBias(self.slopes(query.segment.device), query.segment, key.segment))
