"""How a model cuts what it is tested on, which every score tells."""

from torch import Tensor
from transformers import PreTrainedModel

from bipe.models import BipeForCausalLM
from bipe.processes import gather


class SegmentCount:
    """Tokens, segments and offsets longer than any in training, over all texts that a model was shown.

    Args:
        model: who cuts; of a model that is none of ours nothing is counted.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model if isinstance(model, BipeForCausalLM) else None
        self.tokens = self.segments = self.beyond = 0

    def add(self, ids: Tensor) -> None:
        """Count texts, `(B, T)` int64."""
        if self.model is None:
            return
        offset, limit = self.model.positions(ids.to(self.model.device)).offset, self.model.longest_offset
        self.tokens += offset.numel()
        self.segments += int((offset == 0).sum())
        self.beyond += 0 if limit is None else int((offset > limit).sum())

    def add_up(self) -> None:
        """Make the counts those of all processes, each of which counted its share."""
        counts = zip(*gather([(self.tokens, self.segments, self.beyond)]), strict=True)
        self.tokens, self.segments, self.beyond = map(sum, counts)

    @property
    def tokens_per_segment(self) -> float | None:
        """The mean; None where nothing was counted."""
        return self.tokens / self.segments if self.segments else None

    @property
    def offsets_beyond_trained(self) -> float | None:
        """The share of tokens; None where nothing was counted."""
        return self.beyond / self.tokens if self.tokens else None
