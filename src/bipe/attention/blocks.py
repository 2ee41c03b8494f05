"""Attention with a bias, a block of queries at a time, so that only the bias of one block is in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from bipe.encodings.inter.base import Bias, Content

from .visible import Visible

ROWS = {"cpu": 32, "cuda": 128}
"""Queries handled at once. On a CPU what a bias makes on the way should stay in the cache, and below the
sizes, tens of megabytes, that are fetched from the system anew each time."""


@dataclass(frozen=True)
class Block:
    """A part of the work: some queries of some heads, and the keys that they look at.

    Attributes:
        rows: which of the T queries.
        heads: which of the H heads.
        columns: which of the S keys.
    """

    rows: slice
    heads: slice
    columns: slice

    def of_queries(self, tensor: Tensor) -> Tensor:
        """The block's part of `(B, H, T, K)`."""
        return tensor[:, self.heads, self.rows]

    def of_keys(self, tensor: Tensor) -> Tensor:
        """The block's part of `(B, H, S, K)`."""
        return tensor[:, self.heads, self.columns]


def rows_at_once(query: Tensor) -> int:
    """How many queries, `(B, H, T, K)`, a block has."""
    return ROWS.get(query.device.type, ROWS["cuda"])


def all_blocks(visible: Visible, query: Tensor, rows: int | None = None) -> list[Block]:
    """Blocks of queries, `(B, H, T, K)`, that leave out nothing but keys after the last of them."""
    heads, rows = query.shape[1], rows or rows_at_once(query)
    parts = [slice(start, min(start + rows, visible.targets)) for start in range(0, visible.targets, rows)]
    return [Block(part, slice(0, heads), slice(0, visible.columns_of(part).stop)) for part in parts]


def attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Bias,
    visible: Visible,
    blocks: Sequence[Block],
    *,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention where each block of queries looks at its own slice of the keys.

    The backward pass makes each block again, so that no block outlives its turn in either direction.

    Args:
        query: `(B, H, T, K)`.
        key: `(B, H, S, K)`.
        value: `(B, H, S, K)`.
        bias: added to the logits; made in float32 whatever the dtype of the others, and kept so on a CPU.
        visible: which keys may be seen; a query that sees none gets the mean of its slice's values.
        blocks: each query and head in exactly one of them.
        scaling: factor of the logits.
        dropout: probability of dropping a weight.

    Returns:
        The mixed values, `(B, H, T, K)`.
    """
    # Under autocast a rotation leaves float32, and the backward pass runs outside it.
    query, key = query.to(value.dtype), key.to(value.dtype)
    work = _Work(
        bias, visible, tuple(blocks), scaling, dropout, int(torch.randint(2**62, ())) if dropout else 0
    )
    wanted = (part for part in bias.differentiable if part.requires_grad)  # adapters freeze them
    return _Attend.apply(query, key, value, work, *wanted)


def in_one_block(visible: Visible) -> bool:
    """Whether everything is to be one block, for `attend_dense`."""
    return visible.targets == 1 or torch.compiler.is_compiling()


def attend_dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Bias,
    visible: Visible,
    *,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """As `attend_in_blocks` with everything in one block.

    For a single query, and for tracing, which could not follow the blocks. The mask is made once for all
    layers.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # as in `attend_in_blocks`
    rows = slice(0, visible.targets)
    columns = slice(0, visible.columns_of(rows).stop)  # without slots of a cache that are not filled yet
    key, value, mask = key[:, :, columns], value[:, :, columns], bias.mask
    if mask is None:
        seen = visible.block(rows, columns)
        with torch.autocast(query.device.type, enabled=False):
            whole = bias.between(Content(query, key, seen, scaling), rows, columns)
        mask = _for_kernel(whole.masked_fill(~seen, torch.finfo(whole.dtype).min), query)
        if not bias.reads_content:
            bias.mask = mask
    return _kernel(query, key, value, mask, dropout, scaling)


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scaling: float
) -> Tensor:
    """The kernel, outside autocast, which would make half precision of the mask."""
    with torch.autocast(query.device.type, enabled=False):
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
        )


