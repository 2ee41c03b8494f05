"""Positions that are drawn: RoPE at random gaps, and offsets that take random rows of their table."""

import math
from itertools import pairwise
from typing import Any, cast

import pytest
import scipy.stats
import torch
from torch import Tensor

from bipe import BilevelPositions, BipeForCausalLM

from .formula_models import make, random_ids
from .formulas import Spec

# Randomized RoPE


def stretched(inter: Spec, index: Tensor, training: bool = False) -> Tensor:
    model = make({"type": "randomized_rope", **inter}).train(training)
    return cast("Any", model.model.inter).stretched(index)


def gaps(seed: int, stretch: float, count: int) -> Tensor:
    index = torch.arange(count + 1)[None]
    return stretched({"evaluation_stretch": stretch, "seed": seed}, index)[0].diff()


def test_randomized_rope_is_rope_where_nothing_is_stretched_and_only_there() -> None:
    ids = random_ids(60, 2, seed=13)
    stretch = {"type": "randomized_rope", "evaluation_stretch": 4.0}
    with torch.no_grad():
        plain, random, stretched = (
            make(inter)(ids).logits for inter in ({"type": "rope"}, {"type": "randomized_rope"}, stretch)
        )
        training = make({"type": "randomized_rope"}).train()(ids).logits
    assert torch.equal(plain, random)
    assert not torch.allclose(plain, stretched, atol=1e-2)
    assert not torch.allclose(plain, training, atol=1e-2)


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("stretch", [1.5, 4.0, 16.0])
def test_randomized_gaps_are_geometric_and_independent(seed: int, stretch: float) -> None:
    drawn, count = gaps(seed, stretch, 30_000), 30_000
    assert drawn.min() == 1
    longest = next(k for k in range(1, 500) if count * (1 - 1 / stretch) ** k < 20)
    chances = [(1 - 1 / stretch) ** (k - 1) / stretch for k in range(1, longest)]
    chances.append(1 - sum(chances))
    seen = torch.bincount(drawn.clamp(max=longest), minlength=longest + 1)[1:].tolist()
    assert scipy.stats.chisquare(seen, [count * chance for chance in chances]).pvalue > 1e-4
    cut = max(2, round(stretch))
    short = (drawn < cut).long()
    for lag in (1, 2, 3, 64, 1024):
        table = torch.bincount(2 * short[:-lag] + short[lag:], minlength=4).view(2, 2)
        assert scipy.stats.chi2_contingency(table.numpy()).pvalue > 1e-4  # pyright: ignore


def test_randomized_gaps_of_another_seed_are_others_and_not_the_same_ones_moved() -> None:
    first = gaps(0, 4.0, 5000)
    agreeing = sum((0.75 ** (k - 1) / 4) ** 2 for k in range(1, 200))
    for seed in (1, 2, 3, 2**31, 2**32):
        second = gaps(seed, 4.0, 5000)
        for move in range(-3, 4):
            same = (first == second.roll(move)).double().mean().item()
            assert same == pytest.approx(agreeing, abs=0.04), (seed, move)


def test_randomized_positions_depend_on_seed_and_index_alone() -> None:
    inter = {"evaluation_stretch": 4.0, "seed": 3}
    whole = stretched(inter, torch.arange(3000)[None])
    assert whole.dtype == torch.int64
    assert whole[0, 0] == 0
    assert (whole.diff() > 0).all()
    index = torch.randint(0, 3000, (3, 50), generator=torch.Generator().manual_seed(0))
    assert torch.equal(stretched(inter, index), whole[0][index])
    assert torch.equal(stretched(inter, torch.arange(17)[None]), whole[:, :17])
    torch.manual_seed(99)
    model = make({"type": "randomized_rope", **inter})
    late = cast("Any", model.model.inter).stretched(torch.tensor([[2999]]))
    assert torch.equal(late, whole[:, -1:])
    small = cast("Any", model.model.inter).stretched(torch.tensor([[0, 1], [5, 7]]))
    assert torch.equal(small, whole[0][torch.tensor([[0, 1], [5, 7]])])


def test_randomized_evaluation_leaves_torchs_generator_alone() -> None:
    model = make({"type": "randomized_rope", "evaluation_stretch": 4.0})
    state = torch.get_rng_state()
    with torch.no_grad():
        model(random_ids(30))
    assert torch.equal(state, torch.get_rng_state())


