"""The Transformer that an automaton is compiled into."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.attention import Visible
from bipe.attention.eager import eager_attention
from bipe.encodings.inter.base import Relation, Rotation
from bipe.encodings.inter.rope import rotate
from bipe.encodings.intra.learned import Learned
from bipe.positions import BilevelPositions, bilevel_positions

from .binfa import States
from .gates import Gate, Slots
from .nfa import Symbol


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
            states = states + self.maps[3](self.attended(states, rotation))
        return states + self.gate(states)

    def attended(self, states: Tensor, rotation: Rotation) -> Tensor:
        """What attention reads, `(B, T, values)`.

        Raises:
            ValueError: as `heads`.
        """
        query, key = self.heads(states, rotation)
        layer = cast("nn.Module", SimpleNamespace(num_key_value_groups=1, training=False))
        visible = Visible(states.shape[1], states.shape[1], device=states.device)
        value = list(self.maps or ())[2](states)[:, None]
        mixed, _ = eager_attention(
            layer, query, key, value, visible, relation=Relation(), scaling=self.sharpness
        )
        return mixed[:, :, 0]

    def heads(self, states: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Queries and keys, `(B, 1, T, K)`; their products times the sharpness are the logits.

        Raises:
            ValueError: the block has no attention.
        """
        if self.maps is None:
            raise ValueError("This block has no attention.")
        query, key = (rotate(module(states)[:, None], rotation) for module in list(self.maps)[:2])
        return query, key


class CompiledAutomaton(nn.Module):
    """A Transformer that tells the states of an automaton after each symbol; `compile_binfa` makes it.

    Attributes:
        symbols: the alphabet.
        separators: those of it that end a segment.
        max_offset: tokens that a segment may have.
        max_segments: segments that a word may have, an unfinished one at its end included.
        has_start: whether every word is read behind a symbol that stands for its start.
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
        self.has_start = len(rows) > len(self.symbols)
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
        """The word as `(1, T)` int64, behind what stands at the start of every word if anything does.

        Raises:
            ValueError: a symbol is unknown, a segment is too long, or there are too many.
        """
        numbers = {symbol: place for place, symbol in enumerate(self.symbols)}
        if strange := [symbol for symbol in word if symbol not in numbers]:
            known = ", ".join(map(str, self.symbols))
            raise ValueError(f"The symbol {strange[0]!r} is not in the alphabet: {known}.")
        start = [len(self.symbols)] if self.has_start else []
        ids = torch.tensor([start + [numbers[symbol] for symbol in word]], dtype=torch.int64)
        if not ids.numel():
            return ids
        positions = self.positions(ids)
        if (longest := int(positions.offset.max()) + 1) > self.max_offset:
            raise ValueError(f"A segment has {longest} tokens, and the model is made for {self.max_offset}.")
        if (segments := int(positions.segment.max()) + (not self.has_start)) > self.max_segments:
            raise ValueError(
                f"The word has {segments} segments, and the model is made for {self.max_segments}."
            )
        return ids

    def longest_word(self) -> list[Symbol]:
        """A word of as many segments as long as they may be; where nothing ends one, of one segment."""
        letters = [symbol for symbol in self.symbols if symbol not in self.separators]
        ends = [symbol for symbol in self.symbols if symbol in self.separators]
        segment = letters[:1] * (self.max_offset - 1)
        return (segment + ends[:1]) * self.max_segments if ends else letters[:1] * self.max_offset

    def positions(self, ids: Tensor) -> BilevelPositions:
        """Segment, offset and index of each token; the start of the word is a segment of its own."""
        ends = [self.symbols.index(symbol) for symbol in self.separators] + [len(self.symbols)]
        return bilevel_positions(torch.isin(ids, torch.tensor(ends, device=ids.device)))

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """The states of the residual stream behind the last layer, `(B, T, D)`, for ids `(B, T)`."""
        states, rotation = self.embedded(ids)
        for block in self.blocks:
            states = block(states, rotation)
        return states

    def embedded(self, ids: Tensor) -> tuple[Tensor, Rotation]:
        """The residual stream before the first layer and the rotation, for ids `(B, T)`."""
        positions = self.positions(ids)
        states = self.embedding(ids) + self.offsets(positions, torch.float32)
        return states, self._rotation(positions.segment)

    def run(self, word: Sequence[Symbol]) -> States:
        """The states after each symbol, as `BiNFA.run` tells them.

        Raises:
            ValueError: as `ids`.
        """
        ids = self.ids(word).to(self.embedding.weight.device)
        found = self(ids)[0, int(self.has_start) :].cpu() > 0.5
        outer, inner = (found[:, list(self.slots[name])].numpy() for name in ("outer out", "inner out"))
        return States(outer, inner)

    def _rotation(self, segment: Tensor) -> Rotation:
        """Angles `pi s / 2^i`, from `s` modulo `2^(i + 1)`, so that none is large."""
        exponents = torch.arange(self.turning, device=segment.device)
        turns = segment[..., None] % 2 ** (exponents + 1)
        angles = torch.zeros(*segment.shape, self.pairs, dtype=torch.float64, device=segment.device)
        angles[..., : self.turning] = turns * math.pi / 2.0**exponents
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().float(), angles.sin().float()
