"""Positions that count what a query takes for worth counting."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.positions import Positions
from bipe.registry import check_number

from .base import Content, ContentBias, InterEncoding, Relation


class CopeBias(ContentBias):
    """`q_i . e[p_ij]`, where `p_ij` sums the gates of the keys from j to i that are counted."""

    def __init__(self, table: Tensor, counted: Tensor) -> None:
        self.table, self.counted, self.differentiable = table, counted, (table,)

    def between(self, content: Content, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        query, table = content.query.float() * content.scaling, self.table.float()
        gates = torch.sigmoid(query @ content.key.float().mT)
        gates = gates * (content.seen & self.counted[:, None, None, columns])
        position = gates.flip(-1).cumsum(dim=-1).flip(-1).clamp(max=len(table) - 1)
        scores = query @ table.T
        below = position.detach().floor()
        share, below = position - below, below.long()
        at_below, at_above = (
            scores.gather(-1, index) for index in (below, (below + 1).clamp(max=len(table) - 1))
        )
        return torch.lerp(at_below, at_above, share)


class Cope(InterEncoding):
    """CoPE (Golovneva et al. 2024, arXiv:2405.18719, section 4): positions that depend on content.

    The gate of key k for query i is `sigmoid(q_i . k_k / sqrt(K))`; `p_ij` adds up the gates from j to i, and
    the logit gets `q_i . e[p_ij] / sqrt(K)`, interpolated between whole positions. The table of `e` starts at
    zero and is shared by all heads and layers. On segments, the first token of each counts for it (ours); on
    one token a segment that is CoPE itself.

    Options:
        positions: rows of the table; what is counted further is not told apart.
        index: `segment` to count first tokens of segments, `token` to count all.
    """

    reads_content = True
    reads_inside = True

    def __init__(self, config: LlamaConfig, *, positions: int = 64, index: str = "segment") -> None:
        super().__init__(config, index=index)
        assert config.head_dim is not None, "filled in by transformers"
        self.table = nn.Parameter(torch.zeros(positions, config.head_dim))

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        check_number("CoPE's positions", options.get("positions", 64), 1, 2**20, whole=True)

    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        counted = torch.ones_like(key.offset) if self.index == "token" else key.offset == 0
        return Relation(bias=CopeBias(self.table, counted.bool()))

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        nn.init.zeros_(self.table)
