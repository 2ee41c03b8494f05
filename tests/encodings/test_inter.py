"""Encodings between segments: what all of them promise, and rotations and biases against their formulas."""

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from bipe import BilevelPositions, BipeForCausalLM
from bipe.encodings.inter import INTER_ENCODINGS, Relation
from bipe.encodings.inter.alibi import alibi_slopes
from bipe.encodings.inter.base import Bias, Content, DecayingBias
from bipe.encodings.inter.rope import rotate

from .bare_encodings import (
    FAR,
    HEAD_WIDTH,
    HEADS,
    LEVELS,
    STD,
    TOKEN_SET,
    at_segments,
    config_of,
    growing_segments,
    inter_of,
    rotated_by_complex_numbers,
    vectors,
)


def biased_encodings() -> list[str]:
    positions = at_segments([[0, 1]])
    relations = {
        name: inter_of({"type": name})(positions, positions, torch.float32) for name in INTER_ENCODINGS
    }
    return sorted(name for name, relation in relations.items() if relation.bias is not None)


def logits_of(relation: Relation, tokens: int) -> Tensor:
    """What attention adds up from a relation, for fixed queries and keys."""
    query, key = vectors(tokens, seed=0), vectors(tokens, seed=1)
    if relation.query_rotation is not None and relation.key_rotation is not None:
        query, key = rotate(query, relation.query_rotation), rotate(key, relation.key_rotation)
    if relation.damping is not None:
        index = relation.damping.key_index
        left = torch.exp(-(index[:, :, None] - index[:, None])[..., None] * relation.damping.rates)
        return torch.einsum("bhik,bhjk,bijk->bhij", query, key, left).tril()
    whole = slice(0, tokens)
    bias = 0.0 if relation.bias is None else bias_between(relation.bias, query, key, whole, whole)
    return (query @ key.mT + bias).tril()


def bias_between(bias: Bias, query: Tensor, key: Tensor, rows: slice, columns: slice) -> Tensor:
    """A block of a bias for the newest queries among these keys."""
    past = key.shape[2] - query.shape[2]
    seen = torch.arange(past, key.shape[2])[rows, None] >= torch.arange(key.shape[2])[columns]
    content = Content(query[:, :, rows], key[:, :, columns], seen[None, None], 0.7)
    return bias.between(content, rows, columns)


@pytest.mark.parametrize("name", [name for name, made in INTER_ENCODINGS.items() if made.shift_invariant])
def test_the_logits_depend_on_differences_of_segments_only(name: str) -> None:
    encoding, positions = inter_of({"type": name}), growing_segments()
    moved = positions._replace(segment=positions.segment + 40)
    first, second = (encoding(at, at, torch.float32) for at in (positions, moved))
    torch.testing.assert_close(logits_of(first, 20), logits_of(second, 20), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, made in INTER_ENCODINGS.items() if not made.reads_inside])
def test_offset_and_plain_index_do_not_reach_between_segments(name: str) -> None:
    encoding, positions = inter_of({"type": name}), growing_segments()
    other = positions._replace(offset=positions.offset + 5, token=positions.token * 2)
    first, second = (encoding(at, at, torch.float32) for at in (positions, other))
    assert torch.equal(logits_of(first, 20), logits_of(second, 20))


@pytest.mark.parametrize("rows_agree", [True, False])
@pytest.mark.parametrize("name", biased_encodings())
def test_a_block_is_a_slice_of_the_whole_bias(name: str, rows_agree: bool) -> None:
    key = growing_segments()
    if rows_agree:
        key = BilevelPositions(*(field[:1].expand(2, -1) for field in key))
    query = key.last(12)
    bias = inter_of({"type": name})(query, key, torch.float32).bias
    assert bias is not None
    content = vectors(20)[:, :, -12:], vectors(20, seed=1)
    whole = bias_between(bias, *content, slice(0, 12), slice(0, 20)).expand(2, HEADS, 12, 20)
    assert whole.dtype == torch.float32
    for rows, keys in [
        (slice(0, 5), slice(0, 13)),
        (slice(5, 12), slice(3, 20)),
        (slice(11, 12), slice(19, 20)),
    ]:
        block = bias_between(bias, *content, rows, keys).expand(2, HEADS, -1, -1)
        torch.testing.assert_close(block, whole[:, :, rows, keys], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(INTER_ENCODINGS))
