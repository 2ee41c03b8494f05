"""Recipes: everything that decides a training run, as a YAML file that is checked before anything starts."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bipe.data.arithmetic import longest
from bipe.plain import read_yaml

from .shipped import find_recipe, recipes_folder

Size = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Sources = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]


class Settings(BaseModel):
    """A group of settings: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ArithmeticSettings(Settings):
    """Arithmetic problems in place of text; see `bipe.data.arithmetic`."""

    operators: int = Field(default=6, ge=1, le=100)
    """Operations in a problem."""
    fewest_operators: Size | None = None
    """Where given, problems have from so many operations on, evenly."""
    problems: int = Field(default=1_000_000, ge=1, le=10**9)
    """Problems to train on, made when they are needed."""
    validation_problems: Size = 512
    """Problems to validate on."""

    @model_validator(mode="after")
    def _check_order(self) -> "ArithmeticSettings":
        if self.fewest_operators is not None and self.fewest_operators > self.operators:
            raise ValueError(
                f"fewest_operators must be at most operators, {self.operators}; got {self.fewest_operators}."
            )
        return self


class ScrollsSettings(Settings):
    """A task of SCROLLS in place of text; see `bipe.data.scrolls`."""

    task: str
    """Its name, such as qasper, to fetch it from the hub, or the path of its zip file or folder."""


