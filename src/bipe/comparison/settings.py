"""What decides a comparison."""

from typing import Annotated

from pydantic import Field, model_validator

from bipe.evaluation.length_curve import PROTOCOLS
from bipe.models import SCHEMES
from bipe.registry import choose
from bipe.segmentation import check_rule
from bipe.training.recipe import DataSettings, ModelSettings, Settings, Sources, TrainingSettings


class EvaluationSettings(Settings):
    """How the trained models are measured."""

    lengths: list[Annotated[int, Field(ge=2)]] | None = None
    """Context lengths in tokens; null for 1, 2, 4, 8 and 16 times the training length."""
    protocols: list[str] = Field(default=["same_targets", "blocks"], min_length=1)
    """How the test text is cut."""
    max_windows: int | None = Field(default=256, ge=1)
    """Windows at most, spread evenly; null for all. Protocol `blocks` takes the same text at every length,
    and so fewer windows at the longer ones."""
    validation_blocks: int = Field(default=64, ge=1)
    """Blocks of validation text at most, spread evenly."""


class ComparisonData(DataSettings):
    """The text; without any named, the sources of Python's standard library."""

    train: Sources = ["stdlib"]
    """Where the training text comes from: files, folders, globs, `hf:NAME[:config][:split]` or `stdlib`."""


class ComparisonTraining(TrainingSettings):
    """The optimisation of every run; its learning rate is replaced by each scheme's best."""

    steps: int = Field(default=500, ge=1, le=10**9)
    """Optimizer steps."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises from zero; a fifth of the run at most."""
    evaluate_every: int | None = Field(default=50, ge=1)
    """Steps between validations; null for the end only."""

    @model_validator(mode="after")
    def _check_schedule(self) -> "ComparisonTraining":
        # The warm-up may be longer than a run here: each run shortens it to a fifth.
        if self.schedule_steps is not None and self.schedule_steps < self.steps:
            raise ValueError(
                f"schedule_steps must be at least steps, {self.steps}; got {self.schedule_steps}."
            )
        return self


class Comparison(Settings):
    """All that decides a comparison; its runs differ in scheme, seed and learning rate alone."""

    schemes: list[str] = Field(default=["rope", "alibi", "bipe-rope", "bipe-alibi"], min_length=1)
    """Keys of `bipe.SCHEMES`."""
    seeds: int = Field(default=1, ge=1, le=1000)
    """Runs of each scheme, with the seeds 0, 1, ..."""
    rule: str = "paper"
    """The rule by which tokens end a segment."""
    data: ComparisonData = Field(default_factory=ComparisonData)
    """The training text; its validation text picks the learning rate."""
    test: list[str] | None = None
    """Where the test text comes from; null holds out whole documents of the training text, or the end of a
    single one."""
    model: ModelSettings = Field(default_factory=ModelSettings)
    """The size of the models."""
    training: ComparisonTraining = Field(default_factory=ComparisonTraining)
    """The optimisation of every run."""
    learning_rates: list[Annotated[float, Field(gt=0, le=10)]] = Field(default=[2e-3, 6e-3], min_length=1)
    """Rates that are tried with each scheme; with one there is nothing to try."""
    sweep_steps: int = Field(default=60, ge=1)
    """Steps of each trial, the first of the run that it stands for, on seed 0."""
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)

    @property
    def lengths(self) -> list[int]:
        """The context lengths to test at, ascending."""
        chosen = self.evaluation.lengths or [factor * self.data.train_length for factor in (1, 2, 4, 8, 16)]
        return sorted(set(chosen))

    def check(self) -> None:
        """Check the names.

        Raises:
            ValueError: a scheme, rule or protocol is unknown, the message lists the choices, or something is
                named twice.
        """
        for scheme in self.schemes:
            choose("scheme", SCHEMES, scheme)
        check_rule(self.rule)
        for protocol in self.evaluation.protocols:
            choose("protocol", PROTOCOLS, protocol)
        if len(set(self.evaluation.protocols)) < len(self.evaluation.protocols):
            raise ValueError(f"Each protocol is measured once; got {', '.join(self.evaluation.protocols)}.")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError(f"Each learning rate is tried once; got {self.learning_rates}.")
        if len(set(self.schemes)) < len(self.schemes):
            raise ValueError(f"Each scheme is compared once; got {', '.join(self.schemes)}.")
