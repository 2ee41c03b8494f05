"""FlexAttention's mask against what each query sees of each key."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from bipe.attention.visible import ROUND, Visible


@st.composite
def visibles(draw: st.DrawFn) -> Visible:
    """Several documents or one, padding anywhere, cached keys, and slots of a cache that are not filled."""
    targets, past = draw(st.integers(1, 500)), draw(st.sampled_from([0, 0, 1, 126, 127, 128, 300, 510]))
    stop = past + targets
    sources = stop + draw(st.sampled_from([0, 0, 1, 140, 400]))
    documents = real = None
    if draw(st.booleans()):
        borders = st.lists(st.integers(0, stop), max_size=4)
        documents = torch.zeros(2, sources, dtype=torch.int64)
        for row in range(2):
            for border in draw(borders):
                documents[row, border:stop] += 1  # slots that are not filled have a 0
    if draw(st.booleans()):
        real = torch.zeros(2, sources, dtype=torch.bool)
        real[:, :stop] = True
        for row in range(2):
            for start, tokens in draw(
                st.lists(st.tuples(st.integers(0, stop), st.integers(0, 300)), max_size=3)
            ):
                real[row, start : min(stop, start + tokens)] = False
    return Visible(targets, sources, past, documents, real)


def dense_of(numbers: Tensor | None, indices: Tensor | None) -> Tensor:
    """`(B, H, n, m)` bool of blocks, by how many and which a mask takes of each row."""
    assert numbers is not None
    assert indices is not None
    taken = torch.zeros(indices.shape, dtype=torch.bool)
    counted = torch.arange(indices.shape[-1]) < numbers[..., None]
    return taken.scatter(-1, indices.long(), counted)


def looked_at(mask: BlockMask) -> tuple[Tensor, Tensor]:
    """The blocks that a mask takes and masks, and those that it takes as they are; each by both of its forms."""
    found = []
    for kind in ("", "full_"):
        of_queries, of_keys = (
            dense_of(getattr(mask, f"{kind}{side}_num_blocks"), getattr(mask, f"{kind}{side}_indices"))
            for side in ("kv", "q")
        )
        assert torch.equal(of_queries, of_keys.mT)
        found.append(of_queries)
    return found[0], found[1]


def in_blocks(pairs: Tensor, filling: bool) -> Tensor:
    """`(B, 1, T, S)` of pairs as `(B, 1, n, m, ROUND, ROUND)`."""
    missing = (0, -pairs.shape[3] % ROUND, 0, -pairs.shape[2] % ROUND)
    return (
        pad(pairs, missing, value=filling).unflatten(3, (-1, ROUND)).unflatten(2, (-1, ROUND)).transpose(3, 4)
    )


@given(visible=visibles())
def test_a_block_mask_takes_what_is_seen(visible: Visible) -> None:
    mask, dense = visible.block_mask(), visible.dense
    rounded = [length + -length % ROUND for length in (visible.targets, visible.sources)]
    assert mask.shape == (len(dense), 1, *rounded)
    masked, whole = looked_at(mask)
    assert not (masked & whole).any()
    seen = in_blocks(dense, False)
    assert not seen[~(masked | whole)].any()
    # Queries beyond the last may be anything, keys beyond the last may not.
    rows = torch.arange(rounded[0]).view(-1, 1, ROUND, 1) >= visible.targets
    assert (seen | rows)[whole].all()


@given(visible=visibles())
def test_single_numbers_of_a_mask_are_what_is_seen(visible: Visible) -> None:
    dense = visible.dense
    row, query, key = (
        torch.arange(length).view(shape)
        for length, shape in [
            (len(dense), (-1, 1, 1, 1)),
            (visible.targets + -visible.targets % ROUND, (-1, 1)),
            (visible.sources + -visible.sources % ROUND, (-1,)),
        ]
    )
    found = visible.seen(row, torch.tensor(0), query, key).expand(len(dense), 1, -1, -1)
    assert torch.equal(found[..., : visible.targets, : visible.sources], dense)
    assert not found[..., : visible.targets, visible.sources :].any()


def test_blocks_are_taken_only_where_something_is_seen() -> None:
    masked, whole = looked_at(Visible(1024, 1024).block_mask())
    assert torch.equal(masked[0, 0], torch.eye(8).bool())
    assert torch.equal(whole[0, 0], torch.ones(8, 8).tril(-1).bool())
    documents = torch.arange(1024)[None] // 256
    masked, whole = looked_at(Visible(1024, 1024, documents=documents).block_mask())
    assert torch.equal(masked[0, 0], torch.eye(8).bool())
    assert whole[0, 0].nonzero().tolist() == [[1, 0], [3, 2], [5, 4], [7, 6]]
    real = (torch.arange(1024) >= 200)[None]
    masked, whole = looked_at(Visible(1024, 1024, real=real).block_mask())
    assert not (masked | whole)[0, 0, :, 0].any()
    assert masked[0, 0, 1:, 1].all()


def test_near_blocks_are_taken_by_head() -> None:
    visible = Visible(300, 300)
    near = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    near[0, 1, 2, :2] = False
    masked, whole = looked_at(visible.block_mask(near))
    assert torch.equal(masked, torch.eye(3).bool().expand(1, 2, 3, 3))
    assert whole[0, 0].nonzero().tolist() == [[1, 0], [2, 0], [2, 1]]
    assert whole[0, 1].nonzero().tolist() == [[1, 0]]


class Largest(TorchDispatchMode):
    """Remembers the largest number of elements that any operation has made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(part, Tensor):
                self.elements = max(self.elements, part.numel())
        return made


@pytest.mark.parametrize("tokens", [2048, 16384])
def test_a_block_mask_needs_memory_for_columns_and_blocks(tokens: int) -> None:
    documents, real = torch.zeros(2, tokens, dtype=torch.int64), torch.ones(2, tokens, dtype=torch.bool)
    with Largest() as largest:
        Visible(tokens, tokens, 0, documents, real).block_mask()
    blocks = tokens // ROUND
    assert largest.elements <= max(2 * (tokens + ROUND), 2 * blocks * (blocks + 1))


def test_a_block_mask_is_made_once() -> None:
    visible = Visible(10, 10)
    assert visible.block_mask() is visible.block_mask()
