"""From texts to token ids: a tokenizer loaded or trained, and the bytes that its tokens stand for."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bipe.vocabulary import token_texts

from .documents import Document

EOS = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # each byte and the end of text
TRAINING_CHARACTERS = 20_000_000
PIECE_CHARACTERS = 50_000
BATCH_CHARACTERS = 1_000_000


def load_tokenizer(name_or_dir: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a local folder, or by its name on the hub where there is no such folder.

    Args:
        name_or_dir: a folder that `save_pretrained` wrote, or a name such as `gpt2`.

    Raises:
        ValueError: neither a folder nor the hub has a usable tokenizer of that name.
    """
    path = Path(name_or_dir)
    if path.is_file():
        raise ValueError(
            f"A tokenizer is a folder or a name on the hub; {name_or_dir!r} is a file. Give its folder."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_dir)
    except Exception as error:  # tokenizers raises Exception itself where a file is broken
        reason = str(error).strip().partition("\n")[0]
        place = "the folder" if path.is_dir() else "no such folder is here, and the hub's"
        raise ValueError(
            f"No tokenizer could be loaded from {name_or_dir!r} ({place} gave: {reason}). Give a folder that "
            "save_pretrained wrote, a name on the hub, or train one."
        ) from error
    # A folder with a vocabulary file that transformers does not read loads as its special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(
            f"The tokenizer of {name_or_dir!r} has only its {len(tokenizer)} special tokens: its vocabulary "
            "was not read. Load it where it was made and save it with save_pretrained."
        )
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on texts; the end of text `<|endoftext|>` has id 0, each byte has a token.

    Of more than 20 million characters it reads evenly spread pieces, so many in all, the same in each run.

    >>> tokenizer = train_tokenizer(["the cat and the hat"], 260)
    >>> len(tokenizer), tokenizer.eos_token_id, tokenizer.decode(tokenizer.encode("the hat"))
    (260, 0, 'the hat')

    Args:
        texts: the texts to learn from.
        vocab_size: number of tokens, special and byte tokens included; fewer come out where the texts have no
            more to merge.

    Raises:
        ValueError: `vocab_size` is below 257, or there is no text.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"A byte-level vocabulary needs {SMALLEST_VOCABULARY} tokens or more, the bytes and the end of "
            f"text; got {vocab_size}."
        )
    pieces = _sample([text for text in texts if text], TRAINING_CHARACTERS)
    if not pieces:
        raise ValueError("There is no text to train a tokenizer on.")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def _sample(texts: Sequence[str], characters: int) -> list[str]:
    """Cut texts in pieces and keep evenly spread ones, about so many characters in all."""
    pieces = [text[i : i + PIECE_CHARACTERS] for text in texts for i in range(0, len(text), PIECE_CHARACTERS)]
    share = min(1.0, characters / max(1, sum(map(len, pieces))))
    return [piece for i, piece in enumerate(pieces) if int((i + 1) * share) > int(i * share)]


def encode(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Turn each document's text into token ids, reading no special token out of the text.

    Where the tokenizer starts a text with its bos, as Llama's does, so does each document. A text that spells
    `<|endoftext|>` is encoded by its characters: only packing sets document borders. Each document is encoded
    whole, which takes some 200 bytes of memory for each character of the longest.

    >>> tokenizer = train_tokenizer(["aaaa"], 257)
    >>> encode([Document("one", "ab")], tokenizer)[0].tolist() == tokenizer.convert_tokens_to_ids(["a", "b"])
    True

    Args:
        documents: the texts.
        tokenizer: any tokenizer of transformers.

    Returns:
        One tensor (n,) int64 of token ids for each document.

    Raises:
        ValueError: the tokenizer has no token for something in the text.
    """
    encoded: list[Tensor] = []
    opening = opening_ids(tokenizer)
    for batch in _batches([document.text for document in documents], BATCH_CHARACTERS):
        encoded += [torch.tensor(opening + row, dtype=torch.int64) for row in plain_ids(tokenizer, batch)]
    return encoded


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts alone: no special token is added, and none is read out of a text.

    Raises:
        ValueError: the tokenizer has no token for something in a text.
    """
    try:
        return tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # or each long text would warn that it exceeds model_max_length
        )["input_ids"]
    except Exception as error:
        if type(error) is not Exception:  # the one that tokenizers has for a symbol without an id
            raise
        raise ValueError(f"The text cannot be cut into tokens of this tokenizer: {error}.") from error


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that a tokenizer puts before a text: its bos, where it adds one by itself, or none.

    >>> opening_ids(train_tokenizer(["aaaa"], 257))
    []
    """
    added = list(tokenizer("")["input_ids"])
    return added[:1] if added and added[0] == tokenizer.bos_token_id else []


def _batches(texts: Sequence[str], characters: int) -> Iterator[list[str]]:
    """Group neighbouring texts: the tokenizer keeps about 100 bytes a token until a batch is done."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Count the bytes of UTF-8 text that each token stands for, which turns nats a token into bits per byte.

    >>> tokenizer = train_tokenizer(["aaaa"], 258)
    >>> token_bytes(tokenizer)[tokenizer.convert_tokens_to_ids(["<|endoftext|>", "a", "aa"])].tolist()
    [0, 1, 2]

    Returns:
        (vocabulary,) int64; 0 for special tokens.
    """
    return torch.tensor([len(text or b"") for text in token_texts(tokenizer)], dtype=torch.int64)
