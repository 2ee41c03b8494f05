"""How sharp the attention of a compiled automaton has to be, and how far it is exact.

The key that is meant leads every other by a *margin* `m` before the logits are multiplied by the sharpness
`b`. Softmax over `n` other keys then leaves those at most the weight `n exp(-b m)`. What is read are zeros
and ones, so it is off by no more than that, and the feed-forward parts round it wherever it is below
`gates.TOLERANCE`, which we write `t`. Hence `b >= log(n / t) / m` suffices, and a sharpness `b` is enough for
`n <= t exp(b m)` other keys.

In float32 a logit, a sum of K products that in size add up to at most `L`, is off by at most `K 2^-24 L`, and
the lead by twice that times `b`: the margin of the formulas is smaller by `2 K 2^-24 L`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .binfa import BiNFA
from .gates import TOLERANCE
from .model import Block, CompiledAutomaton
from .nfa import Symbol

ROUNDING = 2.0**-24
"""Half the distance between 1 and the next float32."""


@dataclass(frozen=True)
class Margin:
    """How one layer with attention chooses.

    Attributes:
        layer: its place, from 0 on.
        margin: by how much the best key leads the next, over all queries of the longest word; before the
            sharpness.
        rounding: what float32 can take from that.
        needed: the sharpness that suffices for the longest word.
        sharpness: the one the layer has.
        longest: how many other keys this sharpness is enough for.
    """

    layer: int
    margin: float
    rounding: float
    needed: float
    sharpness: float
    longest: float


def needed_sharpness(margin: float, others: int) -> float:
    """The sharpness with which a margin suffices against a number of other keys.

    Raises:
        ValueError: the margin is not positive, or there is no other key.
    """
    if not margin > 0:
        raise ValueError(f"No sharpness suffices without a margin; got {margin}.")
    if others < 1:
        raise ValueError(f"There must be another key; got {others}.")
    return math.log(others / TOLERANCE) / margin


def longest_input(margin: float, sharpness: float) -> float:
    """How many other keys a sharpness is enough for, infinity where that is no float."""
    exponent = margin * sharpness
    return TOLERANCE * math.exp(exponent) if exponent < 700 else math.inf


@torch.no_grad()
def margins(model: CompiledAutomaton) -> list[Margin]:
    """The layers' margins, of the built weights, over every query and key of the longest word.

    All pairs of tokens are compared, a few hundred queries at a time, so the time grows with the square of
    `max_offset * max_segments`.

    Raises:
        ValueError: the longest word has only one symbol, so that there is nothing to choose from.
    """
    word = model.longest_word()
    if len(word) < 2:
        raise ValueError("With words of one symbol there is nothing to choose from.")
    states, rotation = model.embedded(model.ids(word))
    found = []
    for layer, block in enumerate(_blocks(model)):
        if block.maps is not None:
            query, key = (head[0, 0] for head in block.heads(states, rotation))
            rounding = 2 * query.shape[1] * ROUNDING * float((query.abs() @ key.abs().T).max())
            margin = _smallest_lead(query, key)
            sure = margin - rounding
            found.append(
                Margin(
                    layer,
                    margin,
                    rounding,
                    needed_sharpness(sure, len(word)),
                    block.sharpness,
                    longest_input(sure, block.sharpness),
                )
            )
        states = block(states, rotation)
    return found


@torch.no_grad()
def reading_error(model: CompiledAutomaton, word: Sequence[Symbol]) -> float:
    """By how much anything that attention reads for a word is off a whole number, at most.

    Raises:
        ValueError: the word does not fit, as `CompiledAutomaton.ids`.
    """
    states, rotation = model.embedded(model.ids(word))
    worst = 0.0
    for block in _blocks(model):
        if block.maps is not None:
            read = block.attended(states, rotation)
            worst = max(worst, float((read - read.round()).abs().max()))
        states = block(states, rotation)
    return worst


def smallest_sharpness(
    binfa: BiNFA, model: CompiledAutomaton, words: Sequence[Sequence[Symbol]], within: float = 0.01
) -> float:
    """The smallest sharpness of all layers with which a model is exact on some words, by bisection.

    It is what these words want, and at most what `needed_sharpness` says of all.

    Args:
        binfa: the automaton.
        model: compiled from it; afterwards it is as sharp as before.
        words: that fit.
        within: how close to come.

    Raises:
        ValueError: it is not exact with its own sharpness.
    """
    before = [block.sharpness for block in _blocks(model)]
    expected = [np.concatenate(binfa.run(word), axis=1) for word in words]

    def is_exact(sharpness: float) -> bool:
        for block in _blocks(model):
            block.sharpness = sharpness
        found = (np.concatenate(model.run(word), axis=1) for word in words)
        return all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))

    low, high = 0.0, max(before)
    try:
        if not is_exact(high):
            raise ValueError(f"The model is not exact on these words with its own sharpness {high:.1f}.")
        while high - low > within:
            middle = (low + high) / 2
            low, high = (low, middle) if is_exact(middle) else (middle, high)
    finally:
        for block, sharpness in zip(_blocks(model), before, strict=True):
            block.sharpness = sharpness
    return high


def _blocks(model: CompiledAutomaton) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _smallest_lead(query: torch.Tensor, key: torch.Tensor, chunk: int = 512) -> float:
    """Of the best key over the next among those a query sees, both `(T, K)`."""
    smallest, places = math.inf, torch.arange(len(key))
    for start in range(1, len(query), chunk):  # the first query sees one key
        rows = query[start : start + chunk].double() @ key.double().T
        hidden = places > places[start : start + chunk, None]
        best = rows.masked_fill(hidden, -math.inf).topk(2).values
        smallest = min(smallest, float((best[:, 0] - best[:, 1]).min()))
    return smallest
