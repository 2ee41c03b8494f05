"""Automata against searches over single paths."""

import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bipe.theory.binfa import BiNFA, alternating, random_binfa
from bipe.theory.nfa import NFA, random_nfa

SYMBOLS = ("a", "b", ".")
seeds = st.integers(0, 10**6)
words = st.lists(st.sampled_from(SYMBOLS), max_size=12)


def paths_end(automaton: NFA, word: list[str], state: int) -> set[int]:
    """The states at the ends of all paths, followed one by one."""
    if not word:
        return {state}
    moves = automaton.transitions[automaton.symbols.index(word[0])][state]
    return {end for following in np.flatnonzero(moves) for end in paths_end(automaton, word[1:], following)}


def pairs_of(binfa: BiNFA, word: list[str]) -> set[tuple[int, int]]:
    """The pairs of states at the ends of all paths of a two-level automaton, a pair at a time."""
    pairs = set(product(np.flatnonzero(binfa.initial), np.flatnonzero(binfa.inner.initial)))
    for symbol in word:
        after = set()
        for outer, inner in pairs:
            for reached in np.flatnonzero(binfa.inner.transitions[SYMBOLS.index(symbol)][inner]):
                if symbol in binfa.separators:
                    steps = np.flatnonzero(binfa.outer[reached][outer])
                    after |= set(product(steps, np.flatnonzero(binfa.inner.initial)))
                else:
                    after.add((outer, reached))
        pairs = after
    return pairs


@given(seeds, words, st.integers(1, 4))
def test_sets_of_states_are_the_ends_of_all_paths(seed: int, word: list[str], states: int) -> None:
    automaton = random_nfa(random.Random(seed), states, SYMBOLS)
    begin = np.flatnonzero(automaton.initial)
    for end, found in enumerate(automaton.run(word), start=1):
        expected = {state for start in begin for state in paths_end(automaton, word[:end], start)}
        assert set(np.flatnonzero(found)) == expected


@given(seeds, seeds, st.integers(1, 3))
def test_a_difference_is_a_shortest_word_that_tells_apart(one: int, two: int, states: int) -> None:
    first, second = (random_nfa(random.Random(seed), states, "ab") for seed in (one, two))
    found = first.difference(second)
    short = [word for length in range(6) for word in product("ab", repeat=length)]
    telling = [word for word in short if first.accepts(word) != second.accepts(word)]
    if found is None:
        assert not telling
    else:
        assert first.accepts(found) != second.accepts(found)
        assert not telling or len(telling[0]) == len(found)


@given(seeds, words, st.integers(1, 3), st.integers(1, 3))
def test_two_levels_reach_the_pairs_of_all_paths(seed: int, word: list[str], outer: int, inner: int) -> None:
    binfa = random_binfa(random.Random(seed), outer, inner)
    flat = binfa.flattened()
    states, flat_states = binfa.run(word), flat.run(word)
    for end in range(len(word)):
        expected = pairs_of(binfa, word[: end + 1])
        together = np.outer(states.outer[end], states.inner[end])
        assert set(zip(*np.nonzero(together), strict=True)) == expected
        assert (flat_states[end].reshape(outer, inner) == together).all()
    assert binfa.accepts(word) == flat.accepts(word)


@given(st.lists(st.lists(st.sampled_from(["x", "first", "then"]), max_size=5), max_size=5))
def test_the_example_means_what_it_says(sentences: list[list[str]]) -> None:
    ordered = [
        "first" in sentence and "then" in sentence[sentence.index("first") :] for sentence in sentences
    ]
    takes_turns = all(value == (place % 2 == 0) for place, value in enumerate(ordered))
    word = [symbol for sentence in sentences for symbol in (*sentence, ".")]
    assert alternating("first", "then", ".", "x").accepts(word) == takes_turns


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NFA.from_edges(2, {"a": {}}, initial=[]), "No state is initial"),
        (lambda: NFA.from_edges(2, {"a": {}}, initial=[0], symbols="ab"), "'b' has no transitions"),
        (lambda: NFA.from_edges(2, {"a": {}, "c": {}}, initial=[0], symbols="a"), "'c', which is not in"),
        (lambda: NFA.from_edges(2, {"a": {0: [2]}}, initial=[0]), "State 2 is out of range"),
        (lambda: NFA.from_edges(2, {"a": {}}, initial=[0]).run("ab"), "'b' is not in the alphabet: a"),
        (lambda: NFA.from_edges(1, {"a": {}}, initial=[0], symbols="aa"), "once"),
        (lambda: NFA(("a",), np.zeros((1, 2, 2)), np.ones(2, bool), np.ones(2, bool)), "bool array of shape"),
        (lambda: random_binfa(random.Random(0), 2, 2, separators="!"), "'!' is not in the alphabet"),
        (
            lambda: NFA.from_edges(1, {"a": {}}, initial=[0]).difference(
                alternating("f", "t", ".").flattened()
            ),
            "alphabets",
        ),
        (
            lambda: BiNFA.from_edges(
                random_nfa(random.Random(0), 2, "ab"), 2, {0: {}}, initial=[0], accepting=[], separators="b"
            ),
            "1 has no transitions",
        ),
        (
            lambda: BiNFA.from_edges(
                random_nfa(random.Random(0), 1, "ab"), 2, {0: {}}, initial=[], accepting=[], separators="b"
            ),
            "No state is initial",
        ),
    ],
)
def test_what_is_wrong_is_said(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
