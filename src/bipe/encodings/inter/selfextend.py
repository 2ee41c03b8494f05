"""RoPE whose far distances are counted in groups."""

from torch import Tensor
from transformers import LlamaConfig

from .remapped import RemappedRope


class SelfExtend(RemappedRope):
    """SelfExtend (Jin et al. 2024, arXiv:2401.01325): beyond `window`, indices are divided by `group`.

    A far query `i` and key `j` have the distance `floor(i / group) + window - floor(window / group) -
    floor(j / group)`, which goes on where near distances end.

    Options:
        window: distances below it are those of RoPE, in the unit of the index.
        group: so many neighbouring far places are one.
        theta, index: as of `Rope`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        window: int = 64,
        group: int = 8,
        index: str = "segment",
    ) -> None:
        super().__init__(config, window, index)
        self.group = group

    def far(self, index: Tensor) -> tuple[Tensor, Tensor]:
        grouped = index // self.group
        return grouped + (self.window - self.window // self.group), grouped
