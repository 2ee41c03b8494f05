"""A run folder as its report reads it; what a table or a chart looks at is checked when it is read."""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bipe.evaluation.length_curve import TASK as CURVE_TASK
from bipe.evaluation.length_curve import perplexity_by_place
from bipe.evaluation.losses import load_curves
from bipe.plain import read_object
from bipe.records import Record, read_records
from bipe.report.plots import FIRST_PLACE, LENGTH_UNITS

FolderName = Annotated[str, Field(pattern=r"^[^/\\\x00]{1,100}$")]
"""Of a scheme, after which a run's folder is called."""
Name = Annotated[str, Field(min_length=1, max_length=100)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**53)]
Loss = Annotated[float, Field(gt=0)]


SCORES = "scores.jsonl"
"""All that was measured; in the folder of a run, what was measured of it."""
DIFFERENCES = "differences.jsonl"
"""How runs differ on the same windows."""
LOSSES = "losses.safetensors"
"""In the folder of a run: what every window lost at every length."""


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Score(_Checked):
    scheme: FolderName
    seed: Count
    task: Name
    protocol: Name
    length: Size
    metric: Name
    value: float
    low: float
    high: float
    tokens: Count
    windows: Count
    tokens_per_segment: float | None
    offsets_beyond_trained: float | None
    parameters: Count

    @model_validator(mode="after")
    def _is_drawn(self) -> "_Score":
        if self.metric == "perplexity" and min(self.low, self.value, self.high) <= 0:
            raise ValueError(f"a perplexity of {self.value:g} ({self.low:g} to {self.high:g})")
        return self


class _Difference(_Checked):
    first: Name
    second: Name
    seed: Count
    protocol: Name
    length: Size
    base_length: Size
    windows: Count
    metric: Name
    value: float
    low: float
    high: float


class _Step(_Checked):
    __pydantic_extra__: dict[str, float]  # pyright: ignore[reportIncompatibleVariableOverride]
    step: Count
    validation_perplexity: Loss = 1.0


class _Tried(_Checked):
    scheme: str
    learning_rate: float
    validation_perplexity: Loss


class _Document(_Checked):
    name: str
    tokens: Count


class _Data(_Checked):
    train: str | list[str] | None = None
    test: str | list[str] | None = None
    train_tokens: Count = 0
    test_tokens: Count = 0
    train_documents: Count = 0
    test_documents: Count = 0
    longest_test_documents: list[_Document] = []
    arithmetic: dict[str, Count] | None = None


class _Tokenizer(_Checked):
    kind: str = ""
    vocab_size: Count = 0


class _Settings(_Checked):
    schemes: list[FolderName] = []
    seeds: list[Count] = []
    train_length: Size | None = None
    lengths: list[Size] = []
    tasks: list[Name] = []
    protocols: list[str] = []
    steps: Count = 0
    learning_rates: dict[str, float] = {}
    sweep: list[_Tried] = []
    data: _Data = _Data()
    tokenizer: _Tokenizer = _Tokenizer()
    model: dict[str, Any] = {}
    arms: dict[str, Any] = {}
    notes: list[str] = []


class _Environment(_Checked):
    pass


class _Lengths(_Checked):
    mean: float
    p50: float
    p99: float
    max: float
    segments: Size
    histogram: list[Count]


class _Segments(_Checked):
    rule: str = ""
    lengths: dict[Annotated[str, Field(pattern=r"^[1-9]\d{0,15}$")], _Lengths] = {}


