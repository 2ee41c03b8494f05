"""Encodings without a model around them, and positions and vectors to try them on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bipe import BilevelPositions, BipeConfig
from bipe.encodings.inter import INTER_ENCODINGS, InterEncoding

SIZES = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS, WIDTH, HEAD_WIDTH, STD = 4, 32, 8, 0.5
FAR = 131_071
TOKEN_SET = {"type": "token_set", "end_token_ids": [3]}
LEVELS = {"type": "levels", "segmenters": [TOKEN_SET, {"type": "fixed_length", "n": 10}, {"type": "never"}]}


def config_of(**fields: Any) -> BipeConfig:
    return BipeConfig(**{**SIZES, "num_attention_heads": HEADS, "segmenter": TOKEN_SET, **fields})


def inter_of(spec: dict[str, Any], **fields: Any) -> InterEncoding:
    encoding = INTER_ENCODINGS[spec["type"]]
    config = config_of(inter=spec, **fields)
    assert config.inter is not None
    made = encoding(config, **{name: value for name, value in config.inter.items() if name != "type"})
    made.reset_parameters(STD)
    return made.eval()


def at_segments(segment: Sequence[Sequence[int]] | Tensor) -> BilevelPositions:
    """Positions whose offset and token have nothing to do with their segment."""
    segments = torch.as_tensor(segment)
    return BilevelPositions(segments, segments % 3, torch.arange(segments.numel()).view_as(segments))


def growing_segments(rows: int = 2, tokens: int = 20) -> BilevelPositions:
    steps = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(1)) < 0.4
    return at_segments(steps.long().cumsum(1))


def vectors(tokens: int, rows: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, HEADS, tokens, HEAD_WIDTH, generator=generator).to(dtype)


def rotated_by_complex_numbers(states: Tensor, segment: Tensor, theta: float) -> Tensor:
    """RoPE as multiplication by `exp(i s theta^(-2c/K))` of channel `c` paired with `c + K/2`, in float64."""
    half = states.shape[-1] // 2
    frequency = torch.tensor([theta ** (-2 * c / (2 * half)) for c in range(half)], dtype=torch.float64)
    pairs = torch.complex(states[..., :half].double(), states[..., half:].double())
    angle = segment[:, None, :, None].double() * frequency
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)
