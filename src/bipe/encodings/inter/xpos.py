"""A rotation whose channels fade with distance."""

import math
from dataclasses import replace
from typing import Any

import torch
from transformers import LlamaConfig

from bipe.positions import Positions
from bipe.registry import check_number

from .base import Damping, Relation
from .rope import Rope


class Xpos(Rope):
    """xPos (Sun et al. 2022, arXiv:2212.10554): RoPE, with channel pair `c` damped by `zeta_c` a distance.

    `zeta_c = ((2c / K + gamma) / (1 + gamma)) ^ (1 / scale_base)`, so that fast rotations fade first. The
    paper scales query `n` by `zeta^n` and key `m` by `zeta^-m`, which leaves the range of any number on a
    long text; here both are counted from the first query that attends, and keys are cached without.

    Options:
        gamma: the least that is left at a distance of `scale_base` is `gamma / (1 + gamma)`.
        scale_base: distance in the unit of the index.
        theta, scaling, index: as of `Rope`; damping counts the index as it is, whatever the scaling.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        gamma: float = 0.4,
        scale_base: float = 512.0,
        index: str = "segment",
    ) -> None:
        super().__init__(config, index=index)
        self.gamma, self.scale_base = gamma, scale_base

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        check_number("xPos's gamma", options.get("gamma", 0.4), 1e-6, 1e6)
        check_number("xPos's scale_base", options.get("scale_base", 512.0), 1e-6, 1e6)

    def rates(self) -> list[float]:
        """By how many nats each pair of channels fades with a distance of 1."""
        half = self.rotary.inv_freq.shape[0]
        shares = [(pair / half + self.gamma) / (1 + self.gamma) for pair in range(half)]
        return [-math.log(share) / self.scale_base for share in shares]

    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        rates, index = self.rates(), getattr(key, self.index)
        by_channel = torch.tensor(rates, dtype=torch.float32, device=index.device).repeat(2)
        return replace(super().forward(query, key, dtype), damping=Damping(by_channel, max(rates), index))
