"""Compiled automata against the automata, at every position."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bipe.theory.binfa import alternating, random_binfa
from bipe.theory.compile import compile_binfa, compile_nfa
from bipe.theory.nfa import random_nfa
from bipe.theory.verify import mismatches
from bipe_cli.main import app, run

SYMBOLS = ("a", "b", ".")
seeds = st.integers(0, 10**6)


def random_word(draw: random.Random, max_offset: int, max_segments: int) -> list[str]:
    """Segments of any allowed length, the last one perhaps unfinished."""
    word: list[str] = []
    for _ in range(draw.randint(1, max_segments)):
        word += [draw.choice("ab") for _ in range(draw.randint(0, max_offset - 1))] + ["."]
    return word[:-1] if draw.random() < 0.5 else word


@settings(max_examples=30)
@given(
    seeds,
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3, 5, 8, 13]),
    st.sampled_from([1, 2, 3, 7, 8]),
)
def test_two_levels_are_exact_at_every_position(
    seed: int, outer: int, inner: int, max_offset: int, max_segments: int
) -> None:
    draw = random.Random(seed)
    binfa = random_binfa(draw, outer, inner, density=0.4)
    model = compile_binfa(binfa, max_offset, max_segments)
    assert model.depth == math.ceil(math.log2(max_offset)) + math.ceil(math.log2(max_segments + 1)) + 2
    for _ in range(3):
        word = random_word(draw, max_offset, max_segments)
        expected, found = binfa.run(word), model.run(word)
        assert np.array_equal(found.outer, expected.outer) and np.array_equal(found.inner, expected.inner)


@settings(max_examples=20)
@given(seeds, st.integers(1, 5), st.sampled_from([1, 2, 5, 16, 21]))
def test_one_level_is_exact_at_every_position(seed: int, states: int, max_length: int) -> None:
    draw = random.Random(seed)
    automaton = random_nfa(draw, states, SYMBOLS, 0.4)
    model = compile_nfa(automaton, max_length)
    for _ in range(3):
        word = [draw.choice(SYMBOLS) for _ in range(draw.randint(1, max_length))]
        assert np.array_equal(model.run(word).inner, automaton.run(word))


def test_the_empty_word_has_no_states() -> None:
    binfa = alternating("a", "b", ".")
    for model in (compile_binfa(binfa, 4, 4), compile_nfa(binfa.flattened(), 4)):
        assert len(model.run([]).outer) == len(model.run([]).inner) == 0


def test_long_words_are_exact() -> None:
    draw = random.Random(5)
    texts = alternating("first", "then", ".", "x")
    model = compile_binfa(texts, 20, 100)
    word = []
    for _ in range(100):
        word += [draw.choice(["first", "then", "x"]) for _ in range(draw.randint(0, 19))] + ["."]
    expected, found = texts.run(word), model.run(word)
    assert np.array_equal(found.outer, expected.outer) and np.array_equal(found.inner, expected.inner)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (["?"], "'\\?' is not in the alphabet: a, b, \\."),
        (["a"] * 5, "A segment has 5 tokens, and the model is made for 4"),
        (["."] * 3, "The word has 3 segments, and the model is made for 2"),
    ],
)
def test_words_that_do_not_fit_are_refused(word: list[str], said: str) -> None:
    model = compile_binfa(random_binfa(random.Random(0), 2, 2), 4, 2)
    with pytest.raises(ValueError, match=said):
        model.run(word)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_sizes_below_one_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        compile_binfa(random_binfa(random.Random(0), 2, 2), *sizes)


def test_the_command_verifies_and_its_last_line_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["theory", "verify", "--automata", "5", "--words", "2", "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["automata"] == 5 and last["positions"] > 100 and last["mismatches"] == 0


@pytest.mark.parametrize("wrong", ["two levels", "one level"])
def test_a_wrong_model_is_told(wrong: str) -> None:
    draw = random.Random(3)
    binfa = random_binfa(draw, 3, 3, density=0.4)
    words = [random_word(draw, 6, 6) for _ in range(5)]
    two, one = compile_binfa(binfa, 6, 6), compile_nfa(binfa.flattened(), 36)
    assert sum(mismatches(binfa, two, one, word) for word in words) == 0
    with torch.no_grad():
        model = two if wrong == "two levels" else one
        model.blocks[1].maps[0].weight.neg_()  # what is meant is now what is meant least
    assert sum(mismatches(binfa, two, one, word) for word in words) > 0


def test_the_command_prints_and_draws_sizes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "new" / "sizes.svg"
    assert run(app, ["theory", "size", "--states", "2,3", "--json", "--plot", str(plot)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    widths = {row["model"]: row["width"] for row in rows if row["outer_states"] == 3}
    assert widths["two levels"] < widths["one level"] / 2
    drawn = plot.read_text(encoding="utf-8")
    assert "<svg" in drawn and drawn.count("<!-- two levels -->") == 1
    assert run(app, ["theory", "size", "--plot", "sizes.txt"]) == 2
    assert "--plot is a .png" in capsys.readouterr().err
