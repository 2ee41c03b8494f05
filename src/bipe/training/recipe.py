"""Recipes: everything that decides a training run, checked before anything starts."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from bipe.data.arithmetic import longest

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