class DataSettings(Settings):
    """The text, and how it becomes blocks of tokens."""

    train: Sources | None = None
    """Where the training text comes from: files, folders, globs, `hf:NAME[:config][:split]` or `stdlib`."""
    arithmetic: ArithmeticSettings | None = None
    """Arithmetic problems in place of text, such as {operators: 6}; they bring their own vocabulary, and a
    block is as long as the longest."""
    scrolls: ScrollsSettings | None = None
    """A task of SCROLLS in place of text, such as {task: qasper}; its validation split validates."""
    validation: Sources | None = None
    """Where the validation text comes from; null holds out the last twentieth of each training document."""
    max_documents: Size | None = None
    """The largest number of documents read from each source; null reads everything."""
    store: str | None = None
    """A folder to keep the training text in as tokens, from where blocks are read; for text longer than
    memory, which is read once as a stream. Needs tokenizer (or start) and validation."""
    tokenizer: str | None = None
    """A tokenizer's folder, or its name on the hub; null trains a byte-level BPE on the training text."""
    vocab_size: int = Field(default=2048, ge=257, le=2**20)
    """Tokens of a vocabulary trained here; a tokenizer that is loaded brings its own."""
    train_length: int = Field(default=128, ge=2, le=2**20)
    """Tokens in a training block."""

    @property
    def block_length(self) -> int:
        """Tokens in a training block, of text or of problems."""
        return self.train_length if self.arithmetic is None else longest(self.arithmetic.operators) + 1

    @model_validator(mode="after")
    def _check_kind(self) -> "DataSettings":
        kinds = [name for name in ("train", "arithmetic", "scrolls") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError("give one of train, the text, arithmetic or scrolls.")
        unused = {
            "arithmetic": ("validation", "max_documents", "store", "tokenizer", "vocab_size", "train_length"),
            "scrolls": ("validation", "max_documents", "store", "vocab_size"),
        }.get(kinds[0], ())
        for name in unused:
            if getattr(self, name) != DataSettings.model_fields[name].default:
                raise ValueError(f"{name} is a setting of text; leave it out beside {kinds[0]}.")
        if self.store is not None and self.validation is None:
            raise ValueError("a store keeps the training text alone: name validation text as well.")
        return self


class ModelSettings(Settings):
    """The size of the model; which encodings it has follows from the scheme."""

    hidden_size: Size = 128
    """Width of the model, a multiple of num_attention_heads."""
    num_hidden_layers: Size = 2
    """Number of decoder layers."""
    num_attention_heads: Size = 8
    """Number of attention heads."""
    num_key_value_heads: Size | None = None
    """Number of key and value heads, a divisor of num_attention_heads; null for one an attention head."""
    intermediate_size: Size = 344
    """Width of the feed-forward layers."""
    max_offset: Size | None = None
    """Rows of a learned table of offsets; null for as many as a training block has tokens."""
    tie_word_embeddings: bool = False
    """Whether the output layer uses the embedding's weights."""
    attention_dropout: Probability = 0.0
    """Share of attention weights dropped in training."""
    rms_norm_eps: float = Field(default=1e-5, gt=0, lt=1)
    """The small number that keeps RMSNorm from dividing by zero."""
    initializer_range: float = Field(default=0.02, gt=0, le=1)
    """Standard deviation of the initial weights."""
    segmenter: dict[str, Any] | None = None
    """What ends a segment, as in the model's config; null for the scheme's."""
    intra: dict[str, Any] | None = None
    """The encoding inside segments, as in the model's config; null for the scheme's."""
    inter: dict[str, Any] | None = None
    """The encoding between segments, as in the model's config; null for the scheme's."""


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) beside frozen weights, merged at the end."""

    rank: Size = 8
    """Rank of an adapter."""
    alpha: float = Field(default=16.0, gt=0)
    """An adapter's output is scaled by alpha / rank."""
    dropout: Probability = 0.0
    """Share of an adapter's inputs dropped in training."""
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Names of the layers that get an adapter; the encoding inside segments is trained in full."""


class TrainingSettings(Settings):
    """The optimisation, and how often it reports and saves.

    >>> TrainingSettings(steps=100, learning_rate=3e-3).batch_size
    16
    """

    steps: int = Field(ge=1, le=10**9)
    """Optimizer steps."""
    batch_size: int = Field(default=16, ge=1, le=2**20)
    """Blocks in a forward and backward pass, on each device."""
    gradient_accumulation: int = Field(default=1, ge=1, le=2**20)
    """Passes whose gradients are added up in a step."""
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """The highest learning rate, reached after the warm-up."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls to zero after the warm-up."""
    schedule_steps: int | None = Field(default=None, ge=1, le=10**9)
    """Step at which the learning rate reaches zero, where the run stops before; null for `steps`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.01, ge=0, le=10)
    """AdamW's weight decay, of the weights of linear layers and of embeddings."""
    adam_betas: tuple[Probability, Probability] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    adam_epsilon: float = Field(default=1e-8, gt=0, lt=1)
    """AdamW's small number."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient's norm is clipped here."""
    bf16: bool = False
    """Whether matrices multiply in bfloat16 (autocast; weights and optimizer stay float32)."""
    tf32: bool = False
    """Whether a GPU may multiply float32 matrices in TensorFloat-32, while training and after it."""
    attention: Literal["eager", "flex", "sdpa", "segment_local"] | None = None
    """The implementation of attention to train with; null for the model's own choice."""
    deterministic: bool = False
    """Whether torch is held to algorithms that give the same bits each time, also on a GPU, where some are
    slower; on a CPU they do without this."""
    compile: bool = False
    """Whether torch.compile makes kernels of the model first, which takes a minute and pays on a GPU."""
    gradient_checkpointing: bool = False
    """Whether layers run again in the backward pass, to save memory."""
    log_every: Size | None = None
    """Steps between rows of the history; null for a hundredth of the run, at most 100."""
    evaluate_every: Size | None = None
    """Steps between validations; null for the end only, where there always is one."""
    checkpoint_every: Size | None = 500
    """Steps between checkpoints; null for none but the one that Ctrl-C leaves."""
    keep_checkpoints: Size = 2
    """Number of checkpoints kept while the run lasts; a finished run keeps its weights only."""
    lora: LoraSettings | None = None
    """Train low-rank adapters, such as {rank: 8}, and not the weights; needs `start` and the package peft."""
    gradual_steps: Size | None = None
    """Steps over which the rotation moves from the token's index to the segment's, for retrofitting."""
    loader_workers: int = Field(default=0, ge=0, le=256)
    """Processes that make batches ahead of the training; 0 makes them where it runs."""
    tensorboard: bool = False
    """Whether to write events for TensorBoard beside the weights."""

    @model_validator(mode="after")
    def _check_schedule(self) -> "TrainingSettings":
        end = self.schedule_steps or self.steps
        if end < self.steps:
            raise ValueError(f"schedule_steps must be at least steps, {self.steps}; got {end}.")
        if self.warmup_steps >= end:
            raise ValueError(
                f"warmup_steps must be below the {end} steps of the schedule; got {self.warmup_steps}."
            )
        if self.gradual_steps is not None and self.gradual_steps >= self.steps:
            raise ValueError(
                f"gradual_steps must be below steps, {self.steps}, so that the whole way is trained; got "
                f"{self.gradual_steps}."
            )
        return self


