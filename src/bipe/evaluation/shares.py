"""Scores that are shares of right answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest
from torch import Tensor
from transformers import PreTrainedModel

from bipe.models import BipeForCausalLM

from .base import Run, Score


@dataclass(frozen=True)
class Asked:
    """Questions of one kind and length that a model was asked.

    Attributes:
        task: name of the task.
        protocol: how it was asked.
        length: in the task's unit.
        texts: ids of each question, with what was read beside it, `(n,)` int64.
        model: who was asked.
        run: where it comes from.
    """

    task: str
    protocol: str
    length: int
    texts: Sequence[Tensor]
    model: PreTrainedModel
    run: Run

    def score(self, metric: str, right: int) -> Score:
        """The share of right answers, with its Wilson interval.

        Args:
            metric: what the share is called.
            right: how many questions were answered right.
        """
        found = binomtest(right, len(self.texts))
        interval = found.proportion_ci(confidence_level=0.95, method="wilson")
        per_segment, beyond = self._segments()
        return Score(
            scheme=self.run.scheme,
            seed=self.run.seed,
            task=self.task,
            protocol=self.protocol,
            length=self.length,
            metric=metric,
            value=float(found.statistic),
            low=float(interval.low),
            high=float(interval.high),
            tokens=sum(map(len, self.texts)),
            windows=len(self.texts),
            tokens_per_segment=per_segment,
            offsets_beyond_trained=beyond,
            steps=self.run.steps,
            parameters=self.model.num_parameters(),
        )

    def _segments(self) -> tuple[float | None, float | None]:
        """Mean tokens in a segment, and the share of offsets longer than any trained."""
        if not isinstance(self.model, BipeForCausalLM):
            return None, None
        tokens = segments = beyond = 0
        limit = self.model.longest_offset
        for text in self.texts:
            offset = self.model.positions(text[None].to(self.model.device)).offset
            tokens += offset.numel()
            segments += int((offset == 0).sum())
            beyond += 0 if limit is None else int((offset > limit).sum())
        return tokens / segments, beyond / tokens
