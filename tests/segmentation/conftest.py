"""Small tokenizers of every kind that fast tokenizers come in, built here from a few lines of text."""

from collections.abc import Callable, Mapping

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "It was late. She said: “No!” (Why not?) He went home...\n\nThe end.\n\n",
    "Mr. Elliot came at 3.5 p.m. and left. Was it he? Yes! No; never.\r\n\tindented line.\n",
    "他来了。她走了！真的吗？是的．नमस्ते। यह अंत है॥ وصل. هل؟ نعم۔ Բարեւ։ ሰላም።\n",
    'print("done.")  # ends.\nreturn None\n\n\n',
] * 20


def byte_level(*, whole_lines: bool = False) -> Tokenizer:
    """GPT-2's kind; `whole_lines` does not split before merging, so that full stops and newlines fuse."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not whole_lines)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def llama() -> Tokenizer:
    """LLaMA's kind, with its ids for the newline (13) and for the full stop after a space (869)."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    characters = sorted(
        {character for text in TEXTS for character in text.replace(" ", "▁")} - {"\n", "\r", "\t"}
    )
    merges = [("▁", character) for character in characters if character not in "▁."]
    joined = [*characters, *(left + right for left, right in merges), "...", ".."]
    fill = [f"fill{index}" for index in range(869 - len(pieces) - len(joined))]
    pieces += [*joined, *fill, "▁.", ".)", '."']
    merges += [("▁", "."), (".", "."), ("..", "."), (".", ")"), (".", '"')]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    replace = decoders.Replace("▁", " ")
    backend.decoder = decoders.Sequence(
        [replace, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def unigram() -> Tokenizer:
    """T5's and XLM-R's kind."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def word_piece() -> Tokenizer:
    """BERT's kind."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special_tokens = ["<unk>", "</s>"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special_tokens, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return backend


BACKENDS: Mapping[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "byte_level_fused": lambda: byte_level(whole_lines=True),
    "llama": llama,
    "unigram": unigram,
    "word_piece": word_piece,
}


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Add special tokens that look like ends of segments, and an ordinary added token that is one."""
    backend.add_special_tokens(["<|stop|>.", "<|line|>\n"])
    backend.add_tokens([AddedToken("<br>.\n", normalized=False)])
    unk = "<unk>" if "<unk>" in backend.get_vocab() else None
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token=unk)


@pytest.fixture(scope="session")
def tokenizers() -> Mapping[str, PreTrainedTokenizerFast]:
    return {kind: wrap(build()) for kind, build in BACKENDS.items()}


@pytest.fixture(params=list(BACKENDS))
def tokenizer(
    request: pytest.FixtureRequest, tokenizers: Mapping[str, PreTrainedTokenizerFast]
) -> PreTrainedTokenizerFast:
    return tokenizers[request.param]
