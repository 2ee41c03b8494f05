"""Compiled automata against the automata themselves, and how large they are."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .binfa import BiNFA, random_binfa
from .compile import compile_binfa, compile_nfa
from .model import CompiledAutomaton
from .nfa import Symbol

SYMBOLS = ("a", "b", ".")


@dataclass
class Verified:
    """What was compared.

    Attributes:
        automata: how many.
        positions: symbols after which the states were compared, of both models.
        mismatches: those after which a set of states was not the same.
    """

    automata: int = 0
    positions: int = 0
    mismatches: int = 0


def verify(
    automata: int = 1000,
    words: int = 4,
    *,
    most_states: int = 4,
    max_offset: int = 12,
    max_segments: int = 12,
    seed: int = 0,
) -> Iterator[Verified]:
    """Compare random two-level automata with their two compilations, and yield the counts after each.

    Args:
        automata: how many.
        words: random words for each, compared at every position.
        most_states: of each level, at most.
        max_offset: tokens in a segment, at most.
        max_segments: segments in a word, at most.
        seed: decides all that is random.

    Raises:
        ValueError: a number is below 1.
    """
    numbers = {"automata": automata, "words": words, "most_states": most_states}
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}.")
    draw, found = random.Random(seed), Verified()
    for _ in range(automata):
        outer, inner = draw.randint(1, most_states), draw.randint(1, most_states)
        binfa = random_binfa(draw, outer, inner, SYMBOLS, density=draw.uniform(0.2, 0.6))
        longest, segments = draw.randint(1, max_offset), draw.randint(1, max_segments)
        two = compile_binfa(binfa, longest, segments)
        some = [random_word(draw, SYMBOLS[:-1], SYMBOLS[-1], longest, segments) for _ in range(words)]
        one = compile_nfa(binfa.flattened(), max(len(word) for word in some))
        found.automata += 1
        for word in some:
            found.positions += 2 * len(word)
            found.mismatches += mismatches(binfa, two, one, word)
        yield found


def mismatches(binfa: BiNFA, two: CompiledAutomaton, one: CompiledAutomaton, word: Sequence[Symbol]) -> int:
    """After how many symbols the models of two levels and of one tell other states than the automaton."""
    expected, levels = binfa.run(word), two.run(word)
    wrong = (expected.outer != levels.outer).any(axis=1) | (expected.inner != levels.inner).any(axis=1)
    flat = one.run(word).inner != binfa.flattened().run(word)
    return int(wrong.sum() + flat.any(axis=1).sum())


def random_word(
    draw: random.Random, symbols: Sequence[Symbol], stop: Symbol, max_offset: int, max_segments: int
) -> list[Symbol]:
    """A word of segments of any allowed length, the last one perhaps unfinished; at least one symbol.

    Args:
        draw: where chance comes from.
        symbols: those that end no segment.
        stop: ends one.
        max_offset: tokens in a segment, at most.
        max_segments: at most.
    """
    word: list[Symbol] = []
    for _ in range(draw.randint(1, max_segments)):
        word += [draw.choice(symbols) for _ in range(draw.randint(0, max_offset - 1))] + [stop]
    return word[:-1] if len(word) > 1 and draw.random() < 0.5 else word


def sizes(
    outer_states: Sequence[int], inner_states: Sequence[int], max_offset: int = 16, max_segments: int = 16
) -> list[dict[str, Any]]:
    """Width, depth, hidden width and parameters of both compilations, counted on built models.

    The one-level model is made for words as long as the two-level one can read, `max_offset * max_segments`.

    Args:
        outer_states: numbers of outer states.
        inner_states: numbers of inner states, as many as of `outer_states`.
        max_offset: tokens in a segment.
        max_segments: segments in a word.
    """
    rows = []
    for outer, inner in zip(outer_states, inner_states, strict=True):
        binfa = random_binfa(random.Random(0), outer, inner, SYMBOLS)
        models = {
            "two levels": compile_binfa(binfa, max_offset, max_segments),
            "one level": compile_nfa(binfa.flattened(), max_offset * max_segments),
        }
        rows += [
            {
                "model": name,
                "outer_states": outer,
                "inner_states": inner,
                "width": model.width,
                "depth": model.depth,
                "hidden_width": model.hidden_width,
                "parameters": model.parameters_in_all,
            }
            for name, model in models.items()
        ]
    return rows
