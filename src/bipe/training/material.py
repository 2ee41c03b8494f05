"""What a run trains on: text, or arithmetic problems."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bipe.data.arithmetic import SYMBOLS, ArithmeticBlocks, Split, arithmetic_tokenizer
from bipe.data.documents import Document, load_documents
from bipe.data.packing import hold_out_tails, pack
from bipe.data.scrolls import Example, ScrollsBlocks, read_scrolls
from bipe.data.store import TokenStore
from bipe.data.tokens import encode, load_tokenizer, train_tokenizer
from bipe.processes import is_first

from .order import Blocks
from .recipe import ArithmeticSettings, DataSettings

MEASURED = 1000
"""Problems or examples that a scheme measures on."""


class Material(Protocol):
    """What a run trains and validates on."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Turns text into the ids."""
        ...

    @property
    def documents(self) -> Sequence[Tensor]:
        """Training documents, each `(n,)` int64, for what a scheme measures on them."""
        ...

    def blocks(self, length: int, vocab_size: int | None = None) -> Blocks:
        """The training blocks.

        Args:
            length: tokens in a block.
            vocab_size: number of ids that the model knows; None for the tokenizer's.

        Raises:
            ValueError: there is less than one block, or an id outside the vocabulary.
        """
        ...

    def validation_blocks(self, length: int, vocab_size: int | None = None) -> Blocks:
        """As `blocks`, to validate on."""
        ...


@dataclass(frozen=True)
class Text:
    """Documents as tokens.

    Attributes:
        documents: to train on, each `(n,)` int64.
        validation: to validate on.
        tokenizer: what cut them.
    """

    documents: list[Tensor]
    validation: list[Tensor]
    tokenizer: PreTrainedTokenizerBase

    def blocks(self, length: int, vocab_size: int | None = None) -> Blocks:
        """See `Material`."""
        return pack(self.documents, length, self._eos, vocab_size=vocab_size, name="training text")

    def validation_blocks(self, length: int, vocab_size: int | None = None) -> Blocks:
        """See `Material`."""
        return pack(self.validation, length, self._eos, vocab_size=vocab_size, name="validation text")

    @property
    def _eos(self) -> int | None:
        return cast("int | None", self.tokenizer.eos_token_id)


@dataclass(frozen=True)
class StoredText:
    """Documents as tokens on a disk.

    Attributes:
        store: the training text.
        validation: documents to validate on, each `(n,)` int64.
    """

    store: TokenStore
    validation: list[Tensor]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What cut them."""
        return self.store.tokenizer

    @property
    def documents(self) -> list[Tensor]:
        """See `Material`; the first ones."""
        return self.store.documents(MEASURED)

    def blocks(self, length: int, vocab_size: int | None = None) -> Blocks:
        """See `Material`."""
        return self.store.blocks(length, vocab_size)

    def validation_blocks(self, length: int, vocab_size: int | None = None) -> Blocks:
        """See `Material`."""
        eos = cast("int | None", self.tokenizer.eos_token_id)
        return pack(self.validation, length, eos, vocab_size=vocab_size, name="validation text")


class Arithmetic:
    """Problems with their solutions, a block each.

    Args:
        settings: how many, and how large.
        made: the problems to train on, of `ArithmeticBlocks.rows`; None to make each when it is needed.
    """

    def __init__(self, settings: ArithmeticSettings, made: Tensor | None = None) -> None:
        self.settings = settings
        self.made = made
        self.tokenizer: PreTrainedTokenizerBase = arithmetic_tokenizer()

    @property
    def documents(self) -> list[Tensor]:
        """See `Material`."""
        problems = self._blocks("train", min(MEASURED, self.settings.problems))
        return [torch.tensor(problems.problem(index)) for index in range(len(problems))]

    def blocks(self, length: int | None = None, vocab_size: int | None = None) -> ArithmeticBlocks:
        """See `Material`; blocks have the problems' own length and vocabulary."""
        if vocab_size not in (None, len(SYMBOLS)):
            raise ValueError(
                f"Arithmetic has a vocabulary of {len(SYMBOLS)} symbols, and the model to be trained on it "
                f"one of {vocab_size}: start from a model of arithmetic, or give a scheme."
            )
        return self._blocks("train", self.settings.problems, self.made)

    def validation_blocks(self, length: int | None = None, vocab_size: int | None = None) -> ArithmeticBlocks:
        """As `blocks`, to validate on."""
        return self._blocks("validation", self.settings.validation_problems)

    def _blocks(self, split: Split, size: int, made: Tensor | None = None) -> ArithmeticBlocks:
        fewest = self.settings.fewest_operators
        return ArithmeticBlocks(self.settings.operators, split, size, fewest_operators=fewest, made=made)


