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
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.attention import Visible
from bipe.attention.eager import eager_attention
from bipe.encodings.inter.base import Relation, Rotation
from bipe.encodings.inter.rope import rotate
from bipe.encodings.intra.learned import Learned
from bipe.positions import BilevelPositions, bilevel_positions

from .binfa import BiNFA, States
from .gates import Gate, GateBuilder, Maps, Slots, merged, times
from .nfa import NFA, Symbol


class Block(nn.Module):
    """Attention with one head, then a `Gate`.

    Args:
        maps: to queries, keys and values and back, None for a block without attention.
        gate: the feed-forward part.
        sharpness: factor of the logits.
    """

    def __init__(self, maps: Sequence[nn.Linear] | None, gate: Gate, sharpness: float) -> None:
        super().__init__()
        self.maps = None if maps is None else nn.ModuleList(maps)
        self.gate = gate
        self.sharpness = sharpness

    def forward(self, states: Tensor, rotation: Rotation) -> Tensor:
        """From `(B, T, D)` to the same."""
        if self.maps is not None:
            query, key, value = (module(states)[:, None] for module in list(self.maps)[:3])
            layer = cast("nn.Module", SimpleNamespace(num_key_value_groups=1, training=False))
            visible = Visible(states.shape[1], states.shape[1], device=states.device)
            mixed, _ = eager_attention(
                layer,
                rotate(query, rotation),
                rotate(key, rotation),
                value,
                visible,
                relation=Relation(),
                scaling=self.sharpness,
            )
            states = states + self.maps[3](mixed[:, :, 0])
        return states + self.gate(states)


