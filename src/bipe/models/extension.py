"""Context extension: a trained model's relative index made to fit longer texts, counted in its own unit."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import RopeParameters

from bipe.encodings.inter import INTER_ENCODINGS
from bipe.encodings.inter.alibi import Alibi
from bipe.encodings.inter.rope import Rope, counts_tokens
from bipe.registry import choose, split_spec

from .configuration import BipeConfig
from .convert import Source, check_free, read_source, write_checkpoint
from .modeling import BipeForCausalLM

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
        full = sum(pair.slowed >= self.factor * (1 - 1e-4) for pair in self.pairs)
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
        if self.method in REMAPS:
            inter = self.config.inter or {}
            grouped = f"counted in groups of {inter['group']}" if "group" in inter else "all the same"
            return f"{head}: distances below {inter['window']} are kept, and others {grouped}."
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


def _linear(config: BipeConfig, factor: float) -> dict[str, Any]:
    return {"rope_type": "linear", "factor": factor}


def _ntk(config: BipeConfig, factor: float) -> dict[str, Any]:
    """NTK-aware scaling: a base with which the slowest pair is slowed by the factor, as in `dynamic`."""
    width = config.head_dim or 0
    if width < 4:
        raise ValueError(f"ntk needs heads of at least 4 channels; got {width}.")
    theta = dict(config.rope_parameters or {})["rope_theta"]
    return {"rope_type": "default", "rope_theta": theta * factor ** (width / (width - 2))}


def _dynamic(config: BipeConfig, factor: float) -> dict[str, Any]:
    return {"rope_type": "dynamic", "factor": factor}


def _yarn(config: BipeConfig, factor: float) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": factor}


def _longrope(config: BipeConfig, factor: float) -> dict[str, Any]:
    """Without factors that were searched for, those of NTK-aware scaling, on long texts alone."""
    pairs = (config.head_dim or 0) // 2
    long = [factor ** (pair / max(1, pairs - 1)) for pair in range(pairs)]
    return {"rope_type": "longrope", "factor": factor, "short_factor": [1.0] * pairs, "long_factor": long}


def _llama3(config: BipeConfig, factor: float) -> dict[str, Any]:
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


METHODS: dict[str, Callable[[BipeConfig, float], dict[str, Any]]] = {
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "ntk": _ntk,
    "yarn": _yarn,
}
"""What each method writes into `rope_parameters`; transformers' own functions compute with it."""


REMAPS = ("rerope", "selfextend")
"""Methods that leave the frequencies and map far distances into the trained range: encodings themselves."""


def extension_of(
    config: BipeConfig,
    method: str,
    factor: float,
    *,
    original: int | None = None,
    parameters: dict[str, Any] | None = None,
) -> Extension:
    """Extend a config.

    >>> config = BipeConfig.from_scheme("bipe-rope", end_token_ids=[3], vocab_size=10, hidden_size=64,
    ...     num_attention_heads=4, original_max_segments=12)
    >>> extension_of(config, "yarn", 4.0).config.rope_parameters["original_max_segments"]
    12

    Args:
        config: of a trained model that has no extension yet.
        method: a key of `METHODS`, or one of `REMAPS`; for ALiBi `linear`, which divides its slopes.
        factor: how many times longer texts are to become, above 1.
        original: the trained length in the unit of the index; by default what training has recorded,
            `original_max_segments`, or on tokens `max_position_embeddings`.
        parameters: further ones of the rope type, such as `beta_fast`, or `long_factor` of `longrope`;
            `window` and `group` of a remap, by default half the trained length and the factor rounded up.

    Raises:
        ValueError: an unknown method, a factor that does not extend, a length that nobody recorded, an
            encoding without such a method, or a model that is extended already.
    """
    choose("method", {**METHODS, **dict.fromkeys(REMAPS)}, method)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 < factor < math.inf:
        raise ValueError(
            f"The factor says how many times longer texts are to become, above 1; got {factor!r}."
        )
    inter, options = split_spec("inter encoding", INTER_ENCODINGS, config.inter)
    if config.extension is not None:
        raise ValueError(
            f"This model is extended already ({config.extension.get('method')} by "
            f"{config.extension.get('factor')}): extend the one that it was made of."
        )
    unit = "tokens" if counts_tokens(config, options) else "segments"
    recorded = config.max_position_embeddings if unit == "tokens" else config.original_max_segments
    original = recorded if original is None else original
    if type(original) is not int or original < 1:
        raise ValueError(
            f"The trained length in {unit} is not recorded in this model's config: give a whole number, the "
            f"99th percentile over its training blocks; got {original!r}."
        )
    if inter is Rope and method in REMAPS:
        return _remapped(config, method, factor, unit, original, parameters)
    if issubclass(inter, Alibi):
        return _of_alibi(config, method, factor, unit, original, parameters)
    if inter is not Rope:
        raise ValueError(
            f"The inter encoding {(config.inter or {})['type']!r} has no context extension; rope and alibi "
            "have."
        )
    return _of_rope(config, method, factor, unit, original, parameters)