@dataclass(frozen=True)
class Scrolls:
    """Prompts of a task with their answers.

    Attributes:
        task: its name.
        examples: to train on.
        validation: to validate on.
        tokenizer: the model's.
    """

    task: str
    examples: list[Example]
    validation: list[Example]
    tokenizer: PreTrainedTokenizerBase

    @property
    def documents(self) -> list[Tensor]:
        """See `Material`."""
        texts = [Document(example.id, example.input) for example in self.examples[:MEASURED]]
        return encode(texts, self.tokenizer)

    def blocks(self, length: int, vocab_size: int | None = None) -> ScrollsBlocks:
        """See `Material`."""
        return ScrollsBlocks(self.task, self.examples, self.tokenizer, length)

    def validation_blocks(self, length: int, vocab_size: int | None = None) -> ScrollsBlocks:
        """See `Material`."""
        return ScrollsBlocks(self.task, self.validation, self.tokenizer, length)


def read_material(data: DataSettings, start: str | None = None) -> Material:
    """Read the text of a recipe, or make its problems.

    Where no validation text is named, the last twentieth of each training document is held out.

    Args:
        data: a recipe's.
        start: folder of the model to go on from, whose tokenizer is taken where the data name none.

    Raises:
        ValueError: there is no text where it should be.
    """
    if data.arithmetic is not None:
        return Arithmetic(data.arithmetic)
    if data.scrolls is not None:
        return _read_scrolls(data.scrolls.task, data.tokenizer or start)
    assert data.train is not None, "the settings have seen to it"
    if data.store is not None:
        return _read_store(data, data.train, data.tokenizer or start)
    return make_text(data, load_documents(data.train, limit=data.max_documents), start)


def _read_store(data: DataSettings, sources: Sequence[str], tokenizer: str | None) -> StoredText:
    """Fill a store, or wait until the first process has."""
    if tokenizer is None or data.store is None or data.validation is None:
        raise ValueError("A store of tokens needs a tokenizer: name one, or a model to start from.")
    store = TokenStore(data.store, sources, load_tokenizer(tokenizer), data.max_documents)
    if is_first():
        store.fill()
    else:
        store.wait()
    validation = encode(load_documents(data.validation, limit=data.max_documents), store.tokenizer)
    return StoredText(store, validation)


def make_text(data: DataSettings, documents: Sequence[Document], start: str | None = None) -> Text:
    """Make tokens of training documents, with a tokenizer that is loaded or trained on them.

    Args:
        data: names the tokenizer and the validation text, if they are not to be made of the documents.
        documents: to train on.
        start: as in `read_material`.

    Raises:
        ValueError: there is no text where it should be.
    """
    name = data.tokenizer or start
    if name is None:
        tokenizer = train_tokenizer((document.text for document in documents), data.vocab_size)
    else:
        tokenizer = load_tokenizer(name)
    training = encode(documents, tokenizer)
    if data.validation is None:
        return Text(*hold_out_tails(training), tokenizer)
    validation = encode(load_documents(data.validation, limit=data.max_documents), tokenizer)
    return Text(training, validation, tokenizer)


def _read_scrolls(source: str, tokenizer: str | None) -> Scrolls:
    if tokenizer is None:
        raise ValueError("SCROLLS fine-tunes a model: give its folder as start, or a tokenizer.")
    task, examples = read_scrolls(source, "train")
    return Scrolls(task, examples, read_scrolls(source, "validation")[1], load_tokenizer(tokenizer))