class CompiledAutomaton(nn.Module):
    """A Transformer that tells the states of an automaton after each symbol; `compile_binfa` makes it.

    Attributes:
        symbols: the alphabet.
        separators: those of it that end a segment.
        max_offset: tokens that a segment may have.
        max_segments: segments that a word may have, an unfinished one at its end included.
        pairs: pairs of channels in a head, K / 2.
        turning: how many of them the rotation turns, pair `i` by `pi / 2^i` a segment.
    """

    def __init__(
        self,
        symbols: Sequence[Symbol],
        separators: frozenset[Symbol],
        slots: Slots,
        blocks: Sequence[Block],
        rows: Tensor,
        offsets: Tensor,
        pairs: tuple[int, int],
        max_segments: int,
    ) -> None:
        super().__init__()
        self.symbols = tuple(symbols)
        self.separators = separators
        self.slots = slots
        self.max_offset = len(offsets)
        self.max_segments = max_segments
        self.turning, self.pairs = pairs
        self.embedding = nn.Embedding.from_pretrained(rows)
        config = SimpleNamespace(hidden_size=slots.width)  # all that the table reads of one
        self.offsets = Learned(cast("LlamaConfig", config), max_offset=self.max_offset)
        self.offsets.embedding = nn.Embedding.from_pretrained(offsets)
        self.blocks = nn.ModuleList(blocks)

    @property
    def width(self) -> int:
        """D, of the embedding."""
        return self.slots.width

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.blocks)

    @property
    def hidden_width(self) -> int:
        """Of the widest layer inside a feed-forward part."""
        gates = [cast("Block", block).gate for block in self.blocks]
        return max(max(gate.first.out_features, gate.second.out_features) for gate in gates)

    @property
    def parameters_in_all(self) -> int:
        """Numbers in the model, zeros too."""
        return sum(parameter.numel() for parameter in self.parameters())

    def ids(self, word: Sequence[Symbol]) -> Tensor:
        """The word as `(1, T + 1)` int64, behind what stands at the start of every word.

        Raises:
            ValueError: a symbol is unknown, a segment is too long, or there are too many.
        """
        numbers = {symbol: place for place, symbol in enumerate(self.symbols)}
        if strange := [symbol for symbol in word if symbol not in numbers]:
            known = ", ".join(map(str, self.symbols))
            raise ValueError(f"The symbol {strange[0]!r} is not in the alphabet: {known}.")
        ids = torch.tensor([[len(self.symbols), *(numbers[symbol] for symbol in word)]])
        positions = self.positions(ids)
        if (longest := int(positions.offset.max()) + 1) > self.max_offset:
            raise ValueError(f"A segment has {longest} tokens, and the model is made for {self.max_offset}.")
        if (segments := int(positions.segment.max())) > self.max_segments:
            raise ValueError(
                f"The word has {segments} segments, and the model is made for {self.max_segments}."
            )
        return ids

    def positions(self, ids: Tensor) -> BilevelPositions:
        """Segment, offset and index of each token; the start of the word is a segment of its own."""
        ends = [self.symbols.index(symbol) for symbol in self.separators] + [len(self.symbols)]
        return bilevel_positions(torch.isin(ids, torch.tensor(ends)))

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """The states of the residual stream behind the last layer, `(B, T, D)`, for ids `(B, T)`."""
        positions = self.positions(ids)
        states = self.embedding(ids) + self.offsets(positions, torch.float32)
        rotation = self._rotation(positions.segment)
        for block in self.blocks:
            states = block(states, rotation)
        return states

    def run(self, word: Sequence[Symbol]) -> States:
        """The states after each symbol, as `BiNFA.run` tells them.

        Raises:
            ValueError: as `ids`.
        """
        found = self(self.ids(word))[0, 1:] > 0.5
        outer, inner = (found[:, list(self.slots[name])].numpy() for name in ("outer out", "inner out"))
        return States(outer, inner)

    def _rotation(self, segment: Tensor) -> Rotation:
        """Angles `pi s / 2^i`, from `s` modulo `2^(i + 1)`, so that none is large."""
        exponents = torch.arange(self.turning)
        turns = segment[..., None] % 2 ** (exponents + 1)
        angles = torch.zeros(*segment.shape, self.pairs, dtype=torch.float64)
        angles[..., : self.turning] = turns * math.pi / 2.0**exponents
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().float(), angles.sin().float()


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

    Args:
        nfa: the automaton.
        max_length: symbols that a word may have; at least 1.

    Raises:
        ValueError: the number is below 1.
    """
    one = np.ones((1,), dtype=bool)
    outer = np.ones((nfa.states, 1, 1), dtype=bool)
    flat = BiNFA(nfa, outer, one, nfa.accepting[None], frozenset())
    return _Compiler(flat, max_length, 1).model(segments=False)


class _Compiler:
    """Lays out the channels and the layers."""

    def __init__(self, binfa: BiNFA, max_offset: int, max_segments: int) -> None:
        for name, number in (("max_offset", max_offset), ("max_segments", max_segments)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1; got {number}.")
        self.binfa, self.max_offset, self.max_segments = binfa, max_offset, max_segments
        self.one, self.two = binfa.outer_states, binfa.inner_states
        self.inner_layers = math.ceil(math.log2(max_offset))
        self.outer_layers = math.ceil(math.log2(max_segments + 1))
        self.bits = max(1, self.inner_layers)
        self.turning = max(2, self.outer_layers)
        plain = max(self.bits, 1)
        self.pairs = self.turning + math.ceil(plain / 2)
        slots = self.slots = Slots()
        for name in ("one", "end", "start"):
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

    def model(self, segments: bool = True) -> CompiledAutomaton:
        blocks = [self._inner(layer) for layer in range(self.inner_layers)]
        if segments:
            blocks += [self._steps(), *(self._outer(layer) for layer in range(self.outer_layers))]
        blocks.append(self._out(segments))
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
        rows = torch.zeros(len(symbols) + 1, slots.width)
        rows[:, slots["one"]] = 1
        for place, symbol in enumerate(symbols):
            matrix = self.binfa.inner.transitions[place]
            rows[place, list(slots["inner"])] = torch.from_numpy(matrix.ravel().astype(np.float32))
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
        (one,) = slots["one"]
        query, key = self._head(), self._head()
        for pair in range(self.turning):
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

    def _out(self, segments: bool) -> Block:
        """The outer states before the segment, at its end those behind it, and the inner states."""
        slots, gate = self.slots, GateBuilder()
        (end,) = slots["end"]
        begin = np.flatnonzero(self.binfa.inner.initial).tolist()
        inner, outer = self._cells("inner", self.two), self._cells("outer", self.one)
        for state, channel in enumerate(slots["inner out"]):
            sums = dict.fromkeys([inner[i, state] for i in begin], 1.0) | {end: -float(self.two)}
            anew = gate.test([end], 0.5) if self.binfa.inner.initial[state] else {}
            gate.write(channel, merged(gate.test(sums, 0.5), anew), 0.5)
        if not segments:
            return Block(None, gate.build(slots.width), self.sharpness)
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