def _for_kernel(mask: Tensor, query: Tensor) -> Tensor:
    """The mask in a dtype that the kernel takes: on a CPU also float32 beside half precision."""
    if mask.dtype == query.dtype or (query.device.type == "cpu" and query.dtype.itemsize == 2):
        return mask
    # Half precision would make the lowest float32 minus infinity, and a row of those NaN.
    lowest = max(torch.finfo(query.dtype).min, torch.finfo(mask.dtype).min)
    return mask.clamp(min=lowest).to(query.dtype)


@dataclass(frozen=True)
class _Work:
    bias: Bias
    visible: Visible
    blocks: tuple[Block, ...]
    scaling: float
    dropout: float
    seed: int

    def attend(self, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of one block, given its parts of the tensors."""
        mask = self.mask(self.blocks[index], query, key)
        with _seeded(self.seed + index, query.device, wanted=self.dropout > 0):
            return _kernel(query, key, value, _for_kernel(mask, query), self.dropout, self.scaling)

    def mask(self, block: Block, query: Tensor, key: Tensor) -> Tensor:
        """The bias where a key may be seen and the lowest number elsewhere, `(B or 1, h, t, s)` float32."""
        with torch.autocast(query.device.type, enabled=False):
            return self._mask(block, query, key)

    def _mask(self, block: Block, query: Tensor, key: Tensor) -> Tensor:
        # The lowest finite number, not -inf: a row of padding sees nothing, and -inf alone makes NaN.
        lowest = torch.finfo(torch.float32).min
        if self.bias.reads_content:
            seen = self.visible.block(block.rows, block.columns)
            content = Content(query, key, seen, self.scaling)
            return self.bias.between(content, block.rows, block.columns, block.heads).masked_fill(
                ~seen, lowest
            )
        bias = self.bias.block(block.rows, block.columns, block.heads)
        own = self.visible.columns_of(block.rows)
        columns = block.columns
        if self.visible.documents is None and self.visible.real is None:
            # Only the queries' own columns, and those after them, can be hidden.
            columns = slice(max(columns.start, own.start), columns.stop)
        hidden = ~self.visible.block(block.rows, columns)
        bias = bias.expand(max(len(hidden), len(bias)), -1, -1, -1)
        if bias.requires_grad or columns == block.columns:
            hidden = torch.nn.functional.pad(hidden, (columns.start - block.columns.start, 0))
            return bias.masked_fill(hidden, lowest)
        bias[..., columns.start - block.columns.start :].masked_fill_(hidden, lowest)
        return bias


class _Attend(torch.autograd.Function):
    """The blocks one after another; slicing under autograd would make a gradient of full size for each."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, work: _Work, *biases: Tensor) -> Tensor:
        # Laid out as the caller will read it, `(B, T, H, K)`.
        mixed = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for index, block in enumerate(work.blocks):
            parts = block.of_queries(query), block.of_keys(key), block.of_keys(value)
            block.of_queries(mixed).copy_(work.attend(index, *parts))
        ctx.work = work
        ctx.save_for_backward(query, key, value, *biases)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the names
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        query, key, value, *biases = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        of_biases = [torch.zeros_like(bias) for bias in biases]
        for index, block in enumerate(ctx.work.blocks):
            parts = [
                part.detach().requires_grad_()
                for part in (block.of_queries(query), block.of_keys(key), block.of_keys(value))
            ]
            with torch.enable_grad():
                mixed = ctx.work.attend(index, *parts)
            found = torch.autograd.grad(
                mixed, [*parts, *biases], block.of_queries(gradients[0]), allow_unused=True
            )
            block.of_queries(of_query).copy_(found[0])
            block.of_keys(of_key).add_(found[1])
            block.of_keys(of_value).add_(found[2])
            for total, part in zip(of_biases, found[3:], strict=True):
                if part is not None:  # an encoding may have parameters that this bias does not read
                    total.add_(part)
        return of_query, of_key, of_value, None, *of_biases


@contextmanager
def _seeded(seed: int, device: torch.device, *, wanted: bool) -> Iterator[None]:
    """Random numbers that the backward pass can draw again, and no others where none are wanted."""
    if not wanted:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
