"""Positions that count what a query takes for worth counting."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.positions import Positions
from bipe.registry import check_number

from .base import Content, ContentBias, InterEncoding, Relation, rows_agree


class CopeBias(ContentBias):
    """`q_i . e[p_ij]`, where `p_ij` sums the gates of the keys from j to i that are counted."""

    def __init__(self, table: Tensor, counted: Tensor) -> None:
        self.table = table
        self.counted = counted[:1] if rows_agree(counted) else counted

    def between(self, content: Content, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        query, counted = content.query.float() * content.scaling, self.counted[:, columns]
        costly = len(counted) > 1 or counted.device.type != "cpu" or torch.compiler.is_compiling()
        if costly or 2 * int(counted.sum()) > counted.numel():
            seen = content.seen & counted[:, None, None]
            return self._at(self._positions(query, content.key, seen), query)
        # What is not counted has the position of the next key that is; behind the last it is 0.
        where = counted[0].nonzero()[:, 0]
        positions = self._positions(query, content.key[:, :, where], content.seen[..., where])
        of_column = counted[0].long().cumsum(0) - counted[0].long()
        return self._at(nn.functional.pad(positions, (0, 1)), query).index_select(3, of_column)

    def _positions(self, query: Tensor, key: Tensor, seen: Tensor) -> Tensor:
        """Of keys that are all counted where they are seen, `(B, h, t, s)`."""
        gates = torch.sigmoid(query @ key.float().mT) * seen
        return gates.flip(-1).cumsum(dim=-1).flip(-1).clamp(max=len(self.table) - 1)

    def _at(self, position: Tensor, query: Tensor) -> Tensor:
        """The logits of these positions, between two rows of the table."""
        table = self.table.float()
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
