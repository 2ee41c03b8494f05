"""A penalty for the distance on each of several levels of segments."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.positions import Positions

from .alibi import Alibi, Slopes, alibi_slopes
from .base import DecayingBias, Relation, rows_agree
from .rope_levels import indices_of, levels_in


class LevelBias(DecayingBias):
    """The sum over levels of `-slope * (query index - key index)`; its distance is the innermost level's."""

    def __init__(self, slopes: list[Slopes], query: list[Tensor], key: list[Tensor]) -> None:
        rows = 1 if rows_agree(torch.cat(key, dim=-1)) else None
        self.query, self.key = [index[:rows] for index in query], [index[:rows] for index in key]
        self.query_index, self.key_index, self.slopes = self.query[0], self.key[0], slopes
        self.differentiable = tuple(part for level in slopes for part in level.differentiable)

    def block(self, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        levels = [
            slopes.values()[heads, None, None]
            * (key[:, None, None, columns] - query[:, None, rows, None]).float()
            for slopes, query, key in zip(self.slopes, self.query, self.key, strict=True)
        ]
        return torch.stack(levels).sum(dim=0)

    def score(self, score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = batch.clamp(max=len(self.key_index) - 1)
        query = query.clamp(max=self.query_index.shape[1] - 1)
        key = key.clamp(max=self.key_index.shape[1] - 1)
        for slopes, of_query, of_key in zip(self.slopes, self.query, self.key, strict=True):
            distance = of_query[row, query] - of_key[row, key]
            score = score - slopes.values()[head] * distance.float()
        return score

    def reach(self, nats: float | Tensor) -> Tensor:
        slopes = self.slopes[0].values().detach()
        return torch.where(slopes > 0, torch.floor(nats / slopes), torch.inf)


class AlibiLevels(Alibi):
    """ALiBi on every level of segments, each with slopes of its own (this project's; see `RopeLevels`).

    Options:
        scale: factor of the slopes of the innermost segments.
        outer_scales: factors of those of the others, the innermost first; by default `scale`, so that the
            border of a paragraph counts as one of a sentence more.
        learned, factor: as of `Alibi`, for all levels.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        scale: float = 96.0,
        outer_scales: list[float] | None = None,
        learned: bool = False,
        factor: float = 1.0,
    ) -> None:
        super().__init__(config, scale=scale, learned=learned, factor=factor)
        outer = levels_in(config) - 1
        slopes = alibi_slopes(config.num_attention_heads)
        scales = outer_scales or [scale] * outer
        self.outer_starts = [[scale * slope for slope in slopes] for scale in scales]
        # One parameter a level: gradients of parts of a parameter could not be found a block at a time.
        logs = [nn.Parameter(torch.tensor(starts).log()) for starts in self.outer_starts]
        self.outer_logs = nn.ParameterList(logs) if learned else None

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        scales, outer = options.get("outer_scales"), levels_in(config) - 1
        if scales is not None and (
            not isinstance(scales, list)
            or len(scales) != outer
            or not all(isinstance(scale, int | float) and 0 < scale < math.inf for scale in scales)
        ):
            raise ValueError(
                f"outer_scales is a list of finite numbers above 0, one for each of {outer} outer levels; "
                f"got {scales!r}."
            )

    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        device = query.segment.device
        logs = [None] * len(self.outer_starts) if self.outer_logs is None else list(self.outer_logs)
        outer = [
            Slopes(torch.tensor([start / self.factor for start in starts], device=device), log, self.factor)
            for starts, log in zip(self.outer_starts, logs, strict=True)
        ]
        bias = LevelBias([self.slopes(device), *outer], indices_of(query), indices_of(key))
        return Relation(bias=bias)

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        super().reset_parameters(std)
        for log, starts in zip(self.outer_logs or (), self.outer_starts, strict=False):
            log.copy_(torch.tensor(starts).log())
