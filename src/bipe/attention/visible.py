"""Which keys a query may see."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

ROUND = 128
"""FlexAttention gets lengths rounded up to this: its own blocks, and fewer lengths to compile for."""


@dataclass
class Visible:
    """The keys that each query sees: those of its own document up to itself, but no padding.

    It is kept as what each column is, and made into a mask of a block, or of everything, where one is needed.

    >>> Visible(targets=2, sources=3, past=1).block(slice(0, 2), slice(0, 3)).tolist()
    [[[[True, True, False], [True, True, True]]]]

    Attributes:
        targets: T, the number of queries.
        sources: S, the number of keys, cache slots that are not filled yet included.
        past: column of the first query among the keys.
        documents: `(B, S)` int64, ascending and another one in each document, or None where each row is one
            document.
        real: `(B, S)` bool, false on padding, or None where there is none.
        device: where masks are made.
    """

    targets: int
    sources: int
    past: int = 0
    documents: Tensor | None = None
    real: Tensor | None = None
    device: torch.device | None = None
    _dense: Tensor | None = field(default=None, init=False, repr=False)
    _blocks: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)
    _seen: Callable[..., Tensor] | None = field(default=None, init=False, repr=False)
    _block_mask: BlockMask | None = field(default=None, init=False, repr=False)

    @property
    def is_causal(self) -> bool:
        """Whether query `i` sees the keys up to key `i`, and nothing else hides any."""
        return (
            self.documents is None and self.real is None and self.past == 0 and self.targets == self.sources
        )

    @property
    def is_everything(self) -> bool:
        """Whether the only query sees all keys."""
        return (
            self.targets == 1
            and self.documents is None
            and self.real is None
            and self.past + 1 == self.sources
        )

    def columns_of(self, rows: slice) -> slice:
        """The columns that some queries have among the keys."""
        return slice(self.past + rows.start, self.past + rows.stop)

    def part(self, rows: slice, columns: slice) -> "Visible":
        """What some queries see of the first columns."""
        if (rows, columns) == (slice(0, self.targets), slice(0, self.sources)):
            return self
        documents, real = (
            None if given is None else given[:, columns] for given in (self.documents, self.real)
        )
        return Visible(
            rows.stop - rows.start, columns.stop, self.past + rows.start, documents, real, self.device
        )

    def block(self, rows: slice, columns: slice) -> Tensor:
        """What some queries see of some keys, `(B or 1, 1, t, s)` bool.

        Args:
            rows: which of the T queries.
            columns: which of the S keys.
        """
        own = self.columns_of(rows)
        query = torch.arange(own.start, own.stop, device=self.device)
        key = torch.arange(columns.start, columns.stop, device=self.device)
        seen = (query[:, None] >= key)[None, None]
        if self.documents is not None:
            documents = self.documents[:, None]
            seen = seen & (documents[..., own, None] == documents[..., None, columns])
        return seen if self.real is None else seen & self.real[:, None, None, columns]

    @property
    def dense(self) -> Tensor:
        """What all queries see of all keys, `(B or 1, 1, T, S)` bool; made once."""
        # Not a cached property: its lock cannot be traced.
        if self._dense is None:
            self._dense = self.block(slice(0, self.targets), slice(0, self.sources))
        return self._dense

    @property
    def blocks(self) -> tuple[Tensor, Tensor]:
        """Which blocks of queries and keys may hold a pair that is seen, and which of them hold no other.

        Both are `(B or 1, 1, T / ROUND, S / ROUND)` bool for lengths rounded up, and made once. What is not
        in the first holds no pair that is seen. Queries beyond the last count for nothing.
        """
        if self._blocks is None:
            self._blocks = self._make_blocks()
        return self._blocks

    def _make_blocks(self) -> tuple[Tensor, Tensor]:
        own = self.columns_of(slice(0, self.targets))
        first_query = torch.arange(own.start, own.stop, ROUND, device=self.device)[:, None]
        last_query = (first_query + ROUND - 1).clamp(max=own.stop - 1)
        first_key = torch.arange(0, self.sources, ROUND, device=self.device)
        some = (first_key <= last_query)[None, None]
        every = (first_key + ROUND - 1 <= first_query)[None, None]
        if self.documents is not None:
            first, last = (part[:, None, :, None] for part in extremes(self.documents[:, own]))
            lowest, highest = (part[:, None, None] for part in extremes(self.documents))
            some = some & (lowest <= last) & (first <= highest)
            every = every & (lowest == last) & (first == highest)
        if self.real is not None:
            real = pad(self.real, (0, -self.sources % ROUND)).unflatten(1, (-1, ROUND))
            some, every = some & real.any(-1)[:, None, None], every & real.all(-1)[:, None, None]
        return some, every

    @property
    def seen(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """FlexAttention's `mask_mod`: whether a key is seen, of the numbers of row, head, query and key.

        They are below lengths rounded up. It holds no length as a number, so that it is compiled once for all
        that round up to the same. It is made once.
        """
        if self._seen is None:
            self._seen = self._make_seen()
        return self._seen

    def _make_seen(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        columns = self.sources + -self.sources % ROUND + ROUND
        past = torch.full((), self.past, device=self.device)
        documents, real = (
            None if given is None else pad(given, (0, columns - given.shape[1]))
            for given in (self.documents, self.real)
        )

        def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            column = query + past
            visible = key <= column
            if documents is not None:
                visible = visible & (documents[batch, column] == documents[batch, key])
            return visible if real is None else visible & real[batch, key]

        return seen

    def block_mask(self, near: Tensor | None = None) -> BlockMask:
        """FlexAttention's form of it, for lengths rounded up to multiples of `ROUND`.

        Args:
            near: which blocks may be looked at, `(B or 1, H or 1, T / ROUND, S / ROUND)` bool; None for all,
                whose mask is made once.
        """
        if near is not None:
            return self._make_block_mask(self.blocks[0] & near)
        if self._block_mask is None:
            self._block_mask = self._make_block_mask(self.blocks[0])
        return self._block_mask

    def _make_block_mask(self, some: Tensor) -> BlockMask:
        targets, sources = (ROUND * blocks for blocks in some.shape[2:])
        parts = some & ~self.blocks[1], some & self.blocks[1]
        # The second half is what `from_kv_blocks` would make of the first, at several times the cost.
        return BlockMask(
            (targets, sources),
            *(part for blocks in parts for part in in_order(blocks)),
            *(part for blocks in parts for part in in_order(blocks.mT)),
            BLOCK_SIZE=(ROUND, ROUND),
            mask_mod=self.seen,
        )


def extremes(documents: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of each `ROUND` columns of `(B, n)`, `(B, n / ROUND)` rounded up."""
    missing = documents[:, -1:].expand(-1, -documents.shape[1] % ROUND)
    lowest, highest = torch.cat([documents, missing], dim=1).unflatten(1, (-1, ROUND)).aminmax(dim=-1)
    return lowest, highest


def in_order(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row takes, `(B, H, n)`, and which, before those it does not, `(B, H, n, m)`.

    Both are int32 and contiguous, which torch's kernels take for granted.
    """
    blocks = blocks.to(torch.int32).contiguous()
    order = blocks.argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)
