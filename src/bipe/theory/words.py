"""Words of a two-level automaton with what it has reached after each symbol, to train models on."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bipe.data.packing import IGNORED

from .binfa import BiNFA, random_binfa
from .nfa import Symbol, sets_key


class Reader:
    """A two-level automaton made deterministic: its states are the pairs of sets of states that are reached.

    Attributes:
        symbols: the alphabet; the number of a symbol is its place.
        following: `(symbols, classes)` int64, the class that follows each; the first class is the beginning.
        sets: of each class, the outer and the inner states in it, `(Q1,)` and `(Q2,)` bool.
    """

    def __init__(self, binfa: BiNFA) -> None:
        self.symbols: tuple[Symbol, ...] = binfa.symbols
        begin = (binfa.initial, binfa.inner.initial)
        numbers, self.sets, rows = {sets_key(begin): 0}, [begin], []
        for outer, inner in self.sets:  # it grows while it is read
            row = []
            for symbol, matrix in zip(binfa.symbols, binfa.inner.transitions, strict=True):
                after = (outer, inner @ matrix)
                if symbol in binfa.separators:
                    after = (outer @ binfa.step(after[1]), binfa.inner.initial)
                if sets_key(after) not in numbers:
                    numbers[sets_key(after)] = len(self.sets)
                    self.sets.append(after)
                row.append(numbers[sets_key(after)])
            rows.append(row)
        self.following = np.array(rows, dtype=np.int64).T

    @property
    def classes(self) -> int:
        """How many pairs of sets can be reached."""
        return len(self.sets)

    def read(self, words: np.ndarray) -> np.ndarray:
        """The class after each symbol of words, both `(B, T)` int64."""
        found, current = np.empty_like(words), np.zeros(len(words), dtype=np.int64)
        for place in range(words.shape[1]):
            current = self.following[words[:, place], current]
            found[:, place] = current
        return found


def random_words(
    generator: np.random.Generator, count: int, length: int, symbols: int, stop: int, max_offset: int
) -> np.ndarray:
    """Words of random segments, `(count, length)` int64; the last segment may be cut.

    A segment has 1 to `max_offset` tokens, each number as likely, of which the last is the separator, and the
    others any other symbol.

    Args:
        generator: where chance comes from.
        count: words.
        length: symbols in each.
        symbols: size of the alphabet, of which symbol `stop` is the separator.
        stop: its number.
        max_offset: tokens in a segment, at most.
    """
    others = np.array([symbol for symbol in range(symbols) if symbol != stop])
    words = others[generator.integers(len(others), size=(count, length))]
    ends = generator.integers(1, max_offset + 1, size=(count, length)).cumsum(axis=1) - 1
    row, column = np.nonzero(ends < length)
    words[row, ends[row, column]] = stop
    return words


def telling_binfa(
    seed: int,
    outer_states: int,
    inner_states: int,
    *,
    symbols: Sequence[Symbol] = ("a", "b", "."),
    length: int = 64,
    max_offset: int = 12,
    tries: int = 200,
) -> BiNFA:
    """A random two-level automaton whose states tell something about the word.

    Most random automata soon reach all states or none and stay there, whatever follows. Of those drawn, this
    is the one that at the end of random words has the largest entropy of the set of outer states or of that
    of inner states, whichever is less.

    Args:
        seed: decides the automaton.
        outer_states: Q1.
        inner_states: Q2.
        symbols: the alphabet; its last symbol is the separator.
        length: symbols in the words.
        max_offset: tokens in a segment of them, at most.
        tries: how many are drawn, each with another density of moves.
    """
    draw, stop = random.Random(seed), len(symbols) - 1
    best: tuple[float, BiNFA | None] = (-1.0, None)
    for _ in range(tries):
        binfa = random_binfa(
            draw, outer_states, inner_states, symbols, symbols[-1:], density=draw.uniform(0.15, 0.6)
        )
        reader = Reader(binfa)
        words = random_words(np.random.default_rng(seed), 256, length, len(symbols), stop, max_offset)
        last = [reader.sets[number] for number in reader.read(words)[:, -1]]
        told = min(_entropy([pair[level].tobytes() for pair in last]) for level in (0, 1))
        if told > best[0]:
            best = (told, binfa)
    assert best[1] is not None
    return best[1]


def _entropy(values: Sequence[bytes]) -> float:
    """In bits."""
    counts = np.unique(np.array([int.from_bytes(value, "little") for value in values]), return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


class AutomatonWords(Dataset[dict[str, Tensor]]):
    """Words with the class after each symbol as what follows it, for a causal language model.

    An item is a dict of `input_ids` `(T,)` int64, numbers of symbols, and `labels` `(T,)` int64. A causal
    model compares its output at a place with the label behind it, so `labels[t + 1]` is the class of the
    first `t + 1` symbols; `labels[0]` is ignored, and so is what the last symbol leads to.

    Args:
        reader: tells the classes.
        max_offset: tokens in a segment, at most.
        words: how many.
        length: T - 1, symbols whose class is asked for.
        seed: decides the words.
    """

    def __init__(self, reader: Reader, max_offset: int, words: int, length: int, seed: int) -> None:
        stop = len(reader.symbols) - 1
        generator = np.random.default_rng(seed)
        self.words = random_words(generator, words, length + 1, len(reader.symbols), stop, max_offset)
        self.classes = reader.read(self.words)

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        labels = torch.full((self.words.shape[1],), IGNORED)
        labels[1:] = torch.from_numpy(self.classes[index, :-1])
        return {"input_ids": torch.from_numpy(self.words[index]), "labels": labels}
