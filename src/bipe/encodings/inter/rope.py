"""A rotation by the segment index."""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from bipe.positions import Positions
from bipe.registry import check_number, choose

from .base import IndexEncoding, Relation, Rotation

LENGTH_THRESHOLDS = {"dynamic", "llama3", "longrope", "yarn"}
"""The rope types that compare a position with the trained length."""

SCALED = {"dynamic", "linear", "llama3", "yarn"}
"""The rope types that cannot do without a factor."""

LENGTH_DEPENDENT = {"dynamic", "longrope"}
"""The rope types whose frequencies depend on the longest position of the call."""


def _rotary_config(config: LlamaConfig) -> LlamaConfig:
    """The config that transformers' tables read, with lengths in the unit of the rotated index.

    On tokens that is the config itself. On segments, `original_max_segments` stands for the trained length.
    """
    parameters: dict[str, Any] = dict(config.rope_parameters or {})
    segments = parameters.pop("original_max_segments", None)
    if segments is None:
        return config
    if parameters["rope_type"] != "dynamic":
        parameters["original_max_position_embeddings"] = segments
    rotary = deepcopy(config)
    rotary.max_position_embeddings = int(segments)
    rotary.rope_parameters = parameters
    return rotary


class Rope(IndexEncoding):
    """RoPE (Su et al. 2021, arXiv:2104.09864) on the segment index, over all channels of a head.

    On one token a segment this is Llama's own encoding, bit for bit: the tables are transformers' own, so
    every `rope_type` it knows can be used. Base and scaling live in the config's `rope_parameters`; the
    options `theta` and `scaling` are moved there. Lengths that a rope type compares with are counted in the
    unit of the index: tokens with the segmenter `every_token`, otherwise segments, `original_max_segments`.

    Attributes:
        blend: how far the rotated index, in float32, has moved from the token's (0) to the segment's (1);
            below 1 only while a retrofitted model trains.
    """

    config_options = ("theta", "scaling")
    blend: float = 1.0

    def __init__(self, config: LlamaConfig, *, index: str = "segment") -> None:
        super().__init__(config, index=index)
        self.rotary = LlamaRotaryEmbedding(_rotary_config(config))

    @property
    def cacheable(self) -> bool:
        return self.rotary.rope_type not in LENGTH_DEPENDENT

    @classmethod
    def adopt(cls, config: LlamaConfig, options: dict[str, Any]) -> dict[str, Any]:
        """Move `theta` and `scaling` into `config.rope_parameters`.

        Raises:
            ValueError: `rope_parameters` already says something else.
        """
        scaling = options.get("scaling") or {}
        if not isinstance(scaling, Mapping):
            raise ValueError(
                f'scaling is a dictionary such as {{"rope_type": "yarn", "factor": 4.0}}; got {scaling!r}.'
            )
        moved = dict(scaling)
        if options.get("theta") is not None:
            moved["rope_theta"] = options["theta"]
        explicit = dict(config.rope_parameters or {})
        for key, value in moved.items():
            if key in explicit and explicit[key] != value:
                raise ValueError(
                    f"{key} is {value!r} in `inter` and {explicit[key]!r} in `rope_parameters`: "
                    "give it in one place."
                )
        if moved:
            config.rope_parameters = {**explicit, **moved}
        return {key: value for key, value in options.items() if key not in cls.config_options}

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        assert config.head_dim is not None and config.rope_parameters is not None, "filled in by transformers"
        if config.head_dim % 2:
            raise ValueError(
                f"RoPE rotates pairs of channels, so head_dim must be even; got {config.head_dim}."
            )
        parameters = dict(config.rope_parameters)
        theta = parameters.get("rope_theta")
        check_number("RoPE's theta", theta, 1, 1e12, above=True)
        cls._validate_scaling(parameters, config.head_dim // 2)
        if "partial_rotary_factor" in parameters and parameters["partial_rotary_factor"] != 1:
            raise ValueError(
                "RoPE here rotates all channels of a head; partial_rotary_factor is not supported."
            )
        cls._validate_unit(parameters, on_tokens=counts_tokens(config, options))

    @staticmethod
    def _validate_scaling(parameters: dict[str, Any], pairs: int) -> None:
        rope_type = choose(
            "rope_type", {name: name for name in ("default", *ROPE_INIT_FUNCTIONS)}, parameters["rope_type"]
        )
        factor = parameters.get("factor")
        if rope_type in SCALED and (
            isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < math.inf
        ):
            raise ValueError(f"The rope_type {rope_type!r} needs a factor, at least 1; got {factor!r}.")
        if "attention_factor" in parameters and parameters["attention_factor"] is not None:
            check_number("attention_factor", parameters["attention_factor"], 0, above=True)
        if rope_type == "llama3":
            low, high = (parameters.get(f"{name}_freq_factor") for name in ("low", "high"))
            check_number("low_freq_factor", low, 0, above=True)
            check_number("high_freq_factor", high, cast("float", low), above=True)
        if rope_type == "longrope":
            for name in ("short_factor", "long_factor"):
                given = parameters.get(name)
                if not isinstance(given, list) or len(given) != pairs:
                    raise ValueError(
                        f"{name} of longrope is a list of {pairs} numbers, one for each pair of channels; "
                        f"got {given!r}."
                    )
                for number in given:
                    check_number(f"Each {name}", number, 0, above=True)

    @staticmethod
    def _validate_unit(parameters: dict[str, Any], *, on_tokens: bool) -> None:
        rope_type, segments = parameters["rope_type"], parameters.get("original_max_segments")
        if on_tokens and segments is not None:
            raise ValueError(
                "The segmenter is every_token, or the index that of the token: give "
                "original_max_position_embeddings, in tokens."
            )
        if not on_tokens and rope_type in LENGTH_THRESHOLDS and (type(segments) is not int or segments < 1):
            raise ValueError(
                f"On segments, rope_type {rope_type!r} needs original_max_segments, the trained length "
                f"counted in segments; got {segments!r}."
            )

    def _apply(self, fn: Any, recurse: bool = True) -> "Rope":
        # A cast of the model must not touch the frequencies: half precision collapses long positions.
        super()._apply(fn, recurse)
        if not self.rotary.inv_freq.is_meta:
            self.reset_parameters(0.0)
        return self

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        device = self.rotary.inv_freq.device
        fresh = LlamaRotaryEmbedding(self.rotary.config)
        for name, buffer in fresh.named_buffers():
            self.rotary.register_buffer(name, buffer.to(device), persistent=False)

    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        if self.blend == 1:
            return super().forward(query, key, dtype)
        index = torch.lerp(query.token.float(), getattr(query, self.index).float(), self.blend)
        return self.relate(index, index, dtype)

    def relate(self, query: Tensor, key: Tensor, dtype: torch.dtype) -> Relation:
        rotation = self.tables(query, dtype)
        return Relation(query_rotation=rotation, key_rotation=rotation)

    def tables(self, index: Tensor, dtype: torch.dtype) -> Rotation:
        """Cosines and sines, each `(B, T, K)` in `dtype`, of an index `(B, T)`."""
        # Only the dtype and device of the first argument are read.
        return self.rotary(torch.empty(0, dtype=dtype, device=index.device), index)


def counts_tokens(config: LlamaConfig, options: Mapping[str, Any]) -> bool:
    """Whether the index of an encoding with these options is that of the token."""
    segmenter = getattr(config, "segmenter", None)
    return options.get("index") == "token" or segmenter == {"type": "every_token"}


def refuse_scaling(name: str, config: LlamaConfig) -> None:
    """Refuse a rope type that an encoding built on RoPE has no meaning for.

    Raises:
        ValueError: the rope type is not the default one.
    """
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rope_type != "default":
        raise ValueError(f"There is no scaling of {name}; got the rope_type {rope_type!r}.")


def rotate(states: Tensor, rotation: Rotation) -> Tensor:
    """Rotate channel `c` with channel `c + K/2`, in transformers' order of operations.

    Args:
        states: `(B, H, T, K)` queries or keys.
        rotation: cosines and sines, each `(B, T, K)`.
    """
    cos, sin = (table.unsqueeze(1) for table in rotation)
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return states * cos + turned * sin
