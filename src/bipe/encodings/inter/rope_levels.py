"""One rotation for several levels of segments, each with channels of its own."""

from typing import Any

import torch
from transformers import LlamaConfig

from bipe.positions import MultilevelPositions, Positions
from bipe.registry import check_number
from bipe.segmentation import build_segmenter, levels_of

from .base import Relation
from .rope import Rope, refuse_scaling


class RopeLevels(Rope):
    """RoPE whose channel pairs are dealt out to the levels in turn, so that each has fast ones and slow ones.

    This is what section 6 of He et al. 2024 names as future work, built by this project. With a single level
    it is `Rope`.

    Options:
        shares: for each level, the innermost first, how many pairs it gets at its turn; one each by default.
        theta: as of `Rope`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        shares: list[int] | None = None,
    ) -> None:
        super().__init__(config)
        shares = shares or [1] * levels_in(config)
        turns = [level for level, share in enumerate(shares) for _ in range(share)]
        half = self.rotary.inv_freq.shape[0]
        self.levels = [turns[pair % len(turns)] for pair in range(half)] * 2

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        refuse_scaling("rope_levels", config)
        levels, pairs = levels_in(config), (config.head_dim or 0) // 2
        shares = options.get("shares") or [1] * levels
        if not isinstance(shares, list) or len(shares) != levels:
            raise ValueError(f"shares is a list, one for each of {levels} levels; got {shares!r}.")
        for share in shares:
            check_number("Each of shares", share, 1, 2**14, whole=True)
        if sum(shares) > pairs:
            raise ValueError(
                f"The shares {shares} of the levels need {sum(shares)} pairs of channels; a head has {pairs}."
            )

    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        indices = indices_of(query, max(self.levels) + 1)
        level = torch.tensor(self.levels, device=query.token.device)
        channels = torch.arange(len(self.levels), device=level.device)
        cos, sin = (
            torch.stack(tables, dim=-2)[..., level, channels]
            for tables in zip(*(self.tables(index, dtype) for index in indices), strict=True)
        )
        return Relation(query_rotation=(cos, sin), key_rotation=(cos, sin))


def levels_in(config: LlamaConfig) -> int:
    """How many levels of segments the model of a config tells apart."""
    segmenter = getattr(config, "segmenter", None)
    return 1 if segmenter is None else levels_of(build_segmenter(segmenter))


def indices_of(positions: Positions, levels: int) -> list[torch.Tensor]:
    """The index of each level, the innermost first, `(B, T)` int64 each.

    Raises:
        ValueError: the positions are not of so many levels.
    """
    outer = positions.outer.unbind(dim=-1) if isinstance(positions, MultilevelPositions) else ()
    if len(outer) != levels - 1:
        raise ValueError(
            f"This model counts {levels} levels of segments: give MultilevelPositions with {levels - 1} "
            f"outer indices; got {len(outer)}."
        )
    return [positions.segment, *outer]
