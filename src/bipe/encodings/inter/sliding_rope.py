"""A rotation within a sliding window."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from bipe.registry import check_number

from .base import CurveBias, DecayingBias, Relation
from .rope import Rope

NOTHING = torch.finfo(torch.float32).min / 2  # next to which no logit counts


class WindowBias(CurveBias, DecayingBias):
    """0 at distances below the window, and beyond it what leaves a key no weight."""

    def __init__(self, window: int, heads: int, query_index: Tensor, key_index: Tensor) -> None:
        super().__init__(query_index, key_index)
        self.window, self.heads = window, heads

    def numbers(self) -> tuple[Tensor, ...]:
        return (
            torch.full((self.heads,), float(self.window), dtype=torch.float32, device=self.key_index.device),
        )

    def at(self, distance: Tensor, *numbers: Tensor) -> Tensor:
        return NOTHING * (distance >= numbers[0]).float()

    def reach(self, nats: float | Tensor) -> Tensor:
        return torch.zeros_like(torch.as_tensor(nats), dtype=torch.float32) + self.numbers()[0] - 1


class SlidingRope(Rope):
    """RoPE that attends to distances below a window (Beltagy et al. 2020, arXiv:2004.05150, section 3).

    Options:
        window: so many segments are seen, a query's own included; tokens, where the index is that.
        theta, scaling, index: as of `Rope`.
    """

    decays = True

    def __init__(
        self,
        config: LlamaConfig,
        *,
        window: int = 128,
        index: str = "segment",
    ) -> None:
        super().__init__(config, index=index)
        self.window, self.heads = window, config.num_attention_heads

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        check_number("window", options.get("window", 128), 1, 2**40, whole=True)

    def relate(self, query: Tensor, key: Tensor, dtype: torch.dtype) -> Relation:
        bias = WindowBias(self.window, self.heads, query, key)
        return replace(super().relate(query, key, dtype), bias=bias)
