"""What every evaluation returns."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """One measured number, a row of `scores.jsonl`.

    Attributes:
        scheme: name of the positional encoding scheme.
        seed: seed of the training run.
        task: name of the task, such as `"length-curve"`.
        protocol: how the text was cut, such as `"same_targets"`.
        length: context length in tokens.
        metric: what `value` is, such as `"perplexity"`.
        value: the measurement.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        tokens: number of tokens scored; of SCROLLS words answered.
        windows: number of windows scored.
        tokens_per_segment: mean tokens in a segment, in the model's own segmentation of the windows; None for
            a model without segments.
        offsets_beyond_trained: share of the windows' tokens whose offset is longer than any in training, or
            None.
        steps: optimiser steps of the training run, 0 if unknown.
        parameters: number of trained parameters.
    """

    scheme: str
    seed: int
    task: str
    protocol: str
    length: int
    metric: str
    value: float
    low: float
    high: float
    tokens: int
    windows: int
    tokens_per_segment: float | None
    offsets_beyond_trained: float | None
    steps: int
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """The row as a dictionary of plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Run:
    """Which training run a model comes from.

    Attributes:
        scheme: name of the scheme.
        seed: its seed.
        steps: optimiser steps taken, 0 if unknown.
    """

    scheme: str
    seed: int = 0
    steps: int = 0
