"""A penalty in proportion to the distance in segments."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.registry import check_number

from .base import CurveBias, DecayingBias, IndexEncoding, Relation


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


class Slopes:
    """What each head's bias falls by, a distance: fixed numbers, or the exponential of a parameter.

    The parameter is read anew for each block of attention, as its gradient is found a block at a time.

    Args:
        fixed: `(H,)` float32, at least 0.
        logarithms: `(H,)`, a parameter to which `log(fixed)` is the start, or None.
        factor: what learned slopes are divided by.

    Raises:
        ValueError: a slope is negative, where looking at them costs no waiting.
    """

    def __init__(self, fixed: Tensor, logarithms: Tensor | None = None, factor: float = 1.0) -> None:
        if not torch.compiler.is_compiling() and fixed.device.type == "cpu" and (fixed < 0).any():
            raise ValueError(f"ALiBi's slopes must be at least 0; got {fixed.tolist()}.")
        self.fixed, self.logarithms, self.factor = fixed, logarithms, factor

    def values(self) -> Tensor:
        """`(H,)` float32."""
        return self.fixed if self.logarithms is None else self.logarithms.float().exp() / self.factor

    def reach(self, nats: float | Tensor) -> Tensor:
        """As `DecayingBias.reach`, of a bias that falls by these alone."""
        slopes = self.values().detach()
        return torch.where(slopes > 0, torch.floor(nats / slopes), torch.inf)


class AlibiBias(CurveBias, DecayingBias):
    """`-slope * (query index - key index)`, from integer distances in float32.

    Args:
        slopes: of the heads.
        query_index: `(B, T)` int64.
        key_index: `(B, S)` int64.

    Raises:
        ValueError: a slope is negative, where looking at them costs no waiting.
    """

    def __init__(self, slopes: "Slopes | Tensor", query_index: Tensor, key_index: Tensor) -> None:
        super().__init__(query_index, key_index)
        self._slopes = slopes if isinstance(slopes, Slopes) else Slopes(slopes)

    @property
    def slopes(self) -> Tensor:
        """`(H,)` float32."""
        return self._slopes.values()

    def block(self, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        distance = self.key_index[:, None, None, columns] - self.query_index[:, None, rows, None]
        return self.slopes[None, heads, None, None] * distance.float()

    def numbers(self) -> tuple[Tensor, ...]:
        return (self.slopes,)

    def at(self, distance: Tensor, *numbers: Tensor) -> Tensor:
        return -numbers[0] * distance

    def reach(self, nats: float | Tensor) -> Tensor:
        return self._slopes.reach(nats)


def validate_scale(options: dict[str, Any]) -> None:
    """Check the options that all encodings with ALiBi's slopes have.

    Raises:
        ValueError: one is out of range.
    """
    if options.get("scale") == "auto":
        raise ValueError(
            "ALiBi's scale 'auto' is the mean number of tokens in a segment of the training text: "
            "measure it and give the number, BipeConfig.from_scheme(..., tokens_per_segment=12.3); "
            "`bipe train` does both."
        )
    learned = options.get("learned", False)
    if not isinstance(learned, bool):
        raise ValueError(f"learned says whether ALiBi's slopes are, true or false; got {learned!r}.")
    check_number("ALiBi's scale", options.get("scale", 96.0), 0, above=learned)
    check_number("ALiBi's factor, which slopes are divided by,", options.get("factor", 1.0), 1)


class Alibi(IndexEncoding):
    """ALiBi (Press et al. 2022, arXiv:2108.12409) on the distance in segments.

    The logits get `-scale * slope_h * (s_i - s_j)` (He et al. 2024, section 3, with scale 96). On one token
    a segment and scale 1 this is ALiBi itself.

    Options:
        scale: factor of the slopes; where they are learned, of their initial values.
        learned: whether each head's slope is a parameter, its logarithm, shared by all layers.
        factor: the slopes are divided by it, so that a text so many times longer fades as the trained one
            did: position interpolation.
        index: what the distance counts.
    """

    decays = True

    def __init__(
        self,
        config: LlamaConfig,
        *,
        scale: float = 96.0,
        learned: bool = False,
        factor: float = 1.0,
        index: str = "segment",
    ) -> None:
        super().__init__(config, index=index)
        self.factor = factor
        self.starts = [scale * slope for slope in alibi_slopes(config.num_attention_heads)]
        self.log_slopes = nn.Parameter(torch.tensor(self.starts).log()) if learned else None

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        validate_scale(options)

    def slopes(self, device: torch.device) -> Slopes:
        """The slopes with scale and factor; no cast touches fixed ones."""
        fixed = torch.tensor(
            [start / self.factor for start in self.starts], dtype=torch.float32, device=device
        )
        return Slopes(fixed, self.log_slopes, self.factor)

    def relate(self, query: Tensor, key: Tensor, dtype: torch.dtype) -> Relation:
        return Relation(bias=AlibiBias(self.slopes(query.device), query, key))

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        if self.log_slopes is not None:
            self.log_slopes.copy_(torch.tensor(self.starts).log())