def _remapped(
    config: BipeConfig,
    method: str,
    factor: float,
    unit: str,
    original: int,
    parameters: dict[str, Any] | None,
) -> Extension:
    group = {"group": math.ceil(factor)} if method == "selfextend" else {}
    spec = {"type": method, "window": max(1, original // 2), **group, **(parameters or {})}
    kept = {name: value for name, value in (config.inter or {}).items() if name == "index"}
    extended = _changed(config, method, factor, unit, original, inter={**kept, **spec})
    return Extension(extended, method, factor, unit, original, ())


def _of_alibi(
    config: BipeConfig,
    method: str,
    factor: float,
    unit: str,
    original: int,
    parameters: dict[str, Any] | None,
) -> Extension:
    if method != "linear" or parameters:
        raise ValueError(f"ALiBi is extended by dividing its slopes, method 'linear' alone; got {method!r}.")
    extended = _changed(
        config, method, factor, unit, original, inter={**(config.inter or {}), "factor": factor}
    )
    return Extension(extended, method, factor, unit, original, ())


def _of_rope(
    config: BipeConfig,
    method: str,
    factor: float,
    unit: str,
    original: int,
    parameters: dict[str, Any] | None,
) -> Extension:
    there = dict(config.rope_parameters or {})
    if there.get("rope_type", "default") != "default":
        raise ValueError(
            f"This model's rotation is scaled already, rope_type {there['rope_type']!r}: extend one that is "
            "not."
        )
    for name in parameters or ():
        choose("parameter", RopeParameters.__annotations__, name)
    changed = {**there, **METHODS[method](config, factor), **(parameters or {})}
    if changed["rope_type"] not in ("default", "linear"):
        name = "original_max_segments" if unit == "segments" else "original_max_position_embeddings"
        changed[name] = original
    if unit == "tokens" and changed["rope_type"] == "dynamic":
        changed.pop("original_max_position_embeddings")  # transformers reads max_position_embeddings instead
        extended = _changed(
            config, method, factor, unit, original, rope_parameters=changed, max_position=original
        )
    else:
        extended = _changed(config, method, factor, unit, original, rope_parameters=changed)
    pairs = [
        Pair(index, 2 * math.pi / before, original * before / (2 * math.pi), before / after)
        for index, (before, after) in enumerate(
            zip(_frequencies(config, original), _frequencies(extended, round(factor * original)), strict=True)
        )
    ]
    return Extension(extended, method, factor, unit, original, tuple(pairs))


def _changed(
    config: BipeConfig,
    method: str,
    factor: float,
    unit: str,
    original: int,
    max_position: int | None = None,
    **fields: Any,
) -> BipeConfig:
    record = {"method": method, "factor": factor, "unit": unit, "original": original}
    longer = max_position or round(config.max_position_embeddings * factor)
    everything = {**config.to_dict(), **fields, "max_position_embeddings": longer, "extension": record}
    return BipeConfig(**everything)


def _frequencies(config: BipeConfig, length: int) -> Sequence[float]:
    """By what angle each pair of channels turns from one index to the next, in a text of this length."""
    inter, options = split_spec("inter encoding", INTER_ENCODINGS, config.inter)
    made = inter(config, **options)
    assert isinstance(made, Rope)
    index = torch.tensor([[0, length - 1]])
    made.tables(index, torch.float32)  # some rope types look at the longest index first
    found: Tensor = made.rotary.inv_freq
    return [float(frequency) for frequency in found.double()]


def extend_checkpoint(
    source: str | Path,
    target: str | Path,
    method: str,
    factor: float,
    *,
    original: int | None = None,
    parameters: dict[str, Any] | None = None,
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
    found: Source = read_source(source)
    extension = extension_of(
        copy.deepcopy(found.config), method, factor, original=original, parameters=parameters
    )
    assert extension.config.extension is not None
    extension.config.extension["source"] = source.name
    with torch.device("meta"):
        model = BipeForCausalLM(extension.config)
    write_checkpoint(model, found.weights, source, target)
    return extension
