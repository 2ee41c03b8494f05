"""Packing documents into blocks of equal length that keep the borders between them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

IGNORED = -100  # the label that transformers' loss leaves out
LARGEST_ID = torch.iinfo(torch.int32).max  # blocks keep ids in int32, half the memory of int64


class PackedBlocks(Dataset[dict[str, Tensor]]):
    """Blocks of equal length cut from a stream of documents; `pack` makes them.

    An item is a dict of three tensors (length,) int64: `input_ids`; `document_ids`, 0 at a block's first
    token and one more at each document border inside it; `labels`, the input ids with -100 at each document's
    first token in the block, for models that shift labels themselves: no document predicts the start of the
    next. A document that goes on from the block before starts this one as document 0, without a view of its
    beginning.

    Args:
        stream: (N,) integers, all documents one after another.
        starts: (documents,) int64, ascending: where in the stream each document begins.
        length: tokens in a block.

    Attributes:
        length: tokens in a block.
        documents: number of documents in the stream.
        tokens: number of tokens in all blocks together.
        dropped_tokens: number of tokens at the stream's end that fill no block.
    """

    def __init__(self, stream: Tensor, starts: Tensor, length: int) -> None:
        blocks = len(stream) // length
        self.length = length
        self.documents = len(starts)
        self.tokens = blocks * length
        self.dropped_tokens = len(stream) - self.tokens
        self._stream = stream
        self._starts = starts

    def __len__(self) -> int:
        return self.tokens // self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        begin = range(len(self))[index] * self.length
        input_ids = self._stream[begin : begin + self.length].long()
        is_first = self._is_first(begin)
        return {
            "input_ids": input_ids,
            "labels": input_ids.masked_fill(is_first, IGNORED),
            "document_ids": is_first.cumsum(0) - 1,
        }

    def _is_first(self, begin: int) -> Tensor:
        """Mark, (length,) bool, the first token that each document has in the block."""
        low, high = torch.searchsorted(self._starts, torch.tensor([begin, begin + self.length])).tolist()
        is_first = torch.zeros(self.length, dtype=torch.bool)
        is_first[self._starts[low:high] - begin] = True
        is_first[0] = True
        return is_first


def pack(
    documents: Sequence[Tensor],
    length: int,
    eos_token_id: int | None,
    *,
    vocab_size: int | None = None,
    name: str = "text",
) -> PackedBlocks:
    """Join documents, each followed by the end of text, and cut them in blocks of `length` tokens.

    The tail that fills no block is dropped and counted in `dropped_tokens`; a document without tokens is left
    out.

    >>> blocks = pack([torch.tensor([5, 6, 7]), torch.tensor([8, 9])], 3, eos_token_id=0)
    >>> len(blocks), blocks.dropped_tokens
    (2, 1)
    >>> blocks[1]["input_ids"].tolist(), blocks[1]["labels"].tolist(), blocks[1]["document_ids"].tolist()
    ([0, 8, 9], [-100, -100, 9], [0, 1, 1])

    Args:
        documents: token ids, (n,) int64 each.
        length: tokens in a block, at least 2.
        eos_token_id: the id put after each document; None puts none.
        vocab_size: where given, the number of ids that the model knows.
        name: what the documents are, for the message, such as `"validation text"`.

    Raises:
        ValueError: the documents do not fill one block, `length` is below 2, or an id lies outside
            the vocabulary.
    """
    if length < 2:
        raise ValueError(
            f"A block needs 2 tokens or more, one to read and one to predict; got length {length}."
        )
    filled = [document for document in documents if len(document)]
    eos = torch.tensor([] if eos_token_id is None else [eos_token_id], dtype=torch.int64)
    sizes = torch.tensor([len(document) + len(eos) for document in filled], dtype=torch.int64)
    if (total := int(sizes.sum())) < length:
        raise ValueError(
            f"The {name} has {total} tokens, fewer than one block of {length}. Give more text, or shorter "
            "blocks (train_length)."
        )
    stream = torch.cat([part for document in filled for part in (document, eos)])
    _check_ids(stream, vocab_size)
    return PackedBlocks(stream.to(torch.int32), sizes.cumsum(0) - sizes, length)


def _check_ids(stream: Tensor, vocab_size: int | None) -> None:
    largest = LARGEST_ID if vocab_size is None else vocab_size - 1
    outside = [extreme for extreme in (int(stream.min()), int(stream.max())) if not 0 <= extreme <= largest]
    if outside:
        raise ValueError(
            f"Token id {outside[0]} lies outside the vocabulary, 0 to {largest}. "
            "Encode the text with the model's own tokenizer."
        )


HELD_OUT = 20


def hold_out_tails(documents: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Cut the last twentieth of each document's tokens off, for validation.

    >>> train, validation = hold_out_tails([torch.arange(40)])
    >>> len(train[0]), validation[0].tolist()
    (38, [38, 39])

    Args:
        documents: token ids, each `(n,)` int64.

    Returns:
        The documents without their ends, and the ends; those of documents shorter than 20 tokens are empty.
    """
    cuts = [len(ids) - len(ids) // HELD_OUT for ids in documents]
    kept = [ids[:cut] for ids, cut in zip(documents, cuts, strict=True)]
    return kept, [ids[cut:] for ids, cut in zip(documents, cuts, strict=True)]