def test_randomized_training_draws_each_row_of_each_forward_anew() -> None:
    inter, index = {"stretch": 16.0}, torch.arange(400).expand(4, 400)
    model = make({"type": "randomized_rope", **inter}).train()
    stretch = cast("Any", model.model.inter).stretched
    torch.manual_seed(0)
    first, second = stretch(index), stretch(index)
    torch.manual_seed(0)
    assert torch.equal(first, stretch(index))
    rows = torch.cat((first, second))
    assert len({tuple(row) for row in rows.tolist()}) == 8
    assert (rows.diff() > 0).all()
    means = rows.diff().double().mean(dim=1)
    assert (means >= 1).all() and (means <= 16 * 1.3).all()
    many = torch.cat([stretch(torch.arange(2000).expand(64, 2000)) for _ in range(4)])
    means = many.diff().double().mean(dim=1)
    assert means.min() < 4 and means.max() > 10
    assert means.max() <= 16 * 1.15  # five standard deviations


def test_mean_gaps_of_randomized_training_are_even_in_their_logarithm() -> None:
    means = stretched({"stretch": 16.0}, torch.full((1000, 1), 2000), training=True)[:, 0] / 2000
    assert scipy.stats.kstest((means.log() / math.log(16)).tolist(), "uniform").pvalue > 1e-3


def test_randomized_training_gives_equal_indices_equal_positions_and_a_seed_repeats_the_output() -> None:
    model = make({"type": "randomized_rope", "stretch": 8.0}).train()
    index = torch.tensor([[0, 0, 1, 1, 1, 2, 5, 5]])
    drawn = cast("Any", model.model.inter).stretched(index)[0].tolist()
    assert drawn[0] == drawn[1] and drawn[2] == drawn[3] == drawn[4] and drawn[6] == drawn[7]
    assert drawn[0] < drawn[2] < drawn[5] < drawn[6] - 2
    ids = random_ids(60, 2)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model(ids).logits.detach())
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


# Randomized offsets


def rows_of(model: BipeForCausalLM, offset: Tensor) -> Tensor:
    """The rows of the table that offsets are given, found by filling each row with its number."""
    table = cast("Any", model.model.intra).embedding.weight
    with torch.no_grad():
        table.copy_(torch.arange(len(table))[:, None].expand_as(table))
        # Each segment starts at an offset of 0.
        segment = (offset == 0).long().cumsum(dim=1) - 1
        token = torch.arange(offset.shape[1]).expand_as(offset)
        vectors = model.model.intra(BilevelPositions(segment, offset, token), torch.float32)
    assert vectors is not None
    assert (vectors == vectors[..., :1]).all()
    return vectors[..., 0].long()


def segments_of(*lengths: int) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


@pytest.mark.parametrize("trained", [None, 0, 5, 100])
def test_randomized_offsets_are_themselves_in_evaluation(trained: int | None) -> None:
    intra = {"type": "randomized", "max_offset": 20}
    model = make({"type": "zero"}, intra=intra, max_trained_offset=trained)
    offset = segments_of(30, 5, 1, 8).expand(2, -1)
    assert torch.equal(rows_of(model, offset), offset.clamp(max=19))


def test_randomized_offsets_increase_at_random_in_training_and_use_all_rows() -> None:
    model = make({"type": "zero"}, intra={"type": "randomized", "max_offset": 20}).train()
    offset = segments_of(6, 5, 1, 6).expand(8, -1)
    used: set[int] = set()
    drawn: set[tuple[int, ...]] = set()
    for _ in range(100):
        for row, offsets in zip(rows_of(model, offset).tolist(), offset.tolist(), strict=True):
            mapping: dict[int, int] = {}
            for chosen, at in zip(row, offsets, strict=True):
                assert mapping.setdefault(at, chosen) == chosen
            chosen = [mapping[at] for at in range(6)]
            assert chosen[0] == 0
            assert all(a < b or a == b == 19 for a, b in pairwise(chosen))
            drawn.add(tuple(chosen))
            used.update(chosen)
    assert used == set(range(20))
    assert len(drawn) > 100


def test_randomized_offsets_of_a_segment_longer_than_the_table_end_in_its_last_row() -> None:
    model = make({"type": "zero"}, intra={"type": "randomized", "max_offset": 6}).train()
    for _ in range(20):
        row = rows_of(model, segments_of(12, 3)[None])[0].tolist()
        assert row[0] == row[12] == 0
        assert row[6:12] == [5] * 6
        assert all(a < b or a == b == 5 for a, b in pairwise(row[:12]))