def rule_of_data(values: Any) -> Any:
    """Settings in which arithmetic has its own rule, where neither a rule nor a model is given."""
    data = values.get("data") if isinstance(values, dict) else None
    given = data.get("arithmetic") if isinstance(data, dict) else getattr(data, "arithmetic", None)
    if given is None or "rule" in values or values.get("start") is not None:
        return values
    return {**values, "rule": "equals"}


class Recipe(Settings):
    """All that decides a training run.

    >>> recipe = Recipe(scheme="bipe-rope", data={"train": "stdlib"}, training={"steps": 10})
    >>> recipe.data.train, recipe.model.num_attention_heads
    (['stdlib'], 8)
    """

    scheme: str | None = None
    """The positional scheme, a key of `bipe.SCHEMES`; null for that of `start`."""
    start: str | None = None
    """Folder of a model to go on from, as `bipe convert` writes it, with its scheme, sizes and tokenizer."""
    rule: str = "paper"
    """The rule by which tokens end a segment, such as paper, sentence, line or sentence/paragraph; of
    arithmetic equals, which is its default."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides initial weights, data order and dropout."""
    data: DataSettings
    model: ModelSettings = Field(default_factory=ModelSettings)
    training: TrainingSettings

    _rule_of_data = model_validator(mode="before")(rule_of_data)

    @model_validator(mode="after")
    def _check_start(self) -> "Recipe":
        if self.start is None and self.scheme is None:
            raise ValueError("give a scheme, or start from a model.")
        if self.start is None and self.training.lora is not None:
            raise ValueError("lora adapts a trained model: give its folder as start.")
        for what, given in (
            ("model settings are those", self.model != ModelSettings()),
            ("tokenizer is that", self.data.tokenizer is not None),
            ("rule is that", self.rule != "paper"),
        ):
            if self.start is not None and given:
                raise ValueError(f"the {what} of start; leave them out.")
        return self


S = TypeVar("S", bound=Settings)


def read_settings(
    kind: type[S],
    path: str | Path | None,
    overrides: Mapping[str, str] | None = None,
    values: Mapping[str, Any] | None = None,
) -> S:
    """Read settings from a YAML file and set single values of them.

    Args:
        kind: what is read, such as `Recipe`.
        path: the YAML file, or the name of one that comes with the package, such as `recipes/tiny.yaml`; None
            for the defaults.
        overrides: values by name, as typed on a command line: `training.steps` or, where only one group has
            such a setting, `steps`. `null` stands for no value; lists and dictionaries are written `[a, b]`
            and `{type: rope}`.
        values: values by dotted name, of their own types; None and empty lists are not set, and overrides
            come before them.

    Raises:
        ValueError: the file is no YAML mapping, a name is unknown, stands for several settings or is given
            twice, or a value is of a wrong type or out of range; one line that names each such setting.
    """
    path = None if path is None else find_recipe(Path(path))
    found = {} if path is None else _read_mapping(kind, path)
    typed = {name: value for name, value in (values or {}).items() if value is not None and value != []}
    chosen: dict[str, Any] = {}
    for name, text in (overrides or {}).items():
        setting = _setting(kind, name)
        if setting in chosen:
            raise ValueError(f"The setting {setting} is given twice.")
        chosen[setting] = _parse_value(text)
    typed |= chosen
    for name, value in typed.items():
        *groups, leaf = name.split(".")
        group = found
        for key in groups:
            if not isinstance(group.get(key) or {}, dict):
                raise ValueError(f"{key} must hold settings by name; got {group[key]!r}.")
            group[key] = dict(group.get(key) or {})
            group = group[key]
        group[leaf] = value
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        reasons = [_describe(kind, dict(one)) for one in error.errors(include_url=False)]
        given = [".".join(map(str, one["loc"])) in typed for one in error.errors()]
        place = "" if path is None or all(given) else f"{path}: "  # what was typed is not the file's fault
        raise ValueError(place + "; ".join(reasons)) from None


