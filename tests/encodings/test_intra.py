"""Encodings inside segments: what all of them promise, and what they add to a token."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bipe import BilevelPositions
from bipe.encodings.intra import INTRA_ENCODINGS
from bipe.encodings.intra.base import IntraEncoding

from .bare_encodings import FAR, STD, WIDTH, config_of


def intra_of(spec: dict[str, Any], **fields: Any) -> IntraEncoding:
    encoding = INTRA_ENCODINGS[spec["type"]]
    made = encoding(config_of(intra=spec, **fields), **{n: v for n, v in spec.items() if n != "type"})
    torch.manual_seed(0)
    made.reset_parameters(STD)
    return made.eval()


def at_offsets(offsets: Sequence[int]) -> BilevelPositions:
    offset = torch.tensor([offsets])
    return BilevelPositions(offset + 7, offset, offset + 11)


CLAMPED = [name for name in sorted(INTRA_ENCODINGS) if name not in ("randomized", "zero")]
ADDING = [name for name in sorted(INTRA_ENCODINGS) if name != "zero"]


def sinusoids(offset: Tensor, scale: float) -> Tensor:
    half = WIDTH // 2
    period = torch.tensor([10_000.0 ** (2 * c / WIDTH) for c in range(half)], dtype=torch.float64)
    angle = offset[..., None].double() / period
    return scale * torch.cat((angle.sin(), angle.cos()), dim=-1)


def test_zero_inside_segments_adds_nothing() -> None:
    assert intra_of({"type": "zero"})(at_offsets([0, 1]), torch.float32) is None


def test_sinusoids_are_those_of_the_formula() -> None:
    offsets = [0, 1, 2, 17, 1000]
    added = intra_of({"type": "sinusoidal"})(at_offsets(offsets), torch.float32)
    assert added is not None
    torch.testing.assert_close(added.double(), sinusoids(torch.tensor([offsets]), STD), rtol=1e-4, atol=1e-4)


def test_an_odd_width_has_one_sine_more() -> None:
    config = config_of(intra={"type": "sinusoidal"}, hidden_size=15, num_attention_heads=3, head_dim=4)
    added = INTRA_ENCODINGS["sinusoidal"](config)(at_offsets([0]), torch.float32)
    assert added is not None
    torch.testing.assert_close(added[0, 0] / config.initializer_range, torch.tensor([0.0] * 8 + [1.0] * 7))


def test_learned_is_a_look_up_in_the_table() -> None:
    encoding = intra_of({"type": "learned", "max_offset": 6})
    table = encoding.get_parameter("embedding.weight")
    added = encoding(at_offsets([3, 0, 5]), torch.float32)
    assert added is not None
    assert torch.equal(added[0], table[[3, 0, 5]])


@pytest.mark.parametrize("trained", [None, 5, 90])
def test_learned_uses_its_last_row_beyond_the_table(trained: int | None) -> None:
    encoding = intra_of({"type": "learned", "max_offset": 6}, max_trained_offset=trained)
    added = encoding(at_offsets([5, 6, 7, FAR]), torch.float32)
    assert added is not None
    assert torch.equal(added[0], encoding.get_parameter("embedding.weight")[[5, 5, 5, 5]])


@pytest.mark.parametrize("name", CLAMPED)
def test_offsets_beyond_training_are_encoded_as_the_longest_trained(name: str) -> None:
    encoding = intra_of({"type": name}, max_trained_offset=3)
    added = encoding(at_offsets([2, 3, 4, 90, 5000]), torch.float32)
    assert added is not None
    assert torch.equal(added[0, 1:], added[0, 1:2].expand(4, -1))
    assert not torch.equal(added[0, 0], added[0, 1])


@pytest.mark.parametrize("name", sorted(INTRA_ENCODINGS))
def test_segment_and_plain_index_do_not_reach_inside_segments(name: str) -> None:
    encoding, positions = intra_of({"type": name}), at_offsets([0, 1, 2, 30])
    other = positions._replace(segment=positions.segment + 5, token=positions.token * 2)
    first, second = encoding(positions, torch.float32), encoding(other, torch.float32)
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ADDING)
def test_what_is_added_has_the_dtype_asked_for_and_the_width_of_the_model(
    name: str, dtype: torch.dtype
) -> None:
    added = intra_of({"type": name}).to(dtype)(at_offsets([0, 1, 9]), dtype)
    assert added is not None
    assert added.dtype == dtype
    assert added.shape == (1, 3, WIDTH)


def test_no_two_offsets_look_alike_in_bfloat16() -> None:
    encoding = intra_of({"type": "sinusoidal"}).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        added = encoding(at_offsets([FAR - 1, FAR]), torch.bfloat16)
    assert added is not None
    expected = sinusoids(torch.tensor([[FAR - 1, FAR]]), STD)
    torch.testing.assert_close(added.double(), expected, rtol=0, atol=0.02)
