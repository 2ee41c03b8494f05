"""A penalty for the distance on each of several levels of segments."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.positions import Positions
from bipe.registry import check_number

from .alibi import Alibi, AlibiBias, Slopes, alibi_slopes
from .base import DecayingBias, Relation, Scorer
from .rope_levels import indices_of, levels_in


class LevelBias(DecayingBias):
    """The sum of a bias for each level; its distance is the innermost level's, which comes first."""

    def __init__(self, levels: list[AlibiBias]) -> None:
        self.levels, self.query_index, self.key_index = levels, levels[0].query_index, levels[0].key_index

    def block(self, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        first, *others = (level.block(rows, columns, heads) for level in self.levels)
        return sum(others, first)

    def scorer(self, targets: int, sources: int) -> Scorer:
        scorers = [level.scorer(targets, sources) for level in self.levels]

        def score(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            for add in scorers:
                score = add(score, batch, head, query, key)
            return score

        return score

    def reach(self, nats: float | Tensor) -> Tensor:
        return self.levels[0].reach(nats)


class AlibiLevels(Alibi):
    """ALiBi on every level of segments, each with slopes of its own (this project's; see `RopeLevels`).

    Options:
        scale: factor of the slopes of the innermost segments.
        outer_scales: factors of those of the others, the innermost first; by default `scale`, so that the
            border of a paragraph counts as one of a sentence more.
        learned, factor: as of `Alibi`.
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
        logs = [nn.Parameter(torch.tensor(starts).log()) for starts in self.outer_starts]
        self.outer_logs = nn.ParameterList(logs) if learned else None

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        scales, outer = options.get("outer_scales"), levels_in(config) - 1
        if scales is None:
            return
        if not isinstance(scales, list) or len(scales) != outer:
            raise ValueError(f"outer_scales is a list, one for each of {outer} outer levels; got {scales!r}.")
        for scale in scales:
            check_number("Each of outer_scales", scale, 0, above=True)

    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        device = query.segment.device
        logs = [None] * len(self.outer_starts) if self.outer_logs is None else list(self.outer_logs)
        outer = [
            Slopes(
                torch.tensor([start / self.factor for start in starts], dtype=torch.float32, device=device),
                log,
                self.factor,
            )
            for starts, log in zip(self.outer_starts, logs, strict=True)
        ]
        indices = (indices_of(positions, 1 + len(outer)) for positions in (query, key))
        levels = zip([self.slopes(device), *outer], *indices, strict=True)
        return Relation(bias=LevelBias([AlibiBias(*level) for level in levels]))

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        super().reset_parameters(std)
        for log, starts in zip(self.outer_logs or (), self.outer_starts, strict=False):
            log.copy_(torch.tensor(starts).log())