def load_recipe(path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe and set single values of it; see `read_settings`."""
    return read_settings(Recipe, path, overrides)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every setting with its value."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Read `--name value` and `--name=value` pairs.

    >>> parse_overrides(["--training.steps", "100", "--batch-size=4"])
    {'training.steps': '100', 'batch_size': '4'}

    Raises:
        ValueError: an argument is no `--name`, has no value, or names what another one does.
    """
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or len(name) == 2:
            raise ValueError(f"Settings are given as --name value; got {name!r}.")
        if not equals and (not rest or rest[0].startswith("--")):
            raise ValueError(f"The setting {name} has no value; write {name} VALUE.")
        setting = name[2:].replace("-", "_")
        if setting in overrides:
            raise ValueError(f"The setting {name} is given twice.")
        overrides[setting] = value if equals else rest.pop(0)
    return overrides


def _read_mapping(kind: type[Settings], path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise ValueError(
            f"The recipe {str(path)!r} cannot be read: {reason}. Those of the package: {recipes_folder()}."
        ) from None
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is no plain YAML: {error}.") from None
    if isinstance(values, dict) and "scheme" in values and "schemes" in kind.model_fields:
        raise ValueError(f"{path} is the recipe of a single model, for bipe train.")
    if isinstance(values, dict) and {"schemes", "arms"} & set(values) and "scheme" in kind.model_fields:
        raise ValueError(f"{path} is the recipe of a comparison, for bipe compare --recipe.")
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping with {_names(kind)}; got {type(values).__name__}.")
    return values


def _setting(kind: type[Settings], name: str) -> str:
    """The dotted name of a setting given by its dotted or its last name."""
    known = list(_dotted_names(kind))
    if name in known:
        return name
    matches = [dotted for dotted in known if dotted.rpartition(".")[2] == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"The setting {name!r} stands for several; write one of: {', '.join(matches)}.")
    near = get_close_matches(name, [*known, *(dotted.rpartition(".")[2] for dotted in known)], 1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown setting {name!r}.{meant} Choose one of: {', '.join(known)}.")


def _dotted_names(settings: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in settings.model_fields.items():
        inner = _settings_in(field.annotation)
        if inner is None or field.default is None:  # as a whole, where it may be left out
            yield prefix + name
        if inner is not None:
            yield from _dotted_names(inner, f"{prefix}{name}.")


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, if it holds one, or may; not groups by name."""
    if get_origin(annotation) is dict:
        return None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _parse_value(text: str) -> Any:
    """Numbers and words stay text, which pydantic turns into the setting's own type."""
    if text in ("null", "none", "None"):
        return None
    if text[:1] not in ("[", "{"):
        return text
    try:
        return read_yaml(text)
    except ValueError:
        raise ValueError(f"{text!r} is no list or dictionary in YAML.") from None


def _describe(kind: type[BaseModel], one: Mapping[str, Any]) -> str:
    keys = [str(key) for key in one["loc"]]
    name = ".".join(keys) or "the recipe"
    if one["type"] == "extra_forbidden":
        return f"unknown setting {name!r}, choose one of: {_names(_group(kind, keys[:-1]))}"
    if one["type"] == "missing":
        return f"the setting {name!r} is missing"
    message = one["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{name}: {message}" + ("" if one["type"] == "value_error" else f", got {one['input']!r}")


def _group(kind: type[BaseModel], keys: Sequence[str]) -> type[BaseModel]:
    group, rest = kind, list(keys)
    while rest:
        annotation = group.model_fields[rest.pop(0)].annotation
        if get_origin(annotation) is dict:  # of groups by name
            annotation = get_args(annotation)[1]
            rest = rest[1:]
        inner = _settings_in(annotation)
        assert inner is not None, "pydantic finds unknown names in groups only"
        group = inner
    return group


def _names(settings: type[BaseModel]) -> str:
    return ", ".join(settings.model_fields)
