"""segment_local against attention over all keys, in float64, where only the keys left out make a difference."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bipe import bilevel_positions
from bipe.attention import ATTENTIONS, Visible
from bipe.attention.blocks import Block, _for_kernel, attend_in_blocks
from bipe.attention.segment_local import local_blocks, near_blocks
from bipe.encodings.inter import Relation
from bipe.encodings.inter.alibi import AlibiBias

LEFT_OUT = 2.0**-24


@dataclass
class Case:
    """Attention of the last `targets` of `sources` tokens."""

    query: Tensor
    key: Tensor
    value: Tensor
    direction: Tensor
    bias: AlibiBias
    visible: Visible
    seen: Tensor
    scaling: float

    def blocks(self, rows: int) -> list[Block]:
        return local_blocks(self.query, self.key, self.bias, self.visible, self.scaling, rows)

    def local(self, rows: int) -> tuple[Tensor, ...]:
        parts = [part.clone().requires_grad_() for part in (self.query, self.key, self.value)]
        blocks = self.blocks(rows)
        mixed = attend_in_blocks(*parts, self.bias, self.visible, blocks, scaling=self.scaling)
        return mixed.detach(), *torch.autograd.grad(mixed, parts, self.direction)

    def full(self) -> tuple[Tensor, ...]:
        """Written out; also the weights."""
        parts = [part.clone().requires_grad_() for part in (self.query, self.key, self.value)]
        query, key, value = parts
        logits = query @ key.transpose(-1, -2) * self.scaling
        distance = self.bias.key_index[:, None, None, :] - self.bias.query_index[:, None, :, None]
        # The bias is float32's, as its rounding is no key left out.
        logits = logits + (self.bias.slopes[:, None, None] * distance.float()).double()
        weights = logits.masked_fill(~self.seen[:, None], -1e300).softmax(-1)
        mixed = weights @ value
        return mixed.detach(), *torch.autograd.grad(mixed, parts, self.direction), weights.detach()


def make_case(
    segments: list[int],
    slopes: list[float],
    *,
    targets: int | None = None,
    size: float = 1.0,
    seed: int = 0,
    documents: list[int] | None = None,
    pads: int = 0,
) -> Case:
    """Tokens in segments of the given lengths, in two rows of which the second has pads on its left."""
    sources, heads = sum(segments), len(slopes)
    targets = sources if targets is None else targets
    draw = torch.Generator().manual_seed(seed)

    def normal(tokens: int) -> Tensor:
        return torch.randn(2, heads, tokens, 8, generator=draw, dtype=torch.float64)

    ends = torch.zeros(sources, dtype=torch.bool)
    ends[torch.tensor(segments).cumsum(0) - 1] = True
    ids = torch.zeros(sources, dtype=torch.int64)
    for border in documents or []:
        ids[border:] += 1
    real = torch.ones(2, sources, dtype=torch.bool)
    real[1, :pads] = False
    positions = bilevel_positions(ends.expand(2, -1), ids.expand(2, -1), real)
    past = sources - targets
    column = torch.arange(sources)
    seen = (column[past:, None] >= column) & (ids[past:, None] == ids)
    return Case(
        query=size * normal(targets),
        key=size * normal(sources),
        value=normal(sources),
        direction=normal(targets) * real[:, None, past:, None],
        bias=AlibiBias(torch.tensor(slopes), positions.segment[:, past:], positions.segment),
        visible=Visible(
            targets, sources, past, ids.expand(2, -1) if documents else None, real if pads else None
        ),
        seen=seen & real[:, None, :],
        scaling=0.35,
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = draw(st.sampled_from(["mixed", "ones", "endless"]))
    tokens = draw(st.integers(1, 150))
    if shape == "mixed":
        segments = draw(st.lists(st.integers(1, 12), min_size=1, max_size=30))
    else:
        segments = [1] * tokens if shape == "ones" else [tokens]
    sources = sum(segments)
    slopes = draw(st.lists(st.sampled_from([0.0, 0.01, 0.4, 1.5, 6.0, 24.0, 100.0]), min_size=1, max_size=4))
    return make_case(
        segments,
        slopes,
        targets=draw(st.integers(1, sources)),
        size=draw(st.sampled_from([0.01, 1.0, 3.0, 30.0])),
        seed=draw(st.integers(0, 9)),
        documents=sorted(draw(st.lists(st.integers(1, sources), max_size=3))),
        pads=draw(st.integers(0, sources - 1)),
    )


def norm(tensor: Tensor) -> float:
    return float(tensor.norm(dim=-1).max())


@settings(max_examples=150)
@given(case=cases(), rows=st.sampled_from([1, 4, 16, 64, 128]))
def test_outputs_and_gradients_are_those_of_all_keys(case: Case, rows: int) -> None:
    found, expected = case.local(rows), case.full()
    counted = case.direction.abs().sum(-1, keepdim=True) > 0  # not the padded queries
    noise = 1e-12 * (1 + norm(case.query) * norm(case.key)) * (1 + norm(case.query) + norm(case.key))
    largest = float(case.value.abs().max())
    assert ((found[0] - expected[0]) * counted).abs().max() <= 2 * LEFT_OUT * largest + noise
    column = float(expected[4].sum(dim=-2).max())
    moved = norm(case.direction) * norm(case.value) * case.scaling
    bounds = (
        8 * LEFT_OUT * moved * norm(case.key),
        8 * LEFT_OUT * moved * norm(case.query) * (1 + column),
        4 * LEFT_OUT * norm(case.direction) * (1 + column),
    )
    for name, one, other, bound in zip("qkv", found[1:], expected[1:4], bounds, strict=True):
        assert (one - other).abs().max() <= bound + noise * (1 + column), name


@settings(max_examples=60)
@given(case=cases(), rows=st.sampled_from([4, 16]))
def test_what_is_left_out_weighs_next_to_nothing_in_rows_and_columns(case: Case, rows: int) -> None:
    weights = left_out(case, rows)
    assert weights.sum(dim=-1).max() <= LEFT_OUT
    assert weights.sum(dim=-2).max() <= LEFT_OUT


def left_out(case: Case, rows: int) -> Tensor:
    """`(B, H, T, S)`, the weights of the keys that no block looks at."""
    weights = case.full()[4] * (case.direction.abs().sum(-1, keepdim=True) > 0)
    for block in case.blocks(rows):
        block.of_queries(weights)[..., block.columns] = 0
    return weights


def test_many_far_keys_together_weigh_next_to_nothing() -> None:
    """Each of 500 weighs a little less than all of them may."""
    case = make_case([500, 12], [1 - math.log(LEFT_OUT)], size=0.0)
    assert 0 < case.full()[4][:, :, -1, 0].max() < LEFT_OUT
    assert left_out(case, 4).sum(dim=-1).max() <= LEFT_OUT


def near_pairs(case: Case, side: int) -> Tensor:
    """`(B, H, T, S)` bool, the pairs in blocks that are looked at."""
    near = near_blocks(case.query, case.key, case.bias, case.visible, case.scaling, side)
    assert near.shape == (2, case.query.shape[1], *(-(-n // side) for n in case.seen.shape[1:]))
    pairs = near.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    return pairs[:, :, : case.seen.shape[1], : case.seen.shape[2]]


@settings(max_examples=100)
@given(case=cases(), side=st.sampled_from([4, 16, 64]), falls=st.booleans())
def test_square_blocks_leave_out_what_weighs_next_to_nothing(case: Case, side: int, falls: bool) -> None:
    if falls:
        draw = torch.Generator().manual_seed(side)
        index = case.bias.key_index + torch.randint(-3, 4, case.bias.key_index.shape, generator=draw)
        case.bias = AlibiBias(case.bias.slopes, index[:, case.visible.past :], index)
    weights = case.full()[4] * (case.direction.abs().sum(-1, keepdim=True) > 0)
    weights = weights.masked_fill(near_pairs(case, side), 0)
    assert weights.sum(dim=-1).max() <= LEFT_OUT
    assert weights.sum(dim=-2).max() <= LEFT_OUT


def test_square_blocks_of_steep_heads_grow_with_the_text() -> None:
    pairs = {}
    for count in (100, 200):
        case = make_case([8] * count, [0.0, 0.5, 48.0])
        pairs[count] = (near_pairs(case, 16) & case.seen[:, None]).sum(dim=(0, 2, 3)).tolist()
    assert pairs[200][0] == 1600 * 1601
    assert pairs[200][1] <= 2.8 * pairs[100][1]
    assert pairs[200][2] <= 2.05 * pairs[100][2]
    assert pairs[200][2] < 0.03 * pairs[200][0]


def test_finding_square_blocks_waits_for_no_device() -> None:
    """A tensor on the device `meta` has no values to wait for."""
    case = make_case([8] * 100, [0.5, 48.0], documents=[400], pads=130)
    visible, device = case.visible, torch.device("meta")
    assert visible.documents is not None
    assert visible.real is not None
    index = case.bias.key_index.to(device)
    bias = AlibiBias(case.bias.slopes.to(device), index, index)
    visible = Visible(800, 800, 0, visible.documents.to(device), visible.real.to(device), device)
    near = near_blocks(case.query.to(device), case.key.to(device), bias, visible, case.scaling)
    assert visible.block_mask(near).kv_indices.shape == (2, 2, 7, 7)


def test_a_far_key_with_a_huge_score_is_not_left_out() -> None:
    """Its logit beats 300 segments of a slope of 1, which leaves out all its neighbours in a plain text."""
    case = make_case([2] * 300, [1.0], seed=1)
    plain = min(block.columns.start for block in case.blocks(32) if block.rows.start >= 512)
    assert plain > 300
    case.query[:, :, -1] = 40.0
    case.key[:, :, 3] = 40.0 / 8
    case.key[:, :, -1] = 0.0
    expected = case.full()
    assert expected[4][:, :, -1, 3].min() > 0.9
    assert case.blocks(32)[-1].columns.start <= 3
    torch.testing.assert_close(case.local(32)[0], expected[0], rtol=0, atol=1e-6)


def test_cost_grows_with_the_text() -> None:
    """The pairs of queries and keys that are looked at, of steep and flat heads; a slope of 0 sees all."""
    pairs = {}
    for count in (50, 100, 200):
        blocks = make_case([8] * count, [0.0, 0.5, 48.0]).blocks(64)
        pairs[count] = [
            sum(
                (b.rows.stop - b.rows.start) * (b.columns.stop - b.columns.start)
                for b in blocks
                if b.heads.start <= h < b.heads.stop
            )
            for h in range(3)
        ]
    assert pairs[200][0] >= 3.8 * pairs[100][0]
    assert pairs[200][2] <= 2.05 * pairs[100][2]
    assert pairs[200][1] <= 2.8 * pairs[100][1]


def test_documents_leave_out_each_other_whatever_the_slope() -> None:
    blocks = make_case([8] * 100, [0.0], documents=[400]).blocks(64)
    assert {block.columns.start for block in blocks if block.rows.start >= 448} == {400}


def test_a_padded_query_gets_zero() -> None:
    case = make_case([4] * 150, [1.5, 6.0], pads=130)
    layer = SimpleNamespace(num_key_value_groups=1, training=False)
    mixed, _ = ATTENTIONS["segment_local"](
        layer,
        *(part.float() for part in (case.query, case.key, case.value)),
        case.visible,
        relation=Relation(bias=case.bias),
        scaling=case.scaling,
    )
    assert not mixed[1, :130].any()
    torch.testing.assert_close(
        mixed[1, 130:], case.full()[0][1].transpose(0, 1)[130:].float(), rtol=1e-4, atol=1e-5
    )


def test_an_index_that_falls_inside_a_document_is_refused() -> None:
    case = make_case([4] * 60, [1.5])
    index = case.bias.key_index.clone()
    index[:, 100:] -= 5
    case.bias.key_index = index
    with pytest.raises(ValueError, match="falls inside a document"):
        case.blocks(64)


def test_negative_slopes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        make_case([4] * 60, [1.5, -1.5])


@pytest.mark.parametrize("relation", [Relation(), Relation(query_rotation=None)])
def test_a_relation_without_a_decaying_bias_is_refused(relation: Relation) -> None:
    case = make_case([4] * 60, [1.5])
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        ATTENTIONS["segment_local"](
            SimpleNamespace(num_key_value_groups=1),
            case.query,
            case.key,
            case.value,
            case.visible,
            relation=relation,
            scaling=1.0,
        )


def test_float32_is_near_float64() -> None:
    """At the size of the specification's claim: 4,096 tokens, 12 heads of 64, 25 tokens a segment, scale 96."""
    from bipe.encodings.inter.alibi import alibi_slopes

    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 12, 4096, 64, generator=draw) for _ in range(3))
    segment = (torch.arange(4096) // 25)[None]
    bias = AlibiBias(torch.tensor([96 * slope for slope in alibi_slopes(12)]), segment, segment)
    layer = SimpleNamespace(num_key_value_groups=1, training=False)
    mixed, _ = ATTENTIONS["segment_local"](
        layer, query, key, value, Visible(4096, 4096), relation=Relation(bias=bias), scaling=1 / 8
    )
    largest = 0.0
    for head in range(12):
        logits = query[0, head].double() @ key[0, head].double().T / 8
        logits += bias.slopes[head].double() * (segment - segment.T)
        logits.masked_fill_(torch.ones(4096, 4096).triu(1).bool(), -math.inf)
        exact = logits.softmax(-1) @ value[0, head].double()
        largest = max(largest, float((mixed[0, :, head] - exact).abs().max()))
    assert largest <= 3e-6


def test_bfloat16_is_no_further_off_than_full_attention_in_it() -> None:
    from bipe.benchmarks.attention import drawn_layers

    (layer,) = drawn_layers()(1024)
    parts = [part.bfloat16() for part in (layer.query, layer.key, layer.value)]
    exact = replace(layer, query=parts[0], key=parts[1], value=parts[2]).exact()
    query, key, value = parts
    mask = layer.make_mask().bfloat16()
    full = (query @ key.transpose(2, 3) * layer.scaling + mask).softmax(dim=-1) @ value
    local = layer.attend("segment_local", parts)
    assert local.dtype == torch.bfloat16
    errors = [(mixed.double() - exact).abs() for mixed in (local, full)]
    assert errors[0].norm() < errors[1].norm() and errors[0].max() < errors[1].max()


def test_a_second_derivative_is_refused() -> None:
    case = make_case([4] * 20, [1.5])
    query = case.query.clone().requires_grad_()
    blocks = case.blocks(16)
    mixed = attend_in_blocks(query, case.key, case.value, case.bias, case.visible, blocks, scaling=1.0)
    (gradient,) = torch.autograd.grad((mixed**2).sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_mask_cast_to_half_precision_has_no_infinity() -> None:
    """As for kernels of a GPU."""
    mask = torch.tensor([0.0, -12.375, torch.finfo(torch.float32).min])
    for dtype in (torch.float16, torch.bfloat16):
        cast = _for_kernel(mask, torch.empty(1, dtype=dtype, device="meta"))
        assert cast.dtype == dtype and cast.isfinite().all()
