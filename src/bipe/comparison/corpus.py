"""What a comparison trains and tests on: text as tokens, or problems, made once and kept in its folder."""

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedTokenizerBase

from bipe.data import encode, load_documents, load_tokenizer, split_documents, token_bytes
from bipe.plain import read_json
from bipe.storage import read_tensors, write_tensors, write_whole
from bipe.training.material import Arithmetic, Material, Text, make_text

from .settings import MARKER, Comparison

FILE = "corpus.safetensors"

NAMES = "test_documents.json"
"""The names of the test documents."""

WORTH_PROCESSES = 100_000
"""Problems that take longer to make than processes to start."""


@dataclass(frozen=True)
class Corpus:
    """What a comparison trains and tests on.

    Attributes:
        material: to train and validate on.
        test: documents, none of arithmetic.
        token_bytes: `(V,)` int64, UTF-8 bytes of each token.
        test_names: of the documents; none where the folder was made before names were kept.
    """

    material: Material
    test: list[Tensor]
    token_bytes: Tensor
    test_names: list[str] = field(default_factory=list)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What cut the text."""
        return self.material.tokenizer

    def validation_blocks(self, length: int, most: int) -> Subset[dict[str, Tensor]]:
        """At most so many blocks of the validation text, spread evenly."""
        blocks = self.material.validation_blocks(length)
        count = min(most, len(blocks))
        return Subset(
            cast("Dataset[dict[str, Tensor]]", blocks),
            [index * len(blocks) // count for index in range(count)],
        )


def make_corpus(settings: Comparison, out: Path, processes: int = 1) -> None:
    """Read the text, make or load the tokenizer, and leave the tokens in the folder, if they are not there.

    Arithmetic problems are made by so many processes; with fewer problems than that is worth, by this one.

    Raises:
        ValueError: there is no text where it should be.
    """
    load_corpus.cache_clear()
    data = settings.data
    if (out / FILE).exists():
        return
    if data.arithmetic is not None:
        blocks = Arithmetic(data.arithmetic).blocks()
        rows = blocks.rows(processes if len(blocks) > WORTH_PROCESSES else 1)
        write_tensors(out / FILE, {"problems": rows})
        return
    assert data.train is not None, "the settings have seen to it"
    train = load_documents(data.train, limit=data.max_documents)
    if settings.test is None:
        train, test = split_documents(train)
    else:
        test = load_documents(settings.test, limit=data.max_documents)
    text = make_text(data, train)
    text.tokenizer.save_pretrained(out / "tokenizer")
    tensors = {}
    for name, documents in {
        "train": text.documents,
        "validation": text.validation,
        "test": encode(test, text.tokenizer),
    }.items():
        tensors[name] = torch.cat(documents).int()
        tensors[f"{name}_lengths"] = torch.tensor([len(document) for document in documents])
    write_whole(out / NAMES, json.dumps([document.name for document in test]))
    write_tensors(out / FILE, tensors)


@lru_cache(maxsize=1)
def load_corpus(out: Path) -> Corpus:
    """What the comparison in this folder, after `make_corpus`, trains and tests on."""
    settings = Comparison.model_validate_json((out / MARKER).read_text(encoding="utf-8"))
    if settings.data.arithmetic is not None:
        problems = Arithmetic(settings.data.arithmetic, read_tensors(out / FILE)["problems"])
        return Corpus(problems, [], token_bytes(problems.tokenizer))
    tensors = read_tensors(out / FILE)
    train, validation, test = (
        list(tensors[name].long().split(tensors[f"{name}_lengths"].tolist()))
        for name in ("train", "validation", "test")
    )
    tokenizer = load_tokenizer(str(out / "tokenizer"))
    names = read_json((out / NAMES).read_bytes()) if (out / NAMES).exists() else []
    return Corpus(Text(train, validation, tokenizer), test, token_bytes(tokenizer), names)
