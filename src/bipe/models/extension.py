"""Context extension: a trained model's relative index made to fit longer texts, counted in its own unit."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bipe.encodings.inter import INTER_ENCODINGS
from bipe.encodings.inter.alibi import Alibi
from bipe.encodings.inter.rope import Rope, counts_tokens
from bipe.registry import check_number, choose, split_spec

from .configuration import BipeConfig
from .convert import check_free, write_checkpoint
from .modeling import BipeForCausalLM
from .source import Source, read_source

NEARLY_ALL = 0.75
"""From this share of interpolated channel pairs on, a method is nearly position interpolation."""


@dataclass(frozen=True)
class Pair:
    """What an extension does to a pair of rotated channels.

    Attributes:
        pair: which one, from the fastest on.
        wavelength: distance, in the unit of the index, over which it turned once before.
        turns: how often it turned over the trained length.
        slowed: by what its frequency is divided: 1 where it is kept, the factor where it is interpolated.
    """

    pair: int
    wavelength: float
    turns: float
    slowed: float


@dataclass(frozen=True)
class Extension:
    """A model's config with a longer context, and what was done to it.

    Attributes:
        config: the extended one; its `extension` records the rest.
        method: a key of `METHODS`.
        factor: how many times longer texts may become.
        unit: what the index counts, `segments` or `tokens`.
        original: the trained length in that unit.
        pairs: what becomes of the rotation's frequencies; empty where they stay, and for ALiBi.
    """

    config: BipeConfig
    method: str
    factor: float
    unit: str
    original: int
    pairs: tuple[Pair, ...]

    def count(self) -> tuple[int, int, int]:
        """Number of channel pairs that are kept, in between, and interpolated by the whole factor."""
        kept = sum(math.isclose(pair.slowed, 1, rel_tol=1e-4) for pair in self.pairs)
        full = sum(math.isclose(pair.slowed, self.factor, rel_tol=1e-4) for pair in self.pairs)
        return kept, len(self.pairs) - kept - full, full

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, without the config."""
        names = ("method", "factor", "unit", "original")
        kept, between, full = self.count()
        return {
            **{name: getattr(self, name) for name in names},
            "kept": kept,
            "between": between,
            "interpolated": full,
            "pairs": [vars(pair) for pair in self.pairs],
        }

    def __str__(self) -> str:
        """The same for a reader."""
        head = f"{self.method} by {self.factor:g}, from a trained length of {self.original:,} {self.unit}"
        if self.method in SUBSTITUTES:
            inter = self.config.inter or {}
            grouped = f"counted in groups of {inter['group']}" if "group" in inter else "all the same"
            others = "not seen" if self.method == "sliding_rope" else grouped
            return f"{head}: distances below {inter['window']} are kept, and others {others}."
        if not self.pairs:
            return f"{head}: slopes divided by {self.factor:g}."
        kept, between, full = self.count()
        lines = [
            f"{head}: of {len(self.pairs)} pairs of channels {kept} are kept, {between} slowed in part and "
            f"{full} interpolated.",
            f"{'pair':>4} {'wavelength':>12} {'turns':>9} {'slowed by':>9}",
            *(f"{p.pair:>4} {p.wavelength:>12.1f} {p.turns:>9.2f} {p.slowed:>9.3f}" for p in self.pairs),
        ]
        if self.method in ("yarn", "llama3") and full >= NEARLY_ALL * len(self.pairs):
            lines.append(
                f"Over {self.original:,} {self.unit} few pairs turn often enough to be kept: here "
                f"{self.method} is nearly position interpolation (linear)."
            )
        return "\n".join(lines)


def _ntk(config: BipeConfig, factor: float) -> dict[str, Any]:
    """NTK-aware scaling: a base with which the slowest pair is slowed by the factor, as in `dynamic`."""
    width = config.head_dim or 0
    if width < 4:
        raise ValueError(f"ntk needs heads of at least 4 channels; got {width}.")
    theta = dict(config.rope_parameters or {})["rope_theta"]
    return {"rope_type": "default", "rope_theta": theta * factor ** (width / (width - 2))}


def _longrope(config: BipeConfig, factor: float) -> dict[str, Any]:
    """Without factors that were searched for, those of NTK-aware scaling, on long texts alone."""
    pairs = (config.head_dim or 0) // 2
    long = [factor ** (pair / max(1, pairs - 1)) for pair in range(pairs)]
    return {"rope_type": "longrope", "factor": factor, "short_factor": [1.0] * pairs, "long_factor": long}


