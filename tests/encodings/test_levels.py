"""Encodings between segments of several levels."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from bipe import BilevelPositions, BipeForCausalLM, MultilevelPositions
from bipe.encodings.inter.rope import rotate

from .bare_encodings import (
    HEAD_WIDTH,
    HEADS,
    LEVELS,
    config_of,
    growing_segments,
    inter_of,
    rotated_by_complex_numbers,
    vectors,
)


def at_levels(rows: int = 2, tokens: int = 20) -> MultilevelPositions:
    inner = growing_segments(rows, tokens)
    outer = torch.stack((inner.token // 7, inner.token // 13), dim=-1)
    return MultilevelPositions(*inner, outer)


def test_levels_of_a_rotation_turn_channels_of_their_own() -> None:
    encoding = inter_of({"type": "rope_levels", "shares": [2, 1, 1]}, segmenter=LEVELS)
    positions, states = at_levels(), vectors(20)
    relation = encoding(positions, positions, torch.float32)
    assert relation.query_rotation is not None
    turned = rotate(states, relation.query_rotation).double()
    indices = [positions.segment, *positions.outer.unbind(-1)]
    for pair, level in enumerate([0, 0, 1, 2]):
        expected = rotated_by_complex_numbers(states, indices[level], 10_000.0)
        for channel in (pair, pair + HEAD_WIDTH // 2):
            torch.testing.assert_close(turned[..., channel], expected[..., channel], rtol=1e-5, atol=1e-5)


def test_levels_of_alibi_add_up() -> None:
    spec = {"type": "alibi_levels", "scale": 3.0, "outer_scales": [5.0, 0.5]}
    positions = at_levels()
    bias = inter_of(spec, segmenter=LEVELS)(positions, positions, torch.float32).bias
    assert bias is not None
    found = bias.block(slice(0, 20), slice(0, 20)).expand(2, HEADS, 20, 20)
    indices = [positions.segment, *positions.outer.unbind(-1)]
    for head, exponent in enumerate([2, 4, 6, 8]):
        expected = sum(
            -scale * 2.0**-exponent * (index[:, :, None] - index[:, None])
            for scale, index in zip([3.0, 5.0, 0.5], indices, strict=True)
        )
        torch.testing.assert_close(found[:, head], cast("Tensor", expected))


@pytest.mark.parametrize(("several", "one"), [("rope_levels", "rope"), ("alibi_levels", "alibi")])
def test_one_level_is_what_it_was(several: str, one: str) -> None:
    torch.manual_seed(0)
    models = [BipeForCausalLM(config_of(inter={"type": kind})).eval() for kind in (several, one)]
    models[1].load_state_dict(models[0].state_dict())
    ids = torch.randint(0, 30, (2, 40))
    assert torch.equal(models[0](ids).logits, models[1](ids).logits)
    assert type(models[0].positions(ids)) is BilevelPositions


@pytest.mark.parametrize("name", ["rope_levels", "alibi_levels"])
def test_positions_of_too_few_levels_are_refused(name: str) -> None:
    model = BipeForCausalLM(config_of(inter={"type": name}, segmenter=LEVELS))
    flat = growing_segments()
    with pytest.raises(ValueError, match="3 levels of segments: give MultilevelPositions with 2 outer"):
        model(torch.zeros(2, 20, dtype=torch.int64), positions=flat)


@pytest.mark.parametrize(
    ("inter", "message"),
    [
        ({"type": "rope_levels", "shares": [1, 1]}, "one for each of 3 levels"),
        ({"type": "rope_levels", "shares": [1, 1, 0]}, "shares must be a whole number of at least 1.*got 0"),
        ({"type": "rope_levels", "shares": [3, 1, 1]}, "need 5 pairs of channels; a head has 4"),
        ({"type": "alibi_levels", "outer_scales": [1.0]}, "one for each of 2 outer levels"),
        ({"type": "alibi_levels", "outer_scales": [1.0, -1.0]}, "outer_scales must be.*got -1.0"),
    ],
)
def test_wrong_options_of_levels_are_named(inter: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(inter=inter, segmenter=LEVELS)
