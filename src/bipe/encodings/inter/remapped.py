"""RoPE with far distances mapped into the trained range: what SelfExtend and ReRoPE share."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LlamaConfig

from bipe.positions import Positions
from bipe.registry import check_number

from .base import Content, ContentBias, Relation, Rotation
from .rope import Rope, refuse_scaling, rotate


class NearBias(ContentBias):
    """What the logits of near keys miss where all queries and keys were rotated for far ones.

    Args:
        window: distances below it are near.
        query_index: `(B, T)` int64.
        key_index: `(B, S)` int64.
        query_turn: rotation `(B, T, K)` float32 from a query's place for far keys to its own.
        key_turn: likewise of keys, `(B, S, K)`.
    """

    def __init__(
        self, window: int, query_index: Tensor, key_index: Tensor, query_turn: Rotation, key_turn: Rotation
    ) -> None:
        self.window, self.query_index, self.key_index = window, query_index, key_index
        self.query_turn, self.key_turn = query_turn, key_turn
        self._far: dict[tuple[int, ...], int] = {}

    def between(self, content: Content, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        query = content.query.float() * content.scaling
        far = self._leading_far(rows, columns)
        key, columns = content.key[:, :, far:].float(), slice(columns.start + far, columns.stop)
        near_query = rotate(query, _part(self.query_turn, rows))
        near_key = rotate(key, _part(self.key_turn, columns))
        distance = self.query_index[:, rows, None] - self.key_index[:, None, columns]
        missing = near_query @ near_key.mT - query @ key.mT
        return pad(missing.masked_fill(distance[:, None] >= self.window, 0.0), (far, 0))

    def _leading_far(self, rows: slice, columns: slice) -> int:
        """How many of the first columns are far for all rows; none in a graph, which cannot depend on it."""
        if rows.stop - rows.start == 1 or torch.compiler.is_compiling():
            return 0
        block = (rows.start, rows.stop, columns.start, columns.stop)
        if block not in self._far:  # the same in every layer, and a GPU would be waited for
            last = self.query_index[:, rows].amin(dim=1, keepdim=True) - self.window
            self._far[block] = int((self.key_index[:, columns] <= last).all(dim=0).long().cumprod(0).sum())
        return self._far[block]


def _part(rotation: Rotation, columns: slice) -> Rotation:
    cos, sin = rotation
    return cos[:, columns], sin[:, columns]


class RemappedRope(Rope):
    """RoPE for keys nearer than a window, and for others RoPE of an index of their own.

    It has no parameters, so that any model with RoPE can be used with it, without training.

    Attributes:
        window: distances below it are those of RoPE.
    """

    reads_content = True
    shift_invariant = False

    def __init__(
        self,
        config: LlamaConfig,
        window: int,
        index: str = "segment",
    ) -> None:
        super().__init__(config, index=index)
        self.window = window

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        refuse_scaling("a remapped index", config)
        for name in ("window", "group"):
            check_number(name, options.get(name, 1), 1, 2**40, whole=True)

    @abstractmethod
    def far(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The index by which queries are rotated for far keys, and that of keys."""

    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        of_query, of_key = getattr(query, self.index), getattr(key, self.index)
        far_query, new_key = self.far(of_query)
        bias = NearBias(
            self.window,
            of_query,
            of_key,
            self.tables(of_query - far_query, torch.float32),
            self.tables(of_key - self.far(of_key)[1], torch.float32),
        )
        return Relation(self.tables(far_query, dtype), self.tables(new_key, dtype), bias)
