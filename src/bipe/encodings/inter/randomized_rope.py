"""A rotation by indices that training stretches at random."""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from bipe.encodings.stretched import draw_stretched, stretch_indices
from bipe.registry import check_number

from .base import Relation
from .rope import Rope


class RandomizedRope(Rope):
    """RoPE on random indices in ascending order, after Ruoss et al. 2023 (arXiv:2305.16843).

    Training thereby meets the distances of texts `stretch` times as long as its own. The paper draws as many
    of the numbers up to a fixed largest one as a text has tokens, so that every index depends on the text's
    length. Here (ours) each place has a random gap to the next, the same in every text of one seed, so that a
    text shares its indices with its prefixes and keys can be cached. Training draws a seed for each row, and
    a mean gap from 1 to `stretch`; evaluation has one seed and the mean `evaluation_stretch`.

    Options:
        stretch: the largest mean gap in training.
        evaluation_stretch: the mean gap in evaluation; with 1 there is nothing random.
        seed: of evaluation.
        theta, scaling, index: as of `Rope`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        stretch: float = 16.0,
        evaluation_stretch: float = 1.0,
        seed: int = 0,
        index: str = "segment",
    ) -> None:
        super().__init__(config, index=index)
        self.stretch, self.evaluation_stretch, self.seed = stretch, evaluation_stretch, seed

    @property
    def cacheable(self) -> bool:
        """Not in training, where each forward draws indices of its own."""
        return super().cacheable and not self.training

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        check_number("stretch", options.get("stretch", 16.0), 1, 2**20)
        check_number("evaluation_stretch", options.get("evaluation_stretch", 1.0), 1, 2**20)
        check_number("seed", options.get("seed", 0), 0, 2**62, whole=True)

    def relate(self, query: Tensor, key: Tensor, dtype: torch.dtype) -> Relation:
        rotation = self.tables(self.stretched(query), dtype)
        return Relation(query_rotation=rotation, key_rotation=rotation)

    def stretched(self, index: Tensor) -> Tensor:
        """The indices to rotate by, `(B, T)` int64."""
        if self.training:
            return draw_stretched(index, torch.full((len(index),), self.stretch, device=index.device))
        if math.isclose(self.evaluation_stretch, 1):
            return index
        seed = torch.tensor([self.seed], device=index.device)
        return stretch_indices(index, seed, torch.tensor([self.evaluation_stretch], device=index.device))
