"""Learned kernels that fall with distance: a logarithm or a power."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.registry import choose

from .base import CurveBias, DecayingBias, IndexEncoding, Relation


class LogKernel(CurveBias, DecayingBias):
    """`-weight * log(1 + shape * distance)`.

    Args:
        raw: `(2, H)`, logarithms of weight and shape.
        query_index, key_index: `(B, T)` and `(B, S)` int64.
    """

    def __init__(self, raw: Tensor, query_index: Tensor, key_index: Tensor) -> None:
        super().__init__(query_index, key_index)
        self.raw = raw

    def numbers(self) -> tuple[Tensor, ...]:
        return tuple(self.raw.float().exp())

    def at(self, distance: Tensor, *numbers: Tensor) -> Tensor:
        weight, shape = numbers
        return -weight * torch.log1p(shape * distance)

    def fallen_at(self, nats: float | Tensor, weight: Tensor, shape: Tensor) -> Tensor:
        """The distance, no whole number, at which the bias has fallen by so much."""
        return torch.expm1(nats / weight) / shape

    def reach(self, nats: float | Tensor) -> Tensor:
        weight, shape = (number.detach().double() for number in self.numbers())
        return torch.floor(self.fallen_at(nats, weight, shape) * (1 + 1e-5)).float()  # safe from rounding


class PowerKernel(LogKernel):
    """`-weight * distance ^ shape`, with a shape between 0 and 2, whose half is given by its log-odds."""

    def numbers(self) -> tuple[Tensor, ...]:
        return self.raw[0].float().exp(), 2 * self.raw[1].float().sigmoid()

    def at(self, distance: Tensor, *numbers: Tensor) -> Tensor:
        weight, shape = numbers
        # The slope of 0^shape in its shape is the logarithm of 0; a clamped 0 has none.
        return -weight * (distance.clamp(min=1) ** shape).where(distance > 0, 0.0)

    def fallen_at(self, nats: float | Tensor, weight: Tensor, shape: Tensor) -> Tensor:
        return (nats / weight) ** (1 / shape)


KERNELS = {"log": LogKernel, "power": PowerKernel}


class Kerple(IndexEncoding):
    """KERPLE (Chi et al. 2022, arXiv:2205.09921, section 4.1): a kernel with two numbers a head.

    `log`: `-r1 log(1 + r2 d)` with positive r1, r2. `power`: `-r1 d^r2` with positive r1 and r2 from 0 to 2.
    One set is shared by all layers. It starts spread over the heads: r1 from 0 to 2 and r2 from 0 to 1.

    Options:
        kernel: `log` or `power`.
        index: what the distance counts.
    """

    decays = True

    def __init__(self, config: LlamaConfig, *, kernel: str = "log", index: str = "segment") -> None:
        super().__init__(config, index=index)
        self.kernel = KERNELS[kernel]
        self.raw = nn.Parameter(torch.zeros(2, config.num_attention_heads))

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        choose("kernel", KERNELS, options.get("kernel", "log"))

    def relate(self, query: Tensor, key: Tensor, dtype: torch.dtype) -> Relation:
        return Relation(bias=self.kernel(self.raw, query, key))

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        spread = (torch.arange(self.raw.shape[1], device=self.raw.device) + 0.5) / self.raw.shape[1]
        shape = (spread / 2).logit() if self.kernel is PowerKernel else spread.log()
        self.raw.copy_(torch.stack(((2 * spread).log(), shape.flip(0))))
