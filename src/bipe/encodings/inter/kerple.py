"""Learned kernels that fall with distance: a logarithm or a power."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.registry import choose

from .base import DecayingBias, DistanceBias, InterEncoding, Relation


class LogKernel(DistanceBias, DecayingBias):
    """`-weight * log(1 + shape * distance)`.

    Args:
        raw: `(2, H)`, logarithms of weight and shape.
        query_index: `(B, T)` int64.
        key_index: `(B, S)` int64.
    """

    def __init__(self, raw: Tensor, query_index: Tensor, key_index: Tensor) -> None:
        super().__init__(query_index, key_index)
        self.raw, self.differentiable = raw, (raw,)

    def numbers(self) -> tuple[Tensor, Tensor]:
        """Weight and shape, `(H,)` float32."""
        weight, shape = self.raw.float().exp()
        return weight, shape

    def fall(self, distance: Tensor, weight: Tensor, shape: Tensor) -> Tensor:
        """How far the bias has fallen at a distance, float32."""
        return weight * torch.log1p(shape * distance)

    def distance_of(self, nats: float | Tensor, weight: Tensor, shape: Tensor) -> Tensor:
        """The distance, no whole number, at which the bias has fallen by so much."""
        return torch.expm1(nats / weight) / shape

    def reach(self, nats: float | Tensor) -> Tensor:
        distance = self.distance_of(nats, *(part.detach().double() for part in self.numbers()))
        # A little further, where rounding might have made it nearer.
        return torch.floor(distance * (1 + 1e-5)).float()

    def block(self, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        weight, shape = (part[heads, None, None] for part in self.numbers())
        return -self.fall(self.distances(rows, columns)[:, None].float(), weight, shape)

    def score(self, score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        weight, shape = (part[head] for part in self.numbers())
        return score - self.fall(self.distance(batch, query, key).float(), weight, shape)


class PowerKernel(LogKernel):
    """`-weight * distance ^ shape`, with a shape between 0 and 2, whose half is given by its log-odds."""

    def numbers(self) -> tuple[Tensor, Tensor]:
        return self.raw[0].float().exp(), 2 * self.raw[1].float().sigmoid()

    def fall(self, distance: Tensor, weight: Tensor, shape: Tensor) -> Tensor:
        # The slope of 0^shape in its shape is the logarithm of 0; a clamped 0 has none.
        return weight * (distance.clamp(min=1) ** shape).where(distance > 0, 0.0)

    def distance_of(self, nats: float | Tensor, weight: Tensor, shape: Tensor) -> Tensor:
        return (nats / weight) ** (1 / shape)


KERNELS = {"log": LogKernel, "power": PowerKernel}


class Kerple(InterEncoding):
    """KERPLE (Chi et al. 2022, arXiv:2205.09921, section 4.1): a kernel with two numbers a head.

    `log`: `-r1 log(1 + r2 d)` with positive r1, r2. `power`: `-r1 d^r2` with positive r1 and r2 from 0 to 2.
    Logarithms of r1 and r2 (of the power's r2 / 2 the log-odds) are the parameters, shared by all layers.
    Initial values are spread evenly over the heads: r1 from 0 to 2 and r2 from 0 to 1, ends excluded.

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
        heads = self.raw.shape[1]
        spread = (torch.arange(heads, device=self.raw.device) + 0.5) / heads
        shape = (spread / 2).logit() if self.kernel is PowerKernel else spread.log()
        # The steepest weight meets the flattest shape, so that heads differ in what they see.
        self.raw.copy_(torch.stack(((2 * spread).log(), shape.flip(0))))
