"""The text of a comparison as tokens, made once and kept in its folder."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import Subset
from transformers import PreTrainedTokenizerBase

from bipe.data import (
    PackedBlocks,
    encode,
    hold_out_tails,
    load_documents,
    load_tokenizer,
    pack,
    split_documents,
    token_bytes,
    train_tokenizer,
)
from bipe.storage import read_tensors, write_tensors

from .settings import Comparison

FILE = "corpus.safetensors"


@dataclass(frozen=True)
class Corpus:
    """The text of a comparison as tokens.

    Attributes:
        train: documents, each `(n,)` int64.
        validation: the held-out ends of the training documents, or documents of their own.
        test: documents.
        tokenizer: what cut them.
        token_bytes: `(V,)` int64, UTF-8 bytes of each token.
    """

    train: list[Tensor]
    validation: list[Tensor]
    test: list[Tensor]
    tokenizer: PreTrainedTokenizerBase
    token_bytes: Tensor

    def blocks(self, length: int) -> PackedBlocks:
        """The training text in blocks of `length` tokens."""
        return pack(self.train, length, self._eos, name="training text")

    def validation_blocks(self, length: int, most: int) -> Subset[dict[str, Tensor]]:
        """At most so many blocks of the validation text, spread evenly."""
        blocks = pack(self.validation, length, self._eos, name="validation text")
        count = min(most, len(blocks))
        return Subset(blocks, [index * len(blocks) // count for index in range(count)])

    @property
    def _eos(self) -> int | None:
        return cast("int | None", self.tokenizer.eos_token_id)


def make_corpus(settings: Comparison, out: Path) -> None:
    """Read the text, make or load the tokenizer, and leave the tokens in the folder, if they are not there.

    Raises:
        ValueError: there is no text where it should be.
    """
    if (out / FILE).exists():
        return
    data = settings.data
    train = load_documents(data.train, limit=data.max_documents)
    if settings.test is None:
        train, test = split_documents(train)
    else:
        test = load_documents(settings.test, limit=data.max_documents)
    if data.tokenizer is None:
        tokenizer = train_tokenizer((document.text for document in train), data.vocab_size)
    else:
        tokenizer = load_tokenizer(data.tokenizer)
    tokenizer.save_pretrained(out / "tokenizer")
    encoded = encode(train, tokenizer)
    if data.validation is None:
        encoded, validation = hold_out_tails(encoded)
    else:
        validation = encode(load_documents(data.validation, limit=data.max_documents), tokenizer)
    tensors = {}
    for name, documents in {
        "train": encoded,
        "validation": validation,
        "test": encode(test, tokenizer),
    }.items():
        tensors[name] = torch.cat(documents).int()
        tensors[f"{name}_lengths"] = torch.tensor([len(document) for document in documents])
    write_tensors(out / FILE, tensors)
    load_corpus.cache_clear()


@lru_cache(maxsize=1)
def load_corpus(out: Path) -> Corpus:
    """Read what `make_corpus` left in the folder."""
    tensors = read_tensors(out / FILE)
    parts = {
        name: list(tensors[name].long().split(tensors[f"{name}_lengths"].tolist()))
        for name in ("train", "validation", "test")
    }
    tokenizer = load_tokenizer(str(out / "tokenizer"))
    return Corpus(**parts, tokenizer=tokenizer, token_bytes=token_bytes(tokenizer))