@dataclass(frozen=True)
class Run:
    """What a run folder holds, as far as the run has come.

    Attributes:
        scores, differences: rows of the files of that name.
        settings, environment, segments: the JSON files of that name, empty where missing.
        histories: rows of `history.jsonl` by (scheme, seed).
        places: (tokens before, perplexity) of the longest `blocks`, by (scheme, seed) where they were kept.
    """

    scores: list[dict[str, Any]]
    differences: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    segments: dict[str, Any] = field(default_factory=dict)
    histories: dict[tuple[str, int], list[dict[str, Any]]] = field(default_factory=dict)
    places: dict[tuple[str, int], list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def schemes(self) -> list[str]:
        """The planned schemes, then any other that was measured."""
        return list(
            dict.fromkeys([*self.settings.get("schemes", []), *(row["scheme"] for row in self.scores)])
        )

    @property
    def seeds(self) -> list[int]:
        """The planned seeds and any other that was measured, rising."""
        return sorted({*self.settings.get("seeds", []), *(row["seed"] for row in self.scores)})

    @property
    def lengths(self) -> list[int]:
        """The planned lengths and any other that was measured, rising."""
        return sorted({*self.settings.get("lengths", []), *(row["length"] for row in self.scores)})

    @property
    def protocols(self) -> list[str]:
        """The protocols that have a perplexity, in the order measured."""
        return list(dict.fromkeys(row["protocol"] for row in self.scores if row["metric"] == "perplexity"))

    @property
    def shares(self) -> list[tuple[str, str]]:
        """(task, metric) of what was measured beside length curves, in the order measured."""
        return list(
            dict.fromkeys((row["task"], row["metric"]) for row in self.scores if row["task"] != CURVE_TASK)
        )

    @property
    def metric(self) -> str:
        """What models are judged by first, and what validation tells of them while they are trained."""
        return "perplexity" if self.protocols else self.shares[0][1]

    @property
    def unit(self) -> str:
        """What lengths count."""
        return "tokens of context" if self.protocols else LENGTH_UNITS.get(self.shares[0][0], "tokens")

    @property
    def train_length(self) -> int:
        """The trained length; the shortest tested one where the settings are missing."""
        return self.settings.get("train_length") or self.lengths[0]


def read_scores(path: Path) -> list[dict[str, Any]]:
    """The rows of a `scores.jsonl`, in their order; a missing file holds none.

    Raises:
        ValueError: the file is broken, or a row is no score; the message names it.
    """
    return _read_rows(path, _Score)


def read_run(folder: Path) -> Run:
    """Read what a run folder holds.

    Raises:
        ValueError: there is no score in `scores.jsonl`, or a file is broken.
    """
    scores = read_scores(folder / SCORES)
    if not any(row["metric"] == "perplexity" or row["task"] != CURVE_TASK for row in scores):
        raise ValueError(
            f"{folder} holds no perplexity or other score in {SCORES}. Give the --out folder of "
            "`bipe compare`."
        )
    run = Run(
        scores=scores,
        differences=_read_rows(folder / DIFFERENCES, _Difference),
        settings=_read_json(folder / "settings.json", _Settings),
        environment=_read_json(folder / "environment.json", _Environment),
        segments=_read_json(folder / "segments.json", _Segments),
    )
    for scheme in run.schemes:
        for seed in run.seeds:
            kept = folder / "runs" / f"{scheme}-{seed}"
            run.histories[scheme, seed] = _read_rows(kept / "history.jsonl", _Step)
            rows = (row for row in scores if (row["scheme"], row["seed"]) == (scheme, seed))
            measured = {row["length"] for row in rows if row["protocol"] == "blocks"}
            places = _places(kept / LOSSES, measured)
            if places and places[-1][0] >= FIRST_PLACE:
                run.places[scheme, seed] = places
    return run


def _places(path: Path, lengths: Set[int]) -> list[tuple[int, float]]:
    """By place in the longest blocks; none where the file is of other lengths than the scores."""
    blocks = load_curves(path).get("blocks", {}) if path.exists() else {}
    return perplexity_by_place(blocks[max(blocks)]) if blocks and blocks.keys() == lengths else []


def missing_runs(run: Run) -> list[str]:
    """Say which planned runs have no score, or not at every planned length of what was planned."""
    measured = {
        (row["scheme"], row["seed"], _kind(row), row["length"])
        for row in run.scores
        if row["metric"] == "perplexity" or row["task"] != CURVE_TASK
    }
    tasks, protocols = run.settings.get("tasks", [CURVE_TASK]), run.settings.get("protocols", run.protocols)
    planned = [
        (kind, length)
        for task in tasks
        for kind in (protocols if task == CURVE_TASK else [task])
        for length in run.settings.get("lengths", [])
    ]
    found: list[str] = []
    for scheme in run.settings.get("schemes", []):
        for seed in run.settings.get("seeds", []):
            absent = [key for key in planned if (scheme, seed, *key) not in measured]
            if absent and len(absent) == len(planned):
                found.append(f"{scheme}, seed {seed}: no {run.metric} yet")
            elif absent:
                found.append(
                    f"{scheme}, seed {seed}: no {run.metric} for "
                    + ", ".join(f"{p} at {n}" for p, n in absent)
                )
    return found


def _kind(row: Record) -> str:
    """What a score belongs to: the protocol of a length curve, or another task."""
    return row["protocol"] if row["task"] == CURVE_TASK else row["task"]


def _read_rows(path: Path, kind: type[_Checked]) -> list[dict[str, Any]]:
    return _checked(read_records(path), kind, path)


def _checked(rows: Iterable[dict[str, Any]], kind: type[_Checked], path: Path) -> list[dict[str, Any]]:
    """The rows, each with what this kind has to have; whole numbers where there may be others become floats.

    Raises:
        ValueError: one has not; the message names file, row and field.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(kind.model_validate(row).model_dump(exclude_unset=True))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the whole"
            which = f"{path}, record {number}" if path.suffix == ".jsonl" else str(path)
            raise ValueError(f"{which}: {place}: {first['msg']}. Repair or delete it.") from None
    return found


def _read_json(path: Path, kind: type[_Checked]) -> dict[str, Any]:
    if not path.exists():
        return {}
    return _checked([read_object(path)], kind, path)[0]
