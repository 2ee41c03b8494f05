"""Scores that are shares of right answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest
from torch import Tensor
from transformers import PreTrainedModel

from .base import Run, Score
from .segments import SegmentCount


@dataclass(frozen=True)
class Questions:
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
        counted = SegmentCount(self.model)
        for text in self.texts:
            counted.add(text[None])
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
            tokens_per_segment=counted.tokens_per_segment,
            offsets_beyond_trained=counted.offsets_beyond_trained,
            steps=self.run.steps,
            parameters=self.model.num_parameters(),
        )
