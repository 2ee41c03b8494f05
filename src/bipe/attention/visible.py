"""Which keys a query may see."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
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
    def block_mask(self) -> BlockMask:
        """FlexAttention's form of it, for T and S rounded up to multiples of `ROUND`; made once."""
        if self._block_mask is None:
            self._block_mask = self._make_block_mask()
        return self._block_mask

    def _make_block_mask(self) -> BlockMask:
        targets, sources = (length + -length % ROUND for length in (self.targets, self.sources))
        documents, real = (
            None if given is None else pad(given, (0, self.past + targets + sources - given.shape[1]))
            for given in (self.documents, self.real)
        )

        def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            column = query + self.past
            visible = (key <= column) & (key < self.sources)
            if documents is not None:
                visible = visible & (documents[batch, column] == documents[batch, key])
            return visible if real is None else visible & real[batch, key]

        rows = max([len(given) for given in (documents, real) if given is not None], default=None)
        return create_block_mask(
            seen, rows, None, targets, sources, device=str(self.device or "cpu"), BLOCK_SIZE=ROUND
        )
