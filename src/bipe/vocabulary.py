"""What each token of a tokenizer's vocabulary stands for, as bytes of text."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

_Step = Mapping[str, Any]  # one component of a tokenizer's JSON form
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest token id, which is not the number of tokens where ids are left out."""
    return max(tokenizer.get_vocab().values()) + 1


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    r"""Return the bytes of text that each token id stands for, `None` for special tokens and unused ids.

    The way tokens spell text (byte-level, byte fallback, a mark for the space, `##` before continued words)
    is read from the tokenizer's backend. Bytes rather than text, because one token may hold a part of a
    character.

    >>> from tokenizers import Tokenizer, decoders, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> backend = Tokenizer(models.WordLevel({"<s>": 0, "Ġthe": 1, ".Ċ": 2}))
    >>> backend.decoder = decoders.ByteLevel()
    >>> token_texts(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>"))
    [None, b' the', b'.\n']

    Args:
        tokenizer: any fast tokenizer of transformers. White space that its normalizer or pre-tokenizer throws
            away (as before WordPiece) belongs to no token.

    Returns:
        One entry for each id from 0 to the largest id of the vocabulary, added tokens included.

    Raises:
        ValueError: the tokenizer has no `tokenizers` backend.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
    if backend is None:
        raise ValueError(
            f"{type(tokenizer).__name__} is no fast tokenizer, so the text of its tokens is unknown. "
            "Load it with AutoTokenizer.from_pretrained, or convert it to a tokenizer.json first."
        )
    specials = special_ids(tokenizer)
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    spelled: dict[str, int] = backend.get_vocab(with_added_tokens=False)
    decode = _decoder(json.loads(backend.to_str()))
    texts: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        if index not in specials:
            # An added token that the model itself does not know is matched literally in the text.
            texts[index] = decode(token) if spelled.get(token) == index else token.encode()
    return texts


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that stand for no text: named special tokens and added ones flagged as special.

    Tokens of single bytes, `<0x0A>`, stand for text even where a vocabulary flags them.
    """
    added: Mapping[int, Any] = tokenizer.added_tokens_decoder
    flagged = {index: token.content for index, token in added.items() if token.special}
    return frozenset(tokenizer.all_special_ids) | {
        index for index, content in flagged.items() if not _BYTE_TOKEN.fullmatch(content)
    }


def eos_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the id of the tokenizer's end of sequence, or no id where it has none."""
    eos = tokenizer.eos_token_id
    return frozenset([eos]) if isinstance(eos, int) else frozenset()


def _decoder(state: _Step) -> Callable[[str], bytes]:
    """Choose how tokens spell text from a tokenizer's JSON form."""
    steps = {part: list(_steps(state.get(part))) for part in ("normalizer", "pre_tokenizer", "decoder")}
    kinds = {step["type"] for part in steps.values() for step in part}
    if "ByteLevel" in kinds:
        return _byte_level(state["model"].get("end_of_word_suffix"))
    byte_fallback = bool(state["model"].get("byte_fallback")) or "ByteFallback" in kinds
    prefix, suffix = _word_marks(state["model"], steps["decoder"])
    replacements = list(_replacements(steps))

    def decode(token: str) -> bytes:
        if byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if prefix and token != prefix:
            token = token.removeprefix(prefix)
        if suffix and token.endswith(suffix):
            token = token.removesuffix(suffix) + " "
        for mark, text in replacements:
            token = token.replace(mark, text)
        return token.encode()

    return decode


def _steps(component: _Step | None) -> Iterator[_Step]:
    """Yield a component's steps, nested sequences taken apart."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
    for part in ("normalizers", "pretokenizers", "decoders"):
        for inner in component.get(part, ()):
            yield from _steps(inner)


def _byte_level(end_of_word: str | None) -> Callable[[str], bytes]:
    """Decode GPT-2's alphabet, in which one printable character stands for each byte."""
    byte_of = {character: byte for byte, character in enumerate(_byte_alphabet())}

    def decode(token: str) -> bytes:
        ends_word = bool(end_of_word) and token.endswith(end_of_word or "")
        spelling = token.removesuffix(end_of_word or "") if ends_word else token
        if not all(character in byte_of for character in spelling):
            return token.encode()
        return bytes(byte_of[character] for character in spelling) + (b" " if ends_word else b"")

    return decode


def _byte_alphabet() -> list[str]:
    """Return the character of each byte: itself where Latin-1 prints it, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _word_marks(model: _Step, decoder: list[_Step]) -> tuple[str | None, str | None]:
    """Return the mark before a continued word (`##`) and the mark after a whole word (`</w>`)."""
    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    for step in decoder:
        if step["type"] == "WordPiece":
            prefix = prefix or step["prefix"]
        if step["type"] == "BPEDecoder":
            suffix = suffix or step["suffix"]
    return prefix, suffix


def _replacements(steps: Mapping[str, list[_Step]]) -> Iterator[tuple[str, str]]:
    """Yield (mark, text) for each mark that stands for white space, such as `▁` for a space."""
    for step in steps["decoder"] + steps["pre_tokenizer"]:
        if step["type"] == "Metaspace":
            yield step["replacement"], " "
    for mark, text in _literal_replacements(steps["decoder"]):
        yield mark, text
    for text, mark in _literal_replacements(steps["normalizer"]):
        if text.isspace() and mark and not mark.isspace():
            yield mark, text


def _literal_replacements(steps: list[_Step]) -> Iterator[tuple[str, str]]:
    """Yield (old, new) of the steps that replace a fixed string."""
    for step in steps:
        if step["type"] == "Replace" and (old := step["pattern"].get("String")):
            yield old, step["content"]