METHODS: dict[str, Callable[[BipeConfig, float], dict[str, Any]]] = {
    "dynamic": lambda _, factor: {"rope_type": "dynamic", "factor": factor},
    "linear": lambda _, factor: {"rope_type": "linear", "factor": factor},
    "llama3": lambda _, factor: {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": _longrope,
    "ntk": _ntk,
    "yarn": lambda _, factor: {"rope_type": "yarn", "factor": factor},
}
"""What each method writes into `rope_parameters`; transformers' own functions compute with it."""


PARAMETERS: dict[str, tuple[str, ...]] = {
    "llama3": ("high_freq_factor", "low_freq_factor"),
    "longrope": ("attention_factor", "long_factor", "short_factor"),
    "rerope": ("window",),
    "selfextend": ("group", "window"),
    "sliding_rope": ("window",),
    "yarn": ("attention_factor", "beta_fast", "beta_slow"),
}
"""What a method can be told beside the factor; of a rope type in transformers' names."""

SUBSTITUTES = ("rerope", "selfextend", "sliding_rope")
"""Methods that leave the frequencies and keep distances in the trained range: encodings themselves."""


def extension_of(
    config: BipeConfig,
    method: str,
    factor: float,
    *,
    original: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Extension:
    """Extend a config.

    >>> config = BipeConfig.from_scheme("bipe-rope", end_token_ids=[3], vocab_size=10, hidden_size=64,
    ...     num_attention_heads=4, original_max_segments=12)
    >>> extension_of(config, "yarn", 4.0).config.rope_parameters["original_max_segments"]
    12

    Args:
        config: of a trained model that has no extension yet.
        method: a key of `METHODS`, or one of `SUBSTITUTES`; for ALiBi `linear`, which divides its slopes.
        factor: how many times longer texts are to become, from 1.01 on.
        original: the trained length in the unit of the index; by default what training has recorded,
            `original_max_segments`, or on tokens `max_position_embeddings`.
        parameters: those of `PARAMETERS`; the window is by default the trained length where nothing beyond
            it is seen (`sliding_rope`) and else half of that, the group the smallest with which texts of
            `factor` times the trained length stay in the trained range.

    Raises:
        ValueError: an unknown method, a factor that does not extend, a length that nobody recorded, an
            encoding without such a method, or a model that is extended already.
    """
    choose("method", {**METHODS, **dict.fromkeys(SUBSTITUTES)}, method)
    check_number("The factor, how many times longer texts are to become,", factor, 1.01, 2**20)
    inter, options = split_spec("inter encoding", INTER_ENCODINGS, config.inter)
    if config.extension is not None:
        done = f"{config.extension.get('method')} by {config.extension.get('factor')}"
        raise ValueError(f"This model is extended already ({done}): extend the one that it was made of.")
    unit = "tokens" if counts_tokens(config, options) else "segments"
    recorded = config.max_position_embeddings if unit == "tokens" else config.original_max_segments
    original = recorded if original is None else original
    if original is None:
        raise ValueError(
            f"The trained length in {unit} is not recorded in this model's config: give it (--original), the "
            "99th percentile over its training blocks, which `bipe segment --statistics` counts."
        )
    check_number(f"The trained length in {unit}", original, 2, 2**40, whole=True)
    wanted = _Wanted(config, method, factor, unit, original, dict(parameters or {}))
    if issubclass(inter, Alibi):
        return wanted.of_alibi()
    if inter is not Rope:
        raise ValueError(
            f"The inter encoding {(config.inter or {})['type']!r} has no context extension; rope and alibi "
            "have."
        )
    wanted.check()
    return wanted.substituted() if method in SUBSTITUTES else wanted.of_rope()


@dataclass(frozen=True)
class _Wanted:
    """What is to be extended, and how."""

    config: BipeConfig
    method: str
    factor: float
    unit: str
    original: int
    parameters: dict[str, Any]

    def check(self) -> None:
        """That the rotation is as trained, and the parameters are those of the method."""
        scaled = (self.config.rope_parameters or {}).get("rope_type", "default")
        if scaled != "default":
            raise ValueError(
                f"This model's rotation is scaled already, rope_type {scaled!r}: extend one that is not."
            )
        known = PARAMETERS.get(self.method, ())
        for name, value in self.parameters.items():
            if name not in known:
                choices = ", ".join(known) or "none"
                raise ValueError(f"Unknown parameter {name!r} of {self.method}. Its parameters: {choices}.")
            if name not in ("long_factor", "short_factor"):
                check_number(name, value, 0, above=True)
                continue
            pairs = (self.config.head_dim or 0) // 2
            if not isinstance(value, list) or len(value) != pairs:
                raise ValueError(f"{name} is a list with a number for each of {pairs} pairs; got {value!r}.")
            for number in value:
                check_number(f"Each of {name}", number, 0, above=True)

    def of_alibi(self) -> Extension:
        if self.method != "linear" or self.parameters:
            raise ValueError(
                f"ALiBi is extended by dividing its slopes, method 'linear' alone; got {self.method!r}."
            )
        spec = self.config.inter or {}
        if spec.get("factor", 1.0) != 1.0:
            raise ValueError(
                f"This model's slopes are divided by {spec['factor']:g} already: extend one whose are not."
            )
        return self._done(self._changed(inter={**spec, "factor": self.factor}))

    def substituted(self) -> Extension:
        slides = self.method == "sliding_rope"
        window = self.parameters.get("window", self.original if slides else self.original // 2)
        if window > self.original or (window == self.original and not slides):
            bound = "at most" if slides else "below"
            raise ValueError(
                f"The window must be {bound} the trained length, {self.original:,} {self.unit}; got "
                f"{window!r}."
            )
        group = {"group": self._smallest_group(window)} if self.method == "selfextend" else {}
        spec = {"type": self.method, "window": window, **group, **self.parameters}
        kept = {name: value for name, value in (self.config.inter or {}).items() if name == "index"}
        return self._done(self._changed(inter={**kept, **spec}))

    def _smallest_group(self, window: int) -> int:
        """With which the far distances of `SelfExtend` stay below the trained length in the longest text."""
        last = round(self.factor * self.original) - 1
        group = max(1, (last - window) // (self.original - window))
        while last // group + window - window // group >= self.original:
            group += 1
        return group

    def of_rope(self) -> Extension:
        there = dict(self.config.rope_parameters or {})
        changed = {**there, **METHODS[self.method](self.config, self.factor), **self.parameters}
        longer: dict[str, Any] = {}
        if changed["rope_type"] not in ("default", "linear"):
            name = "original_max_segments" if self.unit == "segments" else "original_max_position_embeddings"
            changed[name] = self.original
        if changed["rope_type"] == "dynamic" and self.unit == "tokens":
            # transformers takes max_position_embeddings for the trained length there.
            changed.pop("original_max_position_embeddings")
            longer = {"max_position_embeddings": self.original}
        extended = self._changed(rope_parameters=changed, **longer)
        before = _frequencies(self.config, self.original)
        after = _frequencies(extended, round(self.factor * self.original))
        return self._done(
            extended,
            *(
                Pair(index, 2 * math.pi / old, self.original * old / (2 * math.pi), old / new)
                for index, (old, new) in enumerate(zip(before, after, strict=True))
            ),
        )

    def _changed(self, **fields: Any) -> BipeConfig:
        names = ("method", "factor", "unit", "original", "parameters")
        record = {name: value for name in names if (value := getattr(self, name)) != {}}
        longer = {"max_position_embeddings": round(self.config.max_position_embeddings * self.factor)}
        return BipeConfig(**{**self.config.to_dict(), **longer, **fields, "extension": record})

    def _done(self, extended: BipeConfig, *pairs: Pair) -> Extension:
        return Extension(extended, self.method, self.factor, self.unit, self.original, pairs)


def _frequencies(config: BipeConfig, length: int) -> Sequence[float]:
    """By what angle each pair of channels turns from one index to the next, in a text of this length."""
    inter, options = split_spec("inter encoding", INTER_ENCODINGS, config.inter)
    made = inter(config, **options)
    assert isinstance(made, Rope)
    made.tables(torch.tensor([[0, length - 1]]), torch.float32)  # some rope types look at the longest index
    found: Tensor = made.rotary.inv_freq
    return [float(frequency) for frequency in found.double()]


def extend_checkpoint(
    source: str | Path,
    target: str | Path,
    method: str,
    factor: float,
    *,
    original: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Extension:
    """Write a checkpoint with the same weights and a longer context; its config records what was done.

    Args:
        source: folder of a model of this project, or of another kind that `convert` reads.
        target: the folder to write, which must not exist or be empty.
        method: as of `extension_of`, like the others.
        factor: likewise.
        original: likewise.
        parameters: likewise.

    Raises:
        ValueError: as `extension_of` and `convert`.
    """
    source, target = Path(source), Path(target).resolve()
    check_free(source, target)
    found, extension = read_extension(source, method, factor, original=original, parameters=parameters)
    write_extended(extension, found, source, target)
    return extension


def read_extension(
    source: Path,
    method: str,
    factor: float,
    *,
    original: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[Source, Extension]:
    """A checkpoint, and as `extension_of` what it becomes, on record with its name and a checksum of weights.

    Raises:
        ValueError: as `extend_checkpoint`.
    """
    found = read_source(source)
    extension = extension_of(found.config, method, factor, original=original, parameters=parameters)
    digest = hashlib.sha256()
    for name, weight in sorted(found.weights.items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
    assert extension.config.extension is not None
    extension.config.extension |= {"source": source.resolve().name, "weights": digest.hexdigest()[:16]}
    return found, extension


def write_extended(extension: Extension, found: Source, source: Path, target: Path) -> None:
    """Write the extended model: what `read_extension` gives, with the tokenizer in the source's folder."""
    with torch.device("meta"):
        model = BipeForCausalLM(extension.config)
    write_checkpoint(model, found.weights, source, target)
