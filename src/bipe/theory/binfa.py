"""Two-level automata (Bi-NFA): an inner one inside each segment, an outer one that steps once a segment."""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from .nfa import NFA, Symbol, check_shape, random_nfa, subset


class States(NamedTuple):
    """The states that can be reached after each of T symbols.

    Attributes:
        outer: `(T, Q1)` bool.
        inner: `(T, Q2)` bool. With an outer state any of these can be the inner one.
    """

    outer: np.ndarray
    inner: np.ndarray


@dataclass(frozen=True, eq=False)
class BiNFA:
    """A two-level non-deterministic automaton (He et al. 2024; the definition here is this project's).

    Symbols move the inner automaton. A separator moves it too and ends the segment: the outer automaton steps
    on the inner state that was reached, one of them if there are several, and the inner one begins anew.

    >>> texts = alternating("first", "then", ".")
    >>> texts.accepts(["first", "then", ".", "then", "first", "."])
    True
    >>> texts.accepts(["first", "then", ".", "first", "then", "."])
    False

    Attributes:
        inner: the inner automaton over all symbols, separators too; its accepting states count for nothing.
        outer: `(Q2, Q1, Q1)` bool, the moves of the outer automaton on each inner state.
        initial: `(Q1,)` bool, the outer states to begin in.
        accepting: `(Q1, Q2)` bool, the pairs of states to end in.
        separators: the symbols that end a segment.

    Raises:
        ValueError: a shape is wrong, no outer state is initial, or a separator is no symbol.
    """

    inner: NFA
    outer: np.ndarray
    initial: np.ndarray
    accepting: np.ndarray
    separators: frozenset[Symbol]

    def __post_init__(self) -> None:
        outer, inner = self.outer_states, self.inner_states
        check_shape("outer", self.outer, (inner, outer, outer))
        check_shape("initial", self.initial, (outer,))
        check_shape("accepting", self.accepting, (outer, inner))
        if not self.initial.any():
            raise ValueError("No outer state is initial, so nothing is ever read.")
        for separator in sorted(self.separators, key=str):
            self.inner.index(separator)

    @classmethod
    def from_edges(
        cls,
        inner: NFA,
        outer_states: int,
        edges: Mapping[Symbol, Mapping[int, Iterable[int]]],
        *,
        initial: Collection[int],
        accepting: Collection[tuple[int, int]],
        separators: Collection[Symbol],
    ) -> "BiNFA":
        """Make one from lists of moves.

        Args:
            inner: the inner automaton.
            outer_states: their number.
            edges: by inner state and outer state, the outer states that follow.
            initial: outer states.
            accepting: pairs of an outer and an inner state.
            separators: symbols that end a segment.

        Raises:
            ValueError: an inner state has no transitions of the outer automaton, or as the class.
        """
        steps = NFA.from_edges(outer_states, edges, initial=initial, symbols=range(inner.states))
        pairs = np.zeros((outer_states, inner.states), dtype=bool)
        for one, two in accepting:
            pairs |= np.outer(subset([one], outer_states), subset([two], inner.states))
        return cls(inner, steps.transitions, steps.initial, pairs, frozenset(separators))

    @property
    def outer_states(self) -> int:
        """Q1, how many outer states there are."""
        return self.initial.shape[0]

    @property
    def inner_states(self) -> int:
        """Q2, how many inner states there are."""
        return self.inner.states

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The alphabet."""
        return self.inner.symbols

    def step(self, inner: np.ndarray) -> np.ndarray:
        """The moves of the outer automaton where a segment ends in these inner states, `(Q1, Q1)` bool."""
        return np.asarray(self.outer[inner].any(axis=0))

    def run(self, word: Iterable[Symbol]) -> States:
        """The states that can be reached after each symbol; after a separator those of the next segment."""
        outer, inner, seen = self.initial, self.inner.initial, []
        for symbol in word:
            inner = inner @ self.inner.transitions[self.inner.index(symbol)]
            if symbol in self.separators:
                outer, inner = outer @ self.step(inner), self.inner.initial
            seen.append((outer, inner))
        shapes = ((len(seen), self.outer_states), (len(seen), self.inner_states))
        return States(
            *(
                np.array([pair[place] for pair in seen], dtype=bool).reshape(shape)
                for place, shape in enumerate(shapes)
            )
        )

    def accepts(self, word: Sequence[Symbol]) -> bool:
        """Whether a word can end in an accepting pair of states."""
        outer, inner = self.initial, self.inner.initial
        if len(word):
            outer, inner = (states[-1] for states in self.run(word))
        return bool((self.accepting & np.outer(outer, inner)).any())

    def flattened(self) -> NFA:
        """The one-level automaton on pairs of states; pair `(q, r)` is state `q * Q2 + r`."""
        one, two = self.outer_states, self.inner_states
        stay, begin = np.eye(one, dtype=bool), self.inner.initial
        transitions = []
        for symbol, matrix in zip(self.symbols, self.inner.transitions, strict=True):
            if symbol in self.separators:
                # From (q, r) over the inner state s that the separator leads to.
                moves = np.einsum("rs,sqp,i->qrpi", matrix, self.outer, begin)
            else:
                moves = np.einsum("qp,rs->qrps", stay, matrix)
            transitions.append(moves.astype(bool).reshape(one * two, one * two))
        initial = np.outer(self.initial, begin).ravel()
        return NFA(self.symbols, np.array(transitions), initial, self.accepting.ravel())


def random_binfa(
    draw: random.Random,
    outer_states: int,
    inner_states: int,
    symbols: Sequence[Symbol] = ("a", "b", "."),
    separators: Collection[Symbol] = (".",),
    density: float = 0.3,
) -> BiNFA:
    """A two-level automaton with each move there with a probability.

    Args:
        draw: where chance comes from.
        outer_states: Q1, at least 1.
        inner_states: Q2, at least 1.
        symbols: the alphabet.
        separators: those of them that end a segment.
        density: the probability of a move, of an initial and of an accepting state.
    """
    inner = random_nfa(draw, inner_states, symbols, density)
    outer = random_nfa(draw, outer_states, range(inner_states), density)
    pairs = [draw.random() < density for _ in product(range(outer_states), range(inner_states))]
    accepting = np.array(pairs).reshape(outer_states, inner_states)
    return BiNFA(inner, outer.transitions, outer.initial, accepting, frozenset(separators))


def alternating(first: Symbol, second: Symbol, stop: Symbol, *others: Symbol) -> BiNFA:
    """Texts whose sentences take turns: one where a word comes before another, and one where it does not.

    Args:
        first: the word that has to come before.
        second: the word that has to come after it.
        stop: ends a sentence.
        others: words that count for nothing.
    """
    nothing, begun, done = range(3)
    stay = {state: [state] for state in range(3)}
    edges: dict[Symbol, dict[int, list[int]]] = {
        first: {nothing: [begun], begun: [begun], done: [done]},
        second: {nothing: [nothing], begun: [done], done: [done]},
        **dict.fromkeys((stop, *others), stay),
    }
    inner = NFA.from_edges(3, edges, initial=[nothing])
    wanted, unwanted = 0, 1  # what the next sentence has to be
    return BiNFA.from_edges(
        inner,
        2,
        {done: {wanted: [unwanted]}, nothing: {unwanted: [wanted]}, begun: {unwanted: [wanted]}},
        initial=[wanted],
        accepting=[(wanted, nothing), (unwanted, nothing)],
        separators=[stop],
    )


def counting(modulus: int, counted: Symbol, stop: Symbol, *others: Symbol) -> BiNFA:
    """Texts in which a word stands a multiple of some number of times; each level counts modulo that number.

    Nothing is ever forgotten, so that every symbol read wrongly is seen in the states after it.

    >>> even = counting(2, "a", ".", "b")
    >>> even.accepts(["a", "b", ".", "a", "."]), even.accepts(["a", ".", "b", "."])
    (True, False)

    Args:
        modulus: the number, at least 1.
        counted: the word.
        stop: ends a sentence.
        others: words that count for nothing.
    """
    rest = range(modulus)
    stay = {state: [state] for state in rest}
    edges: dict[Symbol, dict[int, list[int]]] = {
        counted: {state: [(state + 1) % modulus] for state in rest},
        **dict.fromkeys((*others, stop), stay),
    }
    return BiNFA.from_edges(
        NFA.from_edges(modulus, edges, initial=[0]),
        modulus,
        {inner: {outer: [(outer + inner) % modulus] for outer in rest} for inner in rest},
        initial=[0],
        accepting=[(state, -state % modulus) for state in rest],
        separators=[stop],
    )