def test_newest_queries_relate_to_keys_as_in_one_call(name: str) -> None:
    positions = growing_segments()
    encoding = inter_of({"type": name})
    whole = encoding(positions, positions, torch.float32)
    step = encoding(positions.last(3), positions, torch.float32)
    if whole.bias is not None and step.bias is not None:
        query, key, columns = vectors(20), vectors(20, seed=1), slice(0, 20)
        rows = bias_between(whole.bias, query, key, slice(17, 20), columns)
        found = bias_between(step.bias, query[:, :, 17:], key, slice(0, 3), columns)
        torch.testing.assert_close(found, rows, rtol=1e-5, atol=1e-5)
    for new, old in [
        (step.query_rotation, whole.query_rotation),
        (step.key_rotation, whole.key_rotation),
    ]:
        assert (new is None) == (old is None)
        if new is not None and old is not None:
            assert all(torch.equal(part, table[:, -3:]) for part, table in zip(new, old, strict=True))


@pytest.mark.parametrize("nats", [0.0, 0.3, 2.0, 15.0, 40.5])
@pytest.mark.parametrize("heads", [1, 4, 6, 12])
@pytest.mark.parametrize("name", biased_encodings())
def test_reach_parts_the_distances_that_have_fallen_by_more(name: str, heads: int, nats: float) -> None:
    positions = at_segments([list(range(400))])
    encoding = inter_of({"type": name}, num_attention_heads=heads, hidden_size=8 * heads)
    bias = encoding(positions, positions, torch.float32).bias
    assert isinstance(bias, DecayingBias) == encoding.decays
    if not isinstance(bias, DecayingBias):
        return
    reach = bias.reach(nats)
    assert reach.shape == (heads,)
    assert reach.dtype == torch.float32
    row = bias.block(slice(399, 400), slice(0, 400))[0, :, 0].flip(-1)
    fallen = (row[:, :1] - row) > nats
    assert torch.equal(fallen, torch.arange(400.0) > reach[:, None])


def test_reach_is_the_smallest_such_distance() -> None:
    positions = at_segments([[0, 1]])
    bias = inter_of({"type": "alibi", "scale": 1.0})(positions, positions, torch.float32).bias
    assert isinstance(bias, DecayingBias)
    reach = bias.reach(2.0)
    assert reach.tolist() == [8.0, 32.0, 128.0, 512.0]


@pytest.mark.parametrize("nats", [0.0, 5.0])
def test_reach_has_no_end_where_nothing_falls(nats: float) -> None:
    positions = at_segments([[0, 1]])
    bias = inter_of({"type": "alibi", "scale": 0.0})(positions, positions, torch.float32).bias
    assert isinstance(bias, DecayingBias)
    assert bias.reach(nats).tolist() == [math.inf] * HEADS


def test_reach_takes_a_number_for_each_head() -> None:
    positions = at_segments([[0, 1]])
    bias = inter_of({"type": "alibi", "scale": 1.0})(positions, positions, torch.float32).bias
    assert isinstance(bias, DecayingBias)
    nats = torch.tensor([[0.0, 1.0, 2.0, 40.0], [3.0, 3.0, 3.0, 3.0]])
    assert bias.reach(nats).tolist() == [[0.0, 16.0, 128.0, 10240.0], [12.0, 48.0, 192.0, 768.0]]


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (4, [2, 4, 6, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
        (6, [2, 4, 6, 8, 1, 3]),
        (20, [*(0.5 * k for k in range(1, 17)), 0.25, 0.75, 1.25, 1.75]),
        (1, [8]),
    ],
)
def test_slopes_are_those_of_the_released_formula(heads: int, exponents: list[float]) -> None:
    assert alibi_slopes(heads) == pytest.approx([2.0**-exponent for exponent in exponents], rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 96.0, 20.5])
