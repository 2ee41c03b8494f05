"""Non-deterministic finite automata as Boolean matrices."""

import random
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

Symbol = Hashable


@dataclass(frozen=True, eq=False)
class NFA:
    """A non-deterministic automaton without empty moves; its states are the numbers from 0 on.

    >>> ends_in_ab = NFA.from_edges(3, {"a": {0: [0, 1]}, "b": {0: [0], 1: [2]}}, initial=[0], accepting=[2])
    >>> ends_in_ab.accepts("abab"), ends_in_ab.accepts("aba")
    (True, False)

    Attributes:
        symbols: the alphabet.
        transitions: `(symbols, n, n)` bool; from row to column there is a move.
        initial: `(n,)` bool.
        accepting: `(n,)` bool.

    Raises:
        ValueError: a shape is wrong, a symbol stands there twice, or no state is initial.
    """

    symbols: tuple[Symbol, ...]
    transitions: np.ndarray
    initial: np.ndarray
    accepting: np.ndarray

    def __post_init__(self) -> None:
        n = self.states
        if n < 1 or not self.symbols:
            raise ValueError("An automaton has at least one state and one symbol.")
        if len(set(self.symbols)) < len(self.symbols):
            raise ValueError(f"Each symbol stands in the alphabet once; got {self.symbols}.")
        check_shape("transitions", self.transitions, (len(self.symbols), n, n))
        check_shape("accepting", self.accepting, (n,))
        check_shape("initial", self.initial, (n,))
        if not self.initial.any():
            raise ValueError("No state is initial, so nothing is ever read.")

    @classmethod
    def from_edges(
        cls,
        states: int,
        edges: Mapping[Symbol, Mapping[int, Iterable[int]]],
        *,
        initial: Collection[int],
        accepting: Collection[int] = (),
        symbols: Sequence[Symbol] | None = None,
    ) -> "NFA":
        """Make an automaton from lists of moves.

        Args:
            states: their number.
            edges: by symbol and state, the states that follow; a state that is not listed has no successor.
            initial: the states to begin in.
            accepting: the states to end in.
            symbols: the alphabet and its order; by default the keys of `edges`.

        Raises:
            ValueError: a symbol of the alphabet has no transitions, a state is out of range, or no state is
                initial.
        """
        symbols = tuple(edges if symbols is None else symbols)
        if strange := [symbol for symbol in edges if symbol not in symbols]:
            raise ValueError(f"Transitions for {strange[0]!r}, which is not in the alphabet.")
        if missing := [symbol for symbol in symbols if symbol not in edges]:
            raise ValueError(f"The symbol {missing[0]!r} has no transitions; give it an empty mapping.")
        transitions = np.zeros((len(symbols), states, states), dtype=bool)
        for place, symbol in enumerate(symbols):
            for source, targets in edges[symbol].items():
                transitions[place, _state(source, states), [_state(target, states) for target in targets]] = (
                    True
                )
        return cls(symbols, transitions, subset(initial, states), subset(accepting, states))

    @property
    def states(self) -> int:
        """How many there are."""
        return self.initial.shape[0]

    def index(self, symbol: Symbol) -> int:
        """The place of a symbol in the alphabet.

        Raises:
            ValueError: it is not there.
        """
        try:
            return self.symbols.index(symbol)
        except ValueError:
            known = ", ".join(map(str, self.symbols))
            raise ValueError(f"The symbol {symbol!r} is not in the alphabet: {known}.") from None

    def run(self, word: Iterable[Symbol]) -> np.ndarray:
        """The states that can be reached after each symbol, `(T, n)` bool."""
        current, seen = self.initial, []
        for symbol in word:
            current = current @ self.transitions[self.index(symbol)]
            seen.append(current)
        return np.array(seen, dtype=bool).reshape(len(seen), self.states)

    def accepts(self, word: Sequence[Symbol]) -> bool:
        """Whether a word can end in an accepting state."""
        last = self.run(word)[-1] if len(word) else self.initial
        return bool((last & self.accepting).any())

    def difference(self, other: "NFA") -> tuple[Symbol, ...] | None:
        """A shortest word that one of two automata accepts and the other does not, None where there is none.

        Raises:
            ValueError: the alphabets differ.
        """
        if set(self.symbols) != set(other.symbols):
            raise ValueError("Automata over different alphabets cannot be compared.")
        start = (self.initial, other.initial)
        seen, begin = {sets_key(start)}, cast("tuple[Symbol, ...]", ())
        waiting = deque([(start, begin)])
        while waiting:
            (one, two), word = waiting.popleft()
            if bool((one & self.accepting).any()) != bool((two & other.accepting).any()):
                return word
            for symbol in self.symbols:
                pair = (
                    one @ self.transitions[self.index(symbol)],
                    two @ other.transitions[other.index(symbol)],
                )
                if (key := sets_key(pair)) not in seen:
                    seen.add(key)
                    waiting.append((pair, (*word, symbol)))
        return None

    def is_equivalent(self, other: "NFA") -> bool:
        """Whether two automata accept the same words."""
        return self.difference(other) is None


def random_nfa(draw: random.Random, states: int, symbols: Sequence[Symbol], density: float = 0.3) -> NFA:
    """An automaton with each move there with a probability; one initial state at least.

    Args:
        draw: where chance comes from.
        states: their number, at least 1.
        symbols: the alphabet.
        density: the probability of a move, of an initial and of an accepting state.
    """
    bits = np.array([draw.random() < density for _ in range((len(symbols) * states + 2) * states)])
    moves, initial, accepting = np.split(
        bits, [len(symbols) * states**2, (len(symbols) * states + 1) * states]
    )
    initial[draw.randrange(states)] = True
    return NFA(tuple(symbols), moves.reshape(len(symbols), states, states), initial, accepting)


def subset(members: Iterable[int], states: int) -> np.ndarray:
    """A set of states as `(n,)` bool."""
    found = np.zeros(states, dtype=bool)
    found[[_state(member, states) for member in members]] = True
    return found


def check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse what is no Boolean array of a shape."""
    if array.dtype != bool or array.shape != shape:
        raise ValueError(f"{name} must be a bool array of shape {shape}; got {array.dtype} {array.shape}.")


def _state(number: int, states: int) -> int:
    if not 0 <= number < states:
        raise ValueError(f"State {number} is out of range: there are {states}, from 0 on.")
    return number


def sets_key(pair: tuple[np.ndarray, np.ndarray]) -> bytes:
    """Two sets of states as something to look up; the sizes of the sets do not change."""
    return pair[0].tobytes() + pair[1].tobytes()
