"""Automata as Transformers whose weights are set by hand.

What a word does to an automaton is a product of Boolean matrices, one a symbol. Layer `l` of a scan attends
to the token `2^l` before and multiplies what that has gathered with what this one has, so that `ceil(log2 n)`
layers gather everything of `n` tokens (a parallel prefix). One level scans over absolute positions. Two
levels scan over the offsets of a segment with an absolute code, then over the segments' ends with a rotation.

The model is a decoder with softmax attention (`bipe.attention.eager`), a table of offsets (`Learned`), the
rotation of RoPE with the frequencies `pi / 2^i`, residual connections, and feed-forward parts of two hidden
ReLU layers; it has no normalisation. Hard choices come from a large factor of the logits, the inverse
temperature: the key that is meant leads all others by a margin of at least 1, so with `n` keys the others
together have at most the weight `n exp(-sharpness)`, and what is read is off by that much at most. The
feed-forward parts round to 0 and 1 whatever is off by less than `gates.TOLERANCE`.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .binfa import BiNFA
from .gates import GateBuilder, Maps, Slots, merged, times
from .model import Block, CompiledAutomaton
from .nfa import NFA

FLAGS = ("one", "end", "start")
"""Channels of a model of two levels: 1 everywhere, at ends of segments, and at the start of the word."""


def compile_binfa(binfa: BiNFA, max_offset: int, max_segments: int) -> CompiledAutomaton:
    """A Transformer with bilevel positions whose states after each symbol are those of a two-level automaton.

    Depth `ceil(log2 max_offset) + ceil(log2(max_segments + 1)) + 2`.

    Args:
        binfa: the automaton.
        max_offset: tokens that a segment may have, its separator included; at least 1.
        max_segments: segments that a word may have, an unfinished one included; at least 1.

    Raises:
        ValueError: a number is below 1.
    """
    return _Compiler(binfa, max_offset, max_segments).model()


def compile_nfa(nfa: NFA, max_length: int) -> CompiledAutomaton:
    """A Transformer with absolute positions whose states after each symbol are those of an automaton.

    Depth `ceil(log2 max_length) + 1`. Its `run` tells the states as `inner`; of `outer` there are none.

    Args:
        nfa: the automaton.
        max_length: symbols that a word may have; at least 1.

    Raises:
        ValueError: the number is below 1.
    """
    one = np.ones((1,), dtype=bool)
    outer = np.ones((nfa.states, 1, 1), dtype=bool)
    flat = BiNFA(nfa, outer, one, nfa.accepting[None], frozenset())
    return _Compiler(flat, max_length, 1, levels=1).model()


class _Compiler:
    """Lays out the channels and the layers; with one level there is one segment and no outer automaton."""

    def __init__(self, binfa: BiNFA, max_offset: int, max_segments: int, levels: int = 2) -> None:
        for name, number in (("max_offset", max_offset), ("max_segments", max_segments)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1; got {number}.")
        self.binfa, self.max_offset, self.max_segments = binfa, max_offset, max_segments
        self.one, self.two = binfa.outer_states if levels == 2 else 0, binfa.inner_states
        self.inner_layers = math.ceil(math.log2(max_offset))
        self.outer_layers = math.ceil(math.log2(max_segments + 1))
        self.bits = max(1, self.inner_layers)
        self.turning = max(2, self.outer_layers) if levels == 2 else 0
        self.pairs = self.turning + math.ceil(self.bits / 2)
        self.levels = levels
        slots = self.slots = Slots()
        for name in FLAGS if levels == 2 else ():
            slots.add(name, 1)
        slots.add("inner", self.two**2)  # the product of the segment so far
        slots.add("outer", self.one**2)  # at ends: the product of the segments so far
        slots.add("heard", max(self.two**2, self.one**2))
        slots.add("outer out", self.one)
        slots.add("inner out", self.two)
        slots.add("code", self.bits)
        for layer in range(self.inner_layers):
            slots.add(f"target {layer}", self.bits)
            slots.add(f"reaches {layer}", 1)
        keys = max_offset * (max_segments + 1)
        self.sharpness = math.log(keys) + 20 * math.log(2)  # others weigh less than 2^-20 at a margin of 1

    def model(self) -> CompiledAutomaton:
        blocks = [self._inner(layer) for layer in range(self.inner_layers)]
        if self.levels == 1:
            blocks.append(self._inner_out())
        else:
            blocks += [
                self._steps(),
                *(self._outer(layer) for layer in range(self.outer_layers)),
                self._out(),
            ]
        return CompiledAutomaton(
            self.binfa.symbols,
            self.binfa.separators,
            self.slots,
            blocks,
            self._rows(),
            self._offsets(),
            (self.turning, self.pairs),
            self.max_segments,
        )

    def _rows(self) -> Tensor:
        """The embedding: a symbol's matrix, what it is, and behind the alphabet the start of every word."""
        slots, symbols = self.slots, self.binfa.symbols
        rows = torch.zeros(len(symbols) + self.levels - 1, slots.width)
        for place in range(len(symbols)):
            matrix = self.binfa.inner.transitions[place]
            rows[place, list(slots["inner"])] = torch.from_numpy(matrix.ravel().astype(np.float32))
        if self.levels == 2:
            rows[:, slots["one"]] = 1
            for place, symbol in enumerate(symbols):
                rows[place, slots["end"]] = float(symbol in self.binfa.separators)
            rows[-1, slots["end"]] = rows[-1, slots["start"]] = 1
            # From whatever state, to the initial ones.
            initial = torch.from_numpy(self.binfa.initial.astype(np.float32))
            rows[-1, list(slots["outer"])] = initial.repeat(self.one)
        return rows

    def _offsets(self) -> Tensor:
        """The table of offsets: a code of signs, and for each layer that of the offset that it looks at."""
        slots, rows = self.slots, torch.zeros(self.max_offset, self.slots.width)
        for offset in range(self.max_offset):
            rows[offset, list(slots["code"])] = self._code(offset)
            for layer in range(self.inner_layers):
                reaches = offset >= 2**layer
                rows[offset, list(slots[f"target {layer}"])] = self._code(offset - 2**layer * reaches)
                rows[offset, slots[f"reaches {layer}"]] = float(reaches)
        return rows

    def _code(self, offset: int) -> Tensor:
        return torch.tensor([1.0 if offset >> bit & 1 else -1.0 for bit in range(self.bits)])

    def _inner(self, layer: int) -> Block:
        """Multiply what `2^layer` tokens before in the segment has gathered with what is here."""
        slots = self.slots
        query, key = self._head(), self._head()
        for pair in range(self.turning):  # as large where segments are the same as nowhere else
            (one,) = slots["one"]
            query[pair], key[pair] = {one: 1.0}, {one: 1.0}
        for place, (target, code) in enumerate(zip(slots[f"target {layer}"], slots["code"], strict=True)):
            query[self._plain(place)], key[self._plain(place)] = {target: 1.0}, {code: 1.0}
        gate, states = GateBuilder(), range(self.two)
        (reaches,) = slots[f"reaches {layer}"]
        cell, heard = self._cells("inner", self.two), self._cells("heard", self.two)
        for i in states:
            for j in states:
                products = [gate.test((heard[i, k], cell[k, j], reaches), 2.5) for k in states]
                alone = gate.test({cell[i, j]: 1.0, reaches: -1.0}, 0.5)
                gate.write(cell[i, j], merged(*products, alone), 0.5)
                gate.clear(cell[i, j])
                gate.clear(heard[i, j])
        return self._block(query, key, list(cell.values()), gate)

    def _steps(self) -> Block:
        """At ends of segments, the move of the outer automaton on the inner states that were reached."""
        (end,), (start,) = self.slots["end"], self.slots["start"]
        gate, begin = GateBuilder(), np.flatnonzero(self.binfa.inner.initial).tolist()
        inner, outer = self._cells("inner", self.two), self._cells("outer", self.one)
        reached = [gate.test([inner[i, r] for i in begin], 0.5) for r in range(self.two)]
        is_end = times(gate.test({end: 1.0, start: -1.0}, 0.5), self.two)
        for (q, p), channel in outer.items():
            moves = [reached[r] for r in range(self.two) if self.binfa.outer[r, q, p]]
            gate.write(channel, merged(is_end, *moves), self.two + 0.5)
        return Block(None, gate.build(self.slots.width), self.sharpness)

    def _outer(self, layer: int) -> Block:
        """At ends, multiply what the end `2^layer` segments before, or the start, has gathered with this."""
        gate, states = GateBuilder(), range(self.one)
        cell, heard = self._cells("outer", self.one), self._cells("heard", self.one)
        for i in states:
            for j in states:
                products = [gate.test((heard[i, k], cell[k, j]), 1.5) for k in states]
                gate.write(cell[i, j], merged(*products), 0.5)
                gate.clear(cell[i, j])
                gate.clear(heard[i, j])
        return self._block(*self._hop(2**layer), list(cell.values()), gate)

    def _inner_out(self) -> Block:
        """The states that the only level has reached."""
        gate, begin = GateBuilder(), np.flatnonzero(self.binfa.inner.initial).tolist()
        cell = self._cells("inner", self.two)
        for state, channel in enumerate(self.slots["inner out"]):
            gate.write(channel, gate.test([cell[i, state] for i in begin], 0.5), 0.5)
        return Block(None, gate.build(self.slots.width), self.sharpness)

    def _out(self) -> Block:
        """The outer states before the segment, at its end those behind it, and the inner states."""
        slots, gate = self.slots, GateBuilder()
        (end,) = slots["end"]
        begin = np.flatnonzero(self.binfa.inner.initial).tolist()
        inner, outer = self._cells("inner", self.two), self._cells("outer", self.one)
        for state, channel in enumerate(slots["inner out"]):
            sums = dict.fromkeys([inner[i, state] for i in begin], 1.0) | {end: -float(self.two)}
            anew = gate.test([end], 0.5) if self.binfa.inner.initial[state] else {}
            gate.write(channel, merged(gate.test(sums, 0.5), anew), 0.5)
        for state, channel in enumerate(slots["outer out"]):
            before = gate.test({slots["heard"][state]: 1.0, end: -1.0}, 0.5)
            behind = gate.test([outer[0, state]], 0.5)
            gate.write(channel, merged(before, behind), 0.5)
        return self._block(*self._hop(1), [outer[0, state] for state in range(self.one)], gate)

    def _hop(self, segments: int) -> tuple[list[dict[int, float]], list[dict[int, float]]]:
        """Queries and keys that meet at the end so many segments before, and else at the start.

        The end meant has the logit `R`, R pairs turning, any other end at most `R - 2`, other tokens 0, and
        the start `R - 1`.
        """
        (one,), (end,), (start,) = (self.slots[name] for name in ("one", "end", "start"))
        query, key = self._head(), self._head()
        for pair in range(self.turning):
            angle = math.pi * (segments % 2 ** (pair + 1)) / 2**pair
            query[pair], query[self.pairs + pair] = {one: math.cos(angle)}, {one: -math.sin(angle)}
            key[pair] = {end: 1.0, start: -1.0}
        query[self._plain(0)], key[self._plain(0)] = {one: 1.0}, {start: self.turning - 1.0}
        return query, key

    def _head(self) -> list[dict[int, float]]:
        return [{} for _ in range(2 * self.pairs)]

    def _plain(self, place: int) -> int:
        """The channel of a head that does not turn, by number."""
        half, pair = place % 2, place // 2
        return half * self.pairs + self.turning + pair

    def _cells(self, name: str, states: int) -> dict[tuple[int, int], int]:
        """The channels of a square matrix."""
        return {divmod(place, states): self.slots[name][place] for place in range(states**2)}

    def _block(
        self,
        query: list[dict[int, float]],
        key: list[dict[int, float]],
        read: list[int],
        gate: GateBuilder,
    ) -> Block:
        width, maps = self.slots.width, []
        for rows in (query, key, [{channel: 1.0} for channel in read]):
            linear = Maps()
            for row in rows:
                linear.add(row)
            maps.append(linear.linear(width))
        out, place_of = Maps(), {channel: place for place, channel in enumerate(self.slots["heard"])}
        for channel in range(width):
            place = place_of.get(channel, len(read))
            out.add({place: 1.0} if place < len(read) else {})
        return Block([*maps, out.linear(len(read))], gate.build(width), self.sharpness)
