"""Biases at any distance against their formulas, how far they reach, and where what is learned starts."""

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from bipe import BilevelPositions, BipeForCausalLM

from .formula_models import config_of, make
from .formulas import FORMULAS, SPECS, Place, Spec, Text, exact_bucket, kerple_fall, slope_of


def bias_of(model: BipeForCausalLM, queries: list[int], keys: list[int]) -> Tensor:
    """The bias of queries and keys that are the first tokens of the segments given, `(H, t, s)`."""
    query, key = (
        BilevelPositions(torch.tensor([row]), torch.zeros(1, len(row), dtype=torch.long), torch.tensor([row]))
        for row in (queries, keys)
    )
    with torch.no_grad():
        bias = model.model.inter(query, key, torch.float32).bias
        block = cast("Any", bias).block(slice(0, len(queries)), slice(0, len(keys)))
    assert block.dtype == torch.float32
    return block[0]


@pytest.mark.parametrize(
    ("buckets", "max_distance"),
    [(32, 128), (32, 1000), (32, 17), (8, 64), (16, 100), (2, 2), (64, 2000), (20, 333), (4, 9), (32, 256)],
)
def test_t5_buckets_are_those_of_transformers(buckets: int, max_distance: int) -> None:
    model = make({"type": "t5", "buckets": buckets, "max_distance": max_distance})
    table = cast("Any", model.model.inter).table
    with torch.no_grad():
        table.copy_(torch.arange(buckets)[:, None].expand_as(table))
    ours = bias_of(model, [3000], list(range(3001)))[0, 0].flip(0).long()
    theirs = cast("Any", T5Attention)._relative_position_bucket(
        -torch.arange(3001), bidirectional=False, num_buckets=buckets, max_distance=max_distance
    )
    exact = torch.tensor([exact_bucket(d, buckets, max_distance) for d in range(3001)])
    wrong = (ours != exact).nonzero().flatten().tolist()
    assert not wrong, f"distances {wrong}: {ours[wrong].tolist()} for {exact[wrong].tolist()}"
    wrong = (ours != theirs).nonzero().flatten().tolist()
    assert not wrong, f"distances {wrong}: {ours[wrong].tolist()}, transformers {theirs[wrong].tolist()}"


@pytest.mark.parametrize(
    "name",
    ["alibi-factor", "alibi-learned", "alibi2", "alibi2-learned", "kerple-log", "kerple-power", "fire-near"],
)
def test_bias_of_far_tokens_is_the_formula(name: str) -> None:
    model = make(SPECS[name])
    inter = SPECS[name]
    queries, keys = [0, 1, 77, 999_983, 1_000_000], [0, 1, 5, 76, 500_000, 999_982, 999_983]
    bias = bias_of(model, queries, keys)
    places: list[Place | None] = [Place(n, 0, n, 0) for n in (*keys, *queries)]
    zeros = [[[0.0] * 8] * 4] * len(places)
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    text = Text(inter, 4, weights, places, zeros, zeros, [])
    for head in range(4):
        for row, n in enumerate(queries):
            for column, m in enumerate(keys):
                if m <= n:
                    expected = FORMULAS[inter["type"]](text, head, len(keys) + row, column)
                    assert bias[head, row, column].item() == pytest.approx(expected, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("nats", [0.01, 1.0, 7.0, 30.0])
@pytest.mark.parametrize("name", ["alibi", "alibi-learned", "alibi-factor", "kerple-log", "kerple-power"])
def test_reach_is_the_last_distance_that_has_not_fallen_by_more(name: str, nats: float) -> None:
    model = make(SPECS[name])
    inter = SPECS[name]
    positions = BilevelPositions(*(torch.zeros(1, 1, dtype=torch.long) for _ in range(3)))
    with torch.no_grad():
        reach = cast("Any", model.model.inter(positions, positions, torch.float32).bias).reach(nats)
    assert reach.shape == (4,)
    weights = {name: value.detach().double() for name, value in model.named_parameters()}

    def fall(head: int, distance: float) -> float:
        if inter["type"] == "kerple":
            first, second = weights["model.inter.raw"].tolist()
            return kerple_fall(inter.get("kernel", "log"), distance, first[head], second[head])
        slope = inter["scale"] * slope_of(head, 4)
        if inter.get("learned"):
            slope = math.exp(weights["model.inter.log_slopes"][head].item())
        return slope * distance / inter.get("factor", 1.0)

    for head, value in enumerate(reach.double().tolist()):
        assert value >= 0
        beyond = math.floor(value) + 1
        if math.isfinite(value):
            assert fall(head, beyond) > nats * (1 - 1e-6)
        near = min(value, 1e300) * (1 - 1e-4) - 1
        assert near <= 0 or fall(head, near) <= nats


def test_learned_parameters_start_as_the_options_say() -> None:
    def start(inter: Spec) -> dict[str, Tensor]:
        inter_of = BipeForCausalLM(config_of(inter)).model.inter
        return {name: value.detach().double() for name, value in inter_of.named_parameters()}

    slopes = torch.tensor([slope_of(head, 4) for head in range(4)], dtype=torch.float64)
    torch.testing.assert_close(start(SPECS["alibi-learned"])["log_slopes"].exp(), 3 * slopes)
    torch.testing.assert_close(start(SPECS["alibi2-learned"])["log_slopes"].exp(), 4 * slopes)
    torch.testing.assert_close(start(SPECS["alibi2-learned"])["log_inside"].exp(), 0.5 * slopes)
    logarithms = start({"type": "fire", "c": 0.25, "threshold": 20.0})["logarithms"]
    torch.testing.assert_close(logarithms.exp(), torch.tensor([0.25, 20.0], dtype=torch.float64))


def test_a_kernel_starts_spread_over_the_heads() -> None:
    """From head to head r1 rises and r2 falls."""
    for kernel, shape in (("log", torch.exp), ("power", lambda raw: 2 * raw.sigmoid())):
        first, second = BipeForCausalLM(config_of({"type": "kerple", "kernel": kernel})).model.inter.raw
        torch.testing.assert_close(first.exp(), torch.tensor([0.25, 0.75, 1.25, 1.75]))
        torch.testing.assert_close(shape(second), torch.tensor([0.875, 0.625, 0.375, 0.125]))