def test_alibi_is_minus_scale_times_slope_times_distance(scale: float) -> None:
    positions = growing_segments()
    bias = inter_of({"type": "alibi", "scale": scale})(positions, positions, torch.float32).bias
    assert bias is not None
    block = bias.block(slice(0, 20), slice(0, 20))
    for row in range(2):
        for head, exponent in enumerate([2, 4, 6, 8]):
            for i in range(20):
                for j in range(20):
                    distance = int(positions.segment[row, i] - positions.segment[row, j])
                    expected = -scale * 2.0**-exponent * distance
                    assert float(block.expand(2, HEADS, 20, 20)[row, head, i, j]) == pytest.approx(expected)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rope_is_a_complex_multiplication(theta: float) -> None:
    positions = growing_segments()
    relation = inter_of({"type": "rope", "theta": theta})(positions, positions, torch.float32)
    assert relation.bias is None
    states = vectors(20)
    expected = rotated_by_complex_numbers(states, positions.segment, theta)
    for rotation in (relation.query_rotation, relation.key_rotation):
        assert rotation is not None
        torch.testing.assert_close(rotate(states, rotation).double(), expected, rtol=1e-5, atol=1e-5)


def test_linear_scaling_divides_the_segment_index() -> None:
    positions = at_segments([[0, 4, 8, 400]])
    scaled = inter_of({"type": "rope", "scaling": {"rope_type": "linear", "factor": 4.0}})
    rotation = scaled(positions, positions, torch.float32).query_rotation
    assert rotation is not None
    expected = rotated_by_complex_numbers(vectors(4, rows=1), positions.segment // 4, 10_000.0)
    torch.testing.assert_close(rotate(vectors(4, rows=1), rotation).double(), expected, rtol=1e-4, atol=1e-4)


def test_zero_between_segments_relates_nothing() -> None:
    assert inter_of({"type": "zero"})(growing_segments(), growing_segments(), torch.float32) == Relation()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_far_rotations_keep_their_angles_in_half_precision(model_dtype: torch.dtype, autocast: bool) -> None:
    model = cast("Any", BipeForCausalLM(config_of(inter={"type": "rope"}))).to(model_dtype)
    positions = at_segments([[0, 1, FAR - 1, FAR]])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        rotation = model.model.inter(positions, positions, torch.float32).query_rotation
    assert rotation is not None
    ones = torch.ones(1, HEADS, 4, HEAD_WIDTH)
    expected = rotated_by_complex_numbers(ones, positions.segment, 10_000.0)
    torch.testing.assert_close(rotate(ones, rotation).double(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rotations_are_the_float32_ones_cast_once(dtype: torch.dtype) -> None:
    encoding, positions = inter_of({"type": "rope"}), at_segments([[0, 5, 999, FAR]])
    exact = encoding(positions, positions, torch.float32).query_rotation
    cast = encoding.to(dtype)(positions, positions, dtype).query_rotation
    assert exact is not None
    assert cast is not None
    assert all(torch.equal(table, original.to(dtype)) for table, original in zip(cast, exact, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_far_neighbours_keep_their_bias_in_half_precision(model_dtype: torch.dtype, autocast: bool) -> None:
    config = config_of(inter={"type": "alibi", "scale": 20.7})
    model = cast("Any", BipeForCausalLM(config)).to(model_dtype)
    positions = at_segments([[0, 1, FAR - 1, FAR]])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        bias = model.model.inter(positions, positions, model_dtype).bias
        assert bias is not None
        block = bias.block(slice(0, 4), slice(0, 4))
    assert block.dtype == torch.float32
    slopes = 20.7 * torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8], dtype=torch.float64)
    distance = (positions.segment[:, None, :, None] - positions.segment[:, None, None, :]).double()
    expected = -slopes[:, None, None] * distance
    torch.testing.assert_close(block.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("window", [1, 4, 50])
@pytest.mark.parametrize("segmenter", [TOKEN_SET, {"type": "every_token"}])
def test_a_sliding_window_is_rope_with_a_mask(segmenter: dict[str, Any], window: int) -> None:
    torch.manual_seed(0)
    config = {"segmenter": segmenter, "initializer_range": 0.3, "attn_implementation": "eager"}
    sliding = BipeForCausalLM(config_of(inter={"type": "sliding_rope", "window": window}, **config)).eval()
    plain = BipeForCausalLM(config_of(inter={"type": "rope"}, **config)).eval()
    plain.load_state_dict(sliding.state_dict())
    ids = torch.randint(0, 30, (2, 40))
    ids[:, 3::5] = 3
    index = sliding.positions(ids).segment
    near = index[:, None, :, None] - index[:, None, None, :] < window
    weights = plain(ids, output_attentions=True).attentions[0].masked_fill(~near, 0)
    expected = weights / weights.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(sliding(ids, output_attentions=True).attentions[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(INTER_ENCODINGS))
def test_a_reset_brings_every_initial_value_back(name: str) -> None:
    learned = {"learned": True} if name.startswith("alibi") else {}
    encoding = inter_of({"type": name, **learned}, segmenter=LEVELS)
    starts = []
    for _ in range(2):
        torch.manual_seed(0)
        encoding.reset_parameters(STD)
        starts.append([part.clone() for part in encoding.parameters()])
        for part in encoding.parameters():
            part.fill_(7.0)
    assert all(torch.equal(*pair) for pair in zip(*starts, strict=True))


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.10"),
    reason="torch.vmap of torch 2.9 cannot look a tensor up at two batched numbers; its FlexAttention can",
)
@pytest.mark.parametrize("rows_agree", [True, False])
@pytest.mark.parametrize(
    "name", [name for name in biased_encodings() if not INTER_ENCODINGS[name].reads_content]
)
def test_a_score_is_a_number_of_the_block(name: str, rows_agree: bool) -> None:
    key = growing_segments()
    key = key._replace(offset=key.token % 4)
    if rows_agree:
        key = BilevelPositions(*(field[:1].expand(2, -1) for field in key))
    bias = inter_of({"type": name})(key.last(12), key, torch.float32).bias
    assert bias is not None
    block = bias.block(slice(0, 12), slice(0, 20)).expand(2, HEADS, 12, 20)
    scorer = bias.scorer(16, 24)

    def score(*indices: Tensor) -> Tensor:
        return scorer(torch.tensor(0.5), *indices)

    every = torch.vmap(
        torch.vmap(
            torch.vmap(torch.vmap(score, (None, None, None, 0)), (None, None, 0, None)), (None, 0, None, None)
        ),
        (0, None, None, None),
    )
    found = every(torch.arange(2), torch.arange(HEADS), torch.arange(16), torch.arange(24))
    assert found.isfinite().all()
    seen = torch.arange(20) <= torch.arange(8, 20)[:, None]
    torch.testing.assert_close(found[:, :, :12, :20][:, :, seen], block[:, :, seen] + 0.5)


@pytest.mark.parametrize("scheme", ["bipe-alibi-auto", "bipe-alibi2", "bipe3-alibi", "bipe-sliding-rope"])
def test_a_bias_is_float32_whatever_torch_makes_by_default(
    make_model: Callable[..., BipeForCausalLM], scheme: str
) -> None:
    model = make_model(scheme)
    ids = torch.arange(12).repeat(2)[None]
    expected = model(ids).logits
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = model(ids).logits
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
