"""What decides a comparison."""

import re
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from bipe.evaluation.tasks import TASKS
from bipe.evaluation.windows import PROTOCOLS
from bipe.models import SCHEMES
from bipe.registry import choose
from bipe.segmentation import check_rule
from bipe.training.recipe import (
    DataSettings,
    ModelSettings,
    Settings,
    TrainingSettings,
    rule_of_data,
)

MARKER = "comparison.json"
"""The file that makes a folder a comparison's, with its settings."""


class Arm(Settings):
    """A scheme with settings of its own."""

    scheme: str
    """A key of `bipe.SCHEMES`."""
    rule: str | None = None
    """The rule by which tokens end a segment; null for the comparison's."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Settings of the model that differ from the comparison's, such as {hidden_size: 64}."""


class EvaluationSettings(Settings):
    """How the trained models are measured."""

    tasks: list[str] | None = None
    """What is measured, as `bipe evaluate` names it; null for length-curve on text and for arithmetic."""
    lengths: list[Annotated[int, Field(ge=1)]] | None = None
    """Context lengths in tokens, null for 1, 2, 4, 8 and 16 times the training length; of arithmetic, numbers
    of operations, null for the trained one."""
    protocols: list[str] = Field(default=["same_targets", "blocks"], min_length=1)
    """How the test text is cut."""
    max_windows: int | None = Field(default=256, ge=1)
    """Windows at most, spread evenly; null for all. Protocol `blocks` takes the same text at every length,
    and so fewer windows at the longer ones."""
    problems: int | None = Field(default=None, ge=1)
    """Arithmetic problems, or questions for a key, at each length; null for the task's own number."""
    validation_blocks: int = Field(default=64, ge=1)
    """Blocks of validation text, or problems, at most, spread evenly."""


class ComparisonData(DataSettings):
    """The text; without any named, the sources of Python's standard library."""

    @model_validator(mode="before")
    @classmethod
    def _take_stdlib(cls, values: Any) -> Any:
        kinds = ("train", "arithmetic", "scrolls")
        if isinstance(values, dict) and all(values.get(kind) is None for kind in kinds):
            return {**values, "train": ["stdlib"]}
        return values


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

    schemes: list[str] = ["rope", "alibi", "bipe-rope", "bipe-alibi"]
    """Keys of `bipe.SCHEMES`."""
    arms: dict[str, Arm] = Field(default_factory=dict)
    """More to compare, by name: schemes with settings of their own."""
    seeds: int = Field(default=1, ge=1, le=1000)
    """Runs of each scheme, with the seeds 0, 1, ..."""
    rule: str = "paper"
    """The rule by which tokens end a segment; of arithmetic equals by default."""
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

    _rule_of_data = model_validator(mode="before")(rule_of_data)

    @property
    def names(self) -> list[str]:
        """Of all that is compared: the schemes, and the arms."""
        return [*self.schemes, *self.arms]

    def arm(self, name: str) -> Arm:
        """What goes by this name."""
        return self.arms[name] if name in self.arms else Arm(scheme=name)

    def model_of(self, name: str) -> ModelSettings:
        """The size of the model that goes by this name."""
        return ModelSettings.model_validate({**self.model.model_dump(), **self.arm(name).model})

    @property
    def tasks(self) -> list[str]:
        """What is measured."""
        return self.evaluation.tasks or ["length-curve" if self.data.arithmetic is None else "arithmetic"]

    @property
    def curve_protocols(self) -> list[str]:
        """The protocols of length curves; none where none are measured."""
        return self.evaluation.protocols if "length-curve" in self.tasks else []

    @property
    def train_length(self) -> int:
        """The trained length, in the unit of `lengths`."""
        arithmetic = self.data.arithmetic
        return self.data.train_length if arithmetic is None else arithmetic.operators

    @property
    def lengths(self) -> list[int]:
        """The lengths to test at, ascending: tokens, or of arithmetic operations."""
        factors = (1, 2, 4, 8, 16) if self.data.arithmetic is None else (1,)
        return sorted(set(self.evaluation.lengths or [factor * self.train_length for factor in factors]))

    def check(self) -> None:
        """Check the names.

        Raises:
            ValueError: a scheme, rule or protocol is unknown, the message lists the choices, something is
                named twice, or a setting has no effect here.
        """
        if not self.names:
            raise ValueError("There is nothing to compare: name schemes or arms.")
        for name in self.names:
            choose("scheme", SCHEMES, self.arm(name).scheme)
            check_rule(self.arm(name).rule or self.rule)
        for setting in ("segmenter", "intra", "inter"):
            if getattr(self.model, setting) is not None:
                raise ValueError(
                    f"model.{setting} would replace that of every scheme, whatever its name: give it to arms."
                )
        for name in self.arms:
            self._check_arm(name)
        self._check_tasks()
        if self.data.store is not None:
            raise ValueError("A comparison keeps its text itself: leave out data.store.")
        for protocol in self.evaluation.protocols:
            choose("protocol", PROTOCOLS, protocol)
        if len(set(self.evaluation.protocols)) < len(self.evaluation.protocols):
            raise ValueError(f"Each protocol is measured once; got {', '.join(self.evaluation.protocols)}.")
        if self.training.learning_rate != TrainingSettings.model_fields["learning_rate"].default:
            raise ValueError(
                "A comparison tries learning_rates with each scheme: give "
                f"learning_rates [{self.training.learning_rate:g}] in place of training.learning_rate."
            )
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError(f"Each learning rate is tried once; got {self.learning_rates}.")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"Each scheme is compared once; got {', '.join(self.names)}.")

    def _check_arm(self, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,99}", name):
            raise ValueError(
                "The name of an arm is that of folders too: at most 100 letters, digits and + . _ -; got "
                f"{name!r}."
            )
        try:
            self.model_of(name)
        except ValidationError as error:
            found = error.errors()[0]
            raise ValueError(f"arms.{name}.model.{found['loc'][0]}: {found['msg']}.") from None

    def _check_tasks(self) -> None:
        for task in self.tasks:
            choose("task", TASKS, task)
        if self.data.scrolls is not None:
            raise ValueError("A comparison trains on text or on arithmetic; SCROLLS is for bipe train.")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"Each task is measured once; got {', '.join(self.tasks)}.")
        if self.data.arithmetic is not None and self.test:
            raise ValueError("Arithmetic makes its own test problems: leave test out.")
        needed, others = "length-curve", {"passkey", "multikey"}
        if self.data.arithmetic is not None:
            needed, others = "arithmetic", set[str]()
        if needed not in self.tasks or not set(self.tasks) <= {needed, *others}:
            more = f", and perhaps {' and '.join(sorted(others))}" if others else ""
            raise ValueError(
                f"A comparison on such data measures {needed}{more}; got {', '.join(self.tasks)}."
            )
        if needed == "length-curve" and self.lengths[0] < 2:
            raise ValueError(f"Lengths are whole numbers of tokens, at least 2; got {self.lengths}.")
