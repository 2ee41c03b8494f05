"""Which tokens of a vocabulary end a segment, decided on each token's bytes."""

import re
import unicodedata
from collections.abc import Callable, Mapping

from transformers import PreTrainedTokenizerBase

from bipe.vocabulary import eos_ids, special_ids, token_texts

# Unicode's Sentence_Terminal marks of widely printed scripts, with the ellipsis and the Tibetan shads.
_SENTENCE_ENDS = frozenset(
    ".!?"
    "…‼‽⁇⁈⁉"
    "。｡！？．︒︕︖﹒﹖﹗"  # Chinese and Japanese, full, half and small width
    "։"  # Armenian
    "؝؞؟۔"  # Arabic, Urdu
    "܀܁܂"  # Syriac
    "߹"  # N'Ko
    "।॥"  # Devanagari and the scripts that share its danda
    "၊။"  # Myanmar
    "።፧፨"  # Ethiopic
    "។៕"  # Khmer
    "།༎"  # Tibetan
    "᠃᠉"  # Mongolian
    "᙮"  # Canadian syllabics
    "᱾᱿"  # Ol Chiki
    "꘎꘏"  # Vai
    "꓿"  # Lisu
    "꯫"  # Meetei Mayek
)
_QUOTES = frozenset("\"'＂＇")
# Closing brackets and quotes; and opening quotes, with which German closes.
_CLOSING_CATEGORIES = frozenset({"Pe", "Pf", "Pi"})
_FILE_SEPARATOR = re.compile(r"file[_ -]?sep", re.IGNORECASE)
_RELEASED_TOKENS = {869: "▁.", 13: "<0x0A>"}


def _holds_newline(text: bytes) -> bool:
    return b"\n" in text


def _ends_in_full_stop(text: bytes) -> bool:
    return _holds_newline(text) or _decode(text).rstrip().endswith(".")


def _ends_sentence(text: bytes) -> bool:
    characters = _decode(text).rstrip()
    while characters and _closes(characters[-1]):
        characters = characters[:-1].rstrip()
    return _holds_newline(text) or characters[-1:] in _SENTENCE_ENDS


def _ends_in_equals(text: bytes) -> bool:
    return _decode(text).rstrip().endswith("=")


def _closes(character: str) -> bool:
    return character in _QUOTES or unicodedata.category(character) in _CLOSING_CATEGORIES


def _decode(text: bytes) -> str:
    """Decode a token's bytes; a part of a character becomes U+FFFD, which is no punctuation."""
    return text.decode("utf-8", errors="replace")


def _where(
    name: str, matches: Callable[[bytes], bool]
) -> Callable[[PreTrainedTokenizerBase], frozenset[int]]:
    """Make the rule that ends segments at the tokens whose bytes match, and at the tokenizer's eos."""

    def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        texts = token_texts(tokenizer)
        ids = {index for index, text in enumerate(texts) if text is not None and matches(text)}
        if not ids:
            raise ValueError(
                f"No token of this vocabulary of {len(texts)} ends a segment under the rule {name!r}. "
                f"Choose another of {', '.join(sorted(RULES))}, or list the ids: TokenSet([...])."
            )
        return frozenset(ids | eos_ids(tokenizer))

    return end_token_ids


def _released(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the two ids of the authors' released code, which fit LLaMA's vocabulary only."""
    tokens = {index: token for token, index in tokenizer.get_vocab().items() if index in _RELEASED_TOKENS}
    for index, expected in _RELEASED_TOKENS.items():
        if (found := tokens.get(index)) != expected:
            raise ValueError(
                f"The rule 'released' is made for LLaMA's vocabulary, where id {index} is {expected!r}; "
                f"here it is {found!r}. Choose one of: {', '.join(sorted(RULES.keys() - {'released'}))}."
            )
    return frozenset(_RELEASED_TOKENS)


RULES: Mapping[str, Callable[[PreTrainedTokenizerBase], frozenset[int]]] = {
    "paper": _where("paper", _ends_in_full_stop),
    "sentence": _where("sentence", _ends_sentence),
    "line": _where("line", _holds_newline),
    "equals": _where("equals", _ends_in_equals),
    "released": _released,
}


def file_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that stand between the files of a repository, and the eos."""
    # Some tokenizers flag it as special, others add it as any other token.
    apart = special_ids(tokenizer) | set(tokenizer.added_tokens_decoder)
    names = {index: token for token, index in tokenizer.get_vocab().items() if index in apart}
    ids = {index for index, name in names.items() if _FILE_SEPARATOR.search(name)} | eos_ids(tokenizer)
    if not ids:
        raise ValueError("This vocabulary has neither an eos nor a separator of files, so no file ever ends.")
    return frozenset(ids)
