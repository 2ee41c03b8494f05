"""Blocks lose no token but the tail, and ids, labels and document ids tell the same borders."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from bipe.data import PackedBlocks, pack

EOS = 0
documents_of_ids = st.lists(
    st.lists(st.integers(1, 99), max_size=12).map(lambda ids: torch.tensor(ids, dtype=torch.int64)),
    max_size=12,
)
lengths = st.integers(2, 9)
eos_or_none = st.sampled_from([EOS, None])


def joined(documents: list[Tensor], eos: int | None) -> tuple[list[int], list[int]]:
    """The obvious twin: all ids in a row, and beside each the number of its document."""
    ids: list[int] = []
    owners: list[int] = []
    for number, document in enumerate(document for document in documents if len(document)):
        part = document.tolist() + ([] if eos is None else [eos])
        ids += part
        owners += [number] * len(part)
    return ids, owners


@given(documents_of_ids, lengths, eos_or_none)
def test_blocks_are_the_joined_documents(documents: list[Tensor], length: int, eos: int | None) -> None:
    ids, owners = joined(documents, eos)
    if len(ids) < length:
        with pytest.raises(ValueError, match=f"{len(ids)} tokens, fewer than one block of {length}"):
            pack(documents, length, eos)
        return
    blocks = pack(documents, length, eos)
    assert len(blocks) == len(ids) // length
    assert blocks.tokens == len(blocks) * length
    assert blocks.tokens + blocks.dropped_tokens == len(ids) and blocks.dropped_tokens < length
    assert blocks.documents == len(set(owners))
    for number, block in enumerate(blocks_of(blocks)):
        own = owners[number * length : (number + 1) * length]
        assert block["input_ids"].tolist() == ids[number * length : (number + 1) * length]
        assert block["document_ids"].tolist() == [owner - own[0] for owner in own]


@given(documents_of_ids, lengths, eos_or_none)
def test_labels_predict_every_token_but_across_a_border(
    documents: list[Tensor], length: int, eos: int | None
) -> None:
    if len(joined(documents, eos)[0]) < length:
        return
    for block in blocks_of(pack(documents, length, eos)):
        ids, labels, owner = block["input_ids"], block["labels"], block["document_ids"]
        same = owner[1:] == owner[:-1]
        assert labels[0] == -100
        assert torch.equal(labels[1:][same], ids[1:][same])
        assert (labels[1:][~same] == -100).all()


def blocks_of(blocks: PackedBlocks) -> list[dict[str, Tensor]]:
    return [blocks[index] for index in range(len(blocks))]


def test_example() -> None:
    blocks = pack([torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([9, 9, 9, 9])], 5, EOS)
    assert [block["input_ids"].tolist() for block in blocks_of(blocks)] == [[5, 6, 7, 0, 8], [0, 9, 9, 9, 9]]
    assert [block["document_ids"].tolist() for block in blocks_of(blocks)] == [
        [0, 0, 0, 0, 1],
        [0, 1, 1, 1, 1],
    ]
    assert blocks[0]["labels"].tolist() == [-100, 6, 7, 0, -100]
    assert blocks[1]["labels"].tolist() == [-100, -100, 9, 9, 9]
    assert (blocks.tokens, blocks.dropped_tokens, blocks.documents, blocks.length) == (10, 1, 3, 5)


def test_items_are_int64_of_the_block_length_and_their_own_memory() -> None:
    blocks = pack([torch.arange(1, 20)], 4, EOS)
    for value in blocks[0].values():
        assert value.dtype == torch.int64 and value.shape == (4,)
    blocks[0]["input_ids"].zero_()
    assert blocks[0]["input_ids"].tolist() == [1, 2, 3, 4]


def test_indexing_is_that_of_a_sequence() -> None:
    blocks = pack([torch.arange(1, 12)], 4, EOS)
    assert torch.equal(blocks[-1]["input_ids"], blocks[2]["input_ids"])
    with pytest.raises(IndexError):
        blocks[3]
    assert len(list(blocks)) == 3  # pyright: ignore[reportArgumentType] - iterates until IndexError


def test_loader_and_pickle_keep_the_blocks() -> None:
    blocks = pickle.loads(pickle.dumps(pack([torch.arange(1, 12)], 4, EOS)))
    (batch,) = DataLoader(blocks, batch_size=3)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 0]]
    assert batch["document_ids"].shape == batch["labels"].shape == (3, 4)


def test_ids_outside_the_vocabulary_are_named() -> None:
    documents = [torch.tensor([1, 2, 300, 4])]
    assert len(pack(documents, 2, EOS, vocab_size=301)) == 2
    with pytest.raises(ValueError, match=r"Token id 300 lies outside the vocabulary, 0 to 299\. Encode"):
        pack(documents, 2, EOS, vocab_size=300)
    with pytest.raises(ValueError, match="Token id 999 lies outside"):
        pack(documents, 2, 999, vocab_size=301)
    with pytest.raises(ValueError, match="Token id -1 lies outside"):
        pack([torch.tensor([1, -1])], 2, EOS)
    with pytest.raises(ValueError, match=f"Token id {2**40} lies outside"):
        pack([torch.tensor([1, 2**40])], 2, EOS)


@pytest.mark.parametrize("length", [1, 0, -3])
def test_blocks_without_a_target_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"2 tokens or more.*got length {length}"):
        pack([torch.tensor([1, 2])], length, EOS)
