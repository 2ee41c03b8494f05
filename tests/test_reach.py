"""How far heads look back, against maximisation by ascent and attention weights that are written out."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bipe import SCHEMES, BipeForCausalLM
from bipe.models.reach import logit_gap

MakeModel = Callable[..., BipeForCausalLM]


def ball(rows: int, width: int) -> Tensor:
    points = torch.randn(rows, width, dtype=torch.float64)
    return points / points.norm(dim=1, keepdim=True)


def queries_and_keys(model: BipeForCausalLM, units: Tensor) -> tuple[Tensor, Tensor]:
    """What layer 0 makes of hidden states in given directions, `(n, H, K)` each, as large as they can be."""
    layer: Any = model.model.layers[0].double()
    normed = units * math.sqrt(units.shape[1]) * layer.input_layernorm.weight
    query, key = (
        projection(normed).unflatten(-1, (-1, layer.self_attn.head_dim))
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    return query, key.repeat_interleave(layer.self_attn.num_key_value_groups, dim=1)


@pytest.mark.parametrize("width", [32, 64])  # twice the head width, 2 * 16, and wider than that
def test_the_gap_is_the_largest_that_hidden_states_can_make(make_model: MakeModel, width: int) -> None:
    model = make_model("bipe-alibi", hidden_size=width, head_dim=16)
    layer: Any = model.model.layers[0]
    with torch.no_grad():
        layer.input_layernorm.weight.uniform_(0.5, 2)
    gap = logit_gap(layer, rounding=0)
    torch.manual_seed(0)
    best = torch.full((4,), -math.inf, dtype=torch.float64)
    own, other = (ball(256, width).requires_grad_() for _ in range(2))
    optimizer = torch.optim.Adam([own, other], lr=0.05)
    for _ in range(400):
        units = [part / part.norm(dim=1, keepdim=True).clamp(min=1) for part in (own, other)]
        (query, itself), (_, key) = (queries_and_keys(model, part) for part in units)
        rise = (query * (key - itself)).sum(-1) * layer.self_attn.scaling
        best = torch.maximum(best, rise.detach().amax(dim=0))
        # Each starting point climbs for the head of its number.
        chosen = rise[torch.arange(256), torch.arange(256) % 4]
        optimizer.zero_grad()
        (-chosen.sum()).backward()
        optimizer.step()
    assert (best <= gap * (1 + 1e-6)).all()
    torch.testing.assert_close(best, gap, rtol=1e-4, atol=0)


def test_biases_of_projections_widen_the_gap(make_model: MakeModel) -> None:
    model = make_model("bipe-alibi", attention_bias=True)
    layer: Any = model.model.layers[0]
    with torch.no_grad():
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.bias.normal_(std=3)
    gap = logit_gap(layer, rounding=0)
    torch.manual_seed(0)
    query, key = queries_and_keys(model, ball(2000, 32))
    logits = torch.einsum("ihk,jhk->hij", query, key) * layer.self_attn.scaling
    rise = (logits - logits.diagonal(dim1=1, dim2=2)[..., None]).amax(dim=(1, 2))
    assert (rise <= gap).all()
    assert (rise > 0.2 * gap).all()  # what so many draws come across, and no search


def crafted(make_model: MakeModel, size: float, **fields: Any) -> BipeForCausalLM:
    """One layer of one head of 16, whose queries and keys are the first half of the hidden state times `size`."""
    model = make_model(
        "alibi",
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        num_hidden_layers=1,
        inter={"type": "alibi", "scale": 512.0},  # a slope of 2
        **fields,
    )
    attention: Any = model.model.layers[0].self_attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.copy_(size * torch.eye(16, 32))
    return model


def test_the_bound_is_made_of_the_gap_the_rounding_and_the_weight_left_out(make_model: MakeModel) -> None:
    model = crafted(make_model, 5.0)
    layer: Any = model.model.layers[0]
    # u'P(v - u) is |Pu| - |Pu|^2 at most, which is 1/4; times 5^2, the radius squared, and 1 / sqrt(16).
    exact = 25 * 32 / 4 / 4
    assert logit_gap(layer, rounding=0).item() == pytest.approx(exact, rel=1e-4)
    # Two states, query and key, each by half a unit and twice; two matrices of rank 16 by their Frobenius norm.
    rounded = 2 * 25 * 32 * (4 + math.sqrt(16)) / 4 * torch.finfo(torch.bfloat16).eps
    assert logit_gap(layer).item() == pytest.approx(exact + rounded, rel=1e-4)
    left_out = 24 * math.log(2) + 31 * math.log(2)
    assert model.reach().bound.item() == math.floor((exact + rounded + left_out) / 2)


def test_the_bias_of_queries_counts_in_full(make_model: MakeModel) -> None:
    model = crafted(make_model, 3.0, attention_bias=True)
    layer: Any = model.model.layers[0]
    with torch.no_grad():
        layer.self_attn.q_proj.weight.zero_()
        layer.self_attn.q_proj.bias.copy_(torch.arange(16.0))
        layer.self_attn.k_proj.bias.fill_(7.0)  # is in both logits
    exact = 2 * 3 * math.sqrt(32) * torch.arange(16.0).norm().item() / 4
    assert logit_gap(layer, rounding=0).item() == pytest.approx(exact)


def test_half_precision_weights_are_taken_as_they_are(make_model: MakeModel) -> None:
    model = make_model("bipe-alibi", attention_bias=True).bfloat16()
    layer: Any = model.model.layers[0]
    with torch.no_grad():
        layer.self_attn.k_proj.weight.mul_(1e-3)
        layer.self_attn.k_proj.bias.fill_(1.0)  # would swallow the weights in bfloat16
    gap = logit_gap(layer, rounding=0)
    assert (gap > 0).all()
    torch.testing.assert_close(logit_gap(layer.float(), rounding=0), gap)


def test_dropout_in_an_adapter_does_not_count(make_model: MakeModel) -> None:
    model = make_model("bipe-alibi").train()
    layer: Any = model.model.layers[0]
    expected = logit_gap(layer)
    layer.self_attn.q_proj = torch.nn.Sequential(torch.nn.Dropout(0.5), layer.self_attn.q_proj)
    torch.testing.assert_close(logit_gap(layer), expected, rtol=0, atol=0)
    assert layer.self_attn.q_proj[0].training


def test_weights_that_are_no_numbers_are_refused(make_model: MakeModel) -> None:
    model = make_model("bipe-alibi")
    torch.nn.init.constant_(model.model.layers[1].self_attn.k_proj.weight, math.nan)
    with pytest.raises(ValueError, match="not all finite"):
        model.reach()


def test_a_flat_head_reaches_back_to_the_first_token_and_no_padding(make_model: MakeModel) -> None:
    model = make_model("bipe-alibi", inter={"type": "alibi", "scale": 1e-6})
    mask = torch.ones(2, 60, dtype=torch.int64)
    mask[:, :25] = 0
    mask[0, 25:] = 0
    reach = model.reach(torch.randint(0, 12, (2, 60)), mask)
    assert reach.needed is not None
    assert (reach.needed.tokens == 34).all()


def test_no_weights_leave_no_gap(make_model: MakeModel) -> None:
    model = make_model("bipe-alibi")
    layer: Any = model.model.layers[0]
    torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    assert logit_gap(layer).tolist() == [0.0] * 4


def test_the_bound_follows_the_slopes(make_model: MakeModel) -> None:
    steep, flat = (
        make_model("bipe-alibi", inter={"type": "alibi", "scale": scale}).reach().bound
        for scale in (9600.0, 96.0)
    )
    assert steep.shape == (2, 4)
    assert torch.isfinite(flat).all() and (flat >= 90 * steep).all() and (flat[:, 1:] > flat[:, :-1]).all()
    assert make_model("bipe-alibi", inter={"type": "alibi", "scale": 0.0}).reach().bound.isinf().all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_distances_are_those_of_the_weights(make_model: MakeModel, scheme: str) -> None:
    model = make_model(scheme, attn_implementation="eager")
    torch.manual_seed(1)
    ids = torch.randint(0, 12, (2, 300))
    mask = torch.ones_like(ids)
    mask[1, :40] = 0
    documents = (torch.arange(300) >= 200).long().expand(2, -1)
    reach = model.reach(ids, mask, documents, share=0.9)

    positions = model.positions(ids, mask, documents)
    weights = model(ids, attention_mask=mask, document_ids=documents, output_attentions=True).attentions
    late = mask.bool() & (2 * positions.token >= positions.token.max())
    assert reach.mass is not None
    for index, found in ((positions.segment, reach.mass.segments), (positions.token, reach.mass.tokens)):
        distance = index[:, :, None] - index[:, None, :]
        for layer in range(2):
            for head in range(4):
                counted = [
                    weights[layer][row, head][late[row]][distance[row][late[row]] <= far].sum().item()
                    for far in (found[layer, head] - 1, found[layer, head])
                    for row in range(2)
                ]
                everything = int(late.sum())
                assert sum(counted[:2]) < 0.9 * everything * (1 + 1e-5)
                assert sum(counted[2:]) >= 0.9 * everything * (1 - 1e-5)


def test_what_a_text_needs_is_within_the_bound(make_model: MakeModel) -> None:
    model = make_model("bipe-alibi", inter={"type": "alibi", "scale": 960.0})
    torch.manual_seed(1)
    ids = torch.randint(0, 12, (2, 700))
    reach = model.reach(ids)
    assert reach.needed is not None and reach.mass is not None
    assert (reach.needed.segments <= reach.bound).all()
    assert (reach.mass.segments <= reach.needed.segments).all()
    assert (reach.mass.tokens <= reach.needed.tokens).all() and (reach.needed.tokens < 700).all()
    # The farthest token that a head needs is in a segment that it needs.
    positions, last = model.positions(ids), 699
    near = (positions.segment[:, last:] - positions.segment)[..., None, None] <= reach.needed.segments
    assert (near.sum(dim=1) - 1 <= reach.needed.tokens).all()


def test_a_scheme_that_does_not_decay_reaches_everything(make_model: MakeModel) -> None:
    model = make_model("bipe-rope").train()
    model.model.layers[1].eval()
    reach = model.reach(torch.randint(0, 12, (1, 50)))
    assert reach.bound.isinf().all() and reach.needed is not None and reach.needed.tokens.isinf().all()
    assert model.training and model.model.layers[0].training and not model.model.layers[1].training
    assert not model.model.layers[0].self_attn._forward_pre_hooks


def test_a_share_outside_the_unit_interval_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        make_model("rope").reach(torch.zeros(1, 4, dtype=torch.int64), share=1.0)
