"""Every bound that `docs/theory.md` names, on built models."""

import json
import math
import random
import re
from pathlib import Path

import pytest
import torch

from bipe.theory.binfa import alternating, counting, random_binfa
from bipe.theory.compile import compile_binfa, compile_nfa
from bipe.theory.gates import TOLERANCE
from bipe.theory.margin import (
    longest_input,
    margins,
    needed_sharpness,
    reading_error,
    smallest_sharpness,
)
from bipe.theory.model import Block, CompiledAutomaton
from bipe.theory.nfa import random_nfa
from bipe.theory.verify import random_word
from bipe_cli.main import app, run

SYMBOLS = ("a", "b", ".")


def log2(number: int) -> int:
    """Rounded up."""
    return math.ceil(math.log2(number))


def code(length: int) -> int:
    """C, the channels of the code of `length` offsets."""
    bits = max(1, log2(length))
    return bits + log2(length) * (bits + 1)


def head_size(model: CompiledAutomaton) -> int:
    heads = [block.maps[0].out_features for block in model.blocks if block.maps is not None]
    return max(heads, default=0)


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (1, 4), (4, 1), (2, 2), (3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize(("offsets", "segments"), [(1, 1), (2, 3), (5, 2), (16, 16), (17, 33)])
def test_two_levels_are_as_large_as_bounded(outer: int, inner: int, offsets: int, segments: int) -> None:
    model = compile_binfa(random_binfa(random.Random(0), outer, inner), offsets, segments)
    largest = max(outer, inner)
    assert model.depth == log2(offsets) + log2(segments + 1) + 2
    assert model.width == outer**2 + inner**2 + largest**2 + outer + inner + 3 + code(offsets)
    assert head_size(model) == 2 * max(2, log2(segments + 1)) + 2 * math.ceil(max(1, log2(offsets)) / 2)
    assert model.hidden_width <= 2 * largest**3 + 4 * largest**2 + 2 * (largest + 1)


@pytest.mark.parametrize("states", [1, 2, 5, 9])
@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_one_level_is_as_large_as_bounded(states: int, length: int) -> None:
    model = compile_nfa(random_nfa(random.Random(0), states, SYMBOLS), length)
    assert model.depth == log2(length) + 1
    assert model.width == 2 * states**2 + states + code(length)
    assert model.hidden_width <= 2 * states**3 + 4 * states**2
    if length > 1:
        assert head_size(model) == 2 * math.ceil(log2(length) / 2)


def test_the_flat_model_knows_absolute_positions_only() -> None:
    model = compile_nfa(random_nfa(random.Random(0), 3, SYMBOLS), 16)
    ids = model.ids(["a", "b", "."] * 5)
    assert ids.shape == (1, 15) and not model.has_start and model.turning == 0
    states, (cosine, sine) = model.embedded(ids)
    assert (cosine == 1).all() and (sine == 0).all()
    assert states.shape == (1, 15, model.width)


def built_models() -> list[CompiledAutomaton]:
    two = [compile_binfa(counting(3, *"a.b"), *sizes) for sizes in ((2, 2), (5, 9), (16, 16), (3, 100))]
    return [*two, compile_nfa(counting(2, *"a.b").flattened(), 50)]


@pytest.mark.parametrize("model", built_models())
def test_margins_are_as_large_as_bounded(model: CompiledAutomaton) -> None:
    found = {row.layer: row for row in margins(model)}
    levels = log2(model.max_offset)
    assert sorted(found) == [n for n, block in enumerate(model.blocks) if block.maps is not None]
    for layer, row in found.items():
        assert row.margin >= (2 if layer < levels else 1) - row.rounding
        assert row.rounding < 1e-4
        assert row.needed < row.sharpness
        assert row.longest > 2**17 * len(model.longest_word())


@torch.no_grad()
def test_rounding_takes_from_a_margin_twice_what_a_logit_is_off() -> None:
    model = compile_binfa(counting(3, *"a.b"), 4, 4)
    block, first = model.blocks[0], margins(model)[0]
    assert isinstance(block, Block) and first.layer == 0
    query, key = (head[0, 0] for head in block.heads(*model.embedded(model.ids(model.longest_word()))))
    largest = max(float((one * other).abs().sum()) for one in query for other in key)
    off = query.shape[1] * 2**-24 * largest
    assert first.rounding == pytest.approx(2 * off)


def test_what_is_read_is_as_close_as_bounded() -> None:
    draw, binfa = random.Random(1), counting(3, *"a.b")
    model = compile_binfa(binfa, 9, 9)
    words = [model.longest_word(), *(random_word(draw, "ab", ".", 9, 9) for _ in range(5))]
    smallest = min(row.margin - row.rounding for row in margins(model))
    for sharpness in (2.0, 4.0, 8.0, 16.0):
        for block in model.blocks:
            block.sharpness = sharpness
        error = max(reading_error(model, word) for word in words)
        bound = len(words[0]) * math.exp(-sharpness * smallest)
        assert error <= min(bound, 0.5)
        if bound < TOLERANCE:
            assert error > 0


@pytest.mark.parametrize("binfa", [counting(3, *"a.b"), alternating(*"ab.")])
def test_the_sharpness_that_suffices_suffices(binfa) -> None:
    draw, model = random.Random(2), compile_binfa(binfa, 12, 12)
    words = [random_word(draw, "ab", ".", 12, 12) for _ in range(10)] + [model.longest_word()]
    needed = max(row.needed for row in margins(model))
    before = model.blocks[0].sharpness
    smallest = smallest_sharpness(binfa, model, words)
    assert 0.3 < smallest <= needed < before == model.blocks[0].sharpness
    for block in model.blocks:
        block.sharpness = needed
    assert smallest_sharpness(binfa, model, words) == pytest.approx(smallest, abs=0.02)
    for block in model.blocks:
        block.sharpness = smallest / 2
    with pytest.raises(ValueError, match="not exact on these words"):
        smallest_sharpness(binfa, model, words)


def test_sharpness_and_length_are_each_others_inverse() -> None:
    assert longest_input(1.0, needed_sharpness(1.0, 1000)) == pytest.approx(1000)
    assert longest_input(2.0, 1e9) == math.inf
    with pytest.raises(ValueError, match="without a margin"):
        needed_sharpness(0.0, 10)
    with pytest.raises(ValueError, match="another key"):
        needed_sharpness(1.0, 0)


def test_a_lost_margin_is_seen() -> None:
    model = compile_binfa(counting(2, *"a.b"), 4, 4)
    block = model.blocks[1]
    assert isinstance(block, Block) and block.maps is not None
    with torch.no_grad():
        block.maps[0].weight.zero_()
    with pytest.raises(ValueError, match="without a margin"):
        margins(model)
    with pytest.raises(ValueError, match="no attention"):
        model.blocks[2].heads(*model.embedded(model.ids(["a"])))
    with pytest.raises(ValueError, match="nothing to choose"):
        margins(compile_nfa(random_nfa(random.Random(0), 2, SYMBOLS), 1))


def test_the_command_prints_margins(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["theory", "margin", "--max-offset", "4", "--max-segments", "3", "--states", "2"]
    assert run(app, [*command, "--json"]) == 0
    *rows, measured = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["layer"] for row in rows] == [0, 1, 3, 4, 5]
    assert 0 < measured["reading_error"] < 1e-5
    assert 0.3 < measured["smallest_sharpness"] < max(row["needed"] for row in rows)
    assert run(app, command) == 0
    assert "exact down to sharpness" in capsys.readouterr().out


def test_the_page_names_the_bounds_that_are_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "theory.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(test_\w+)`", page):
        assert name in globals(), name
    assert page.count("`test_") >= 6
