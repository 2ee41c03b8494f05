"""Which tokens each rule picks, against the naive decision on each token's decoded text."""

import re
from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bipe.segmentation import RULES, TokenSet

Tokenizers = Mapping[str, PreTrainedTokenizerFast]
CHARACTERS = 'aé .…!?。．！"”)»\n\r\t😀इ।'
TEXTS = st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=30)
CLOSING = "\"'”’»）」』)]}"
KINDS = ["byte_level", "byte_level_fused", "llama", "unigram", "word_piece"]


@cache
def token_set(tokenizer: PreTrainedTokenizerFast, rule: str) -> TokenSet:
    return TokenSet.from_tokenizer(tokenizer, rule)


def ends_paper(text: str) -> bool:
    return "\n" in text or text.strip().endswith(".")


def ends_sentence(text: str) -> bool:
    return "\n" in text or text.rstrip(CLOSING + " \r\t").endswith(tuple(".…!?。．！।"))


NAIVE: dict[str, Callable[[str], bool]] = {
    "paper": ends_paper,
    "sentence": ends_sentence,
    "line": lambda text: "\n" in text,
}


def vocabulary_of(*tokens: str) -> PreTrainedTokenizerFast:
    """A vocabulary of exactly these byte-level tokens."""
    return PreTrainedTokenizerFast(tokenizer_object=byte_level_of([token.encode() for token in tokens]))


def byte_level_of(tokens: list[bytes]) -> Tokenizer:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable} | {byte: chr(256 + k) for k, byte in enumerate(rest)}
    names = ["".join(spelling[byte] for byte in token) for token in tokens]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    return backend


def matches(rule: str, token: str) -> bool:
    """Whether the rule picks a token; beside it stands one that every rule picks, for none may be empty."""
    return 0 in TokenSet.from_tokenizer(vocabulary_of(token, "\n\n\n"), rule).end_token_ids


@pytest.mark.parametrize("rule", sorted(NAIVE))
@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_rules_agree_with_the_decoded_text_of_each_token(
    tokenizers: Tokenizers, kind: str, rule: str, text: str
) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoder = tokenizer.backend_tokenizer.decoder
    assert decoder is not None
    decoded = [decoder.decode([token]) for token in tokenizer.convert_ids_to_tokens(ids)]
    expected = [
        NAIVE[rule](token) and index != tokenizer.unk_token_id
        for index, token in zip(ids, decoded, strict=True)
    ]
    is_end = token_set(tokenizer, rule)(torch.tensor([ids], dtype=torch.int64))
    assert is_end[0].tolist() == expected


@pytest.mark.parametrize("rule", sorted(NAIVE))
def test_eos_ends_a_segment_and_other_special_tokens_do_not(
    tokenizer: PreTrainedTokenizerFast, rule: str
) -> None:
    ends = TokenSet.from_tokenizer(tokenizer, rule).end_token_ids
    assert tokenizer.eos_token_id in ends
    assert tokenizer.get_vocab()["<br>.\n"] in ends
    assert not {tokenizer.get_vocab()[token] for token in ("<|stop|>.", "<|line|>\n")} & set(ends)


def test_fused_tokens_end_segments(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["byte_level_fused"]
    token = tokenizer.get_vocab()[".ĊĊ"]
    assert tokenizer.decode([token]) == ".\n\n"
    for rule in NAIVE:
        assert token in TokenSet.from_tokenizer(tokenizer, rule).end_token_ids


@pytest.mark.parametrize(
    ("token", "paper", "sentence", "line"),
    [
        (".", True, True, False),
        (" .", True, True, False),
        ("...", True, True, False),
        ("etc.  ", True, True, False),
        (".\t", True, True, False),
        ("\n", True, True, True),
        (",\n  ", True, True, True),
        ("\r", False, False, False),
        ('."', False, True, False),
        (".)", False, True, False),
        ("!”", False, True, False),
        ("?» ", False, True, False),
        (".“", False, True, False),
        ("。」", False, True, False),
        ("？", False, True, False),
        ("！", False, True, False),
        ("｡", False, True, False),
        ("．", False, True, False),
        ("…", False, True, False),
        ("؟", False, True, False),
        ("۔", False, True, False),
        ("।", False, True, False),
        ("॥", False, True, False),
        ("։", False, True, False),
        ("።", False, True, False),
        ("།", False, True, False),
        ("។", False, True, False),
        ("။", False, True, False),
        (")", False, False, False),
        (",", False, False, False),
        (";", False, False, False),
        (".5", False, False, False),
        ("./", False, False, False),
        (".(", False, False, False),
        ("、", False, False, False),
        ("", False, False, False),
    ],
)
def test_rules_on_single_tokens(token: str, paper: bool, sentence: bool, line: bool) -> None:
    assert [matches(rule, token) for rule in ("paper", "sentence", "line")] == [paper, sentence, line]


def test_parts_of_a_character_are_no_full_stop() -> None:
    parts = ["．".encode()[:k] for k in (1, 2)] + ["．".encode()[k:] for k in (1, 2)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_of([*parts, b"\x82", b".\xe2\x80", b"\xaf."])
    )
    assert TokenSet.from_tokenizer(tokenizer, "paper").end_token_ids == (6,)
    assert TokenSet.from_tokenizer(tokenizer, "sentence").end_token_ids == (6,)


def test_released_is_exactly_two_ids_of_llama(tokenizers: Tokenizers) -> None:
    assert TokenSet.from_tokenizer(tokenizers["llama"], "released").end_token_ids == (13, 869)


def test_paper_holds_more_than_the_released_ids(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["llama"]
    ends = set(TokenSet.from_tokenizer(tokenizer, "paper").end_token_ids)
    assert ends > {13, 869, tokenizer.get_vocab()["."], tokenizer.get_vocab()["..."]}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama"])
def test_released_refuses_other_vocabularies(tokenizers: Tokenizers, kind: str) -> None:
    with pytest.raises(
        ValueError, match=r"LLaMA's vocabulary, where id 869 is '▁\.'; here it is .*line, paper, sentence"
    ):
        TokenSet.from_tokenizer(tokenizers[kind], "released")


def test_a_vocabulary_without_separators_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"No token .* of 2 ends a segment under the rule 'line'.*TokenSet\(\[\.\.\.\]\)"
    ):
        TokenSet.from_tokenizer(vocabulary_of("a", "."), "line")


def test_an_unknown_rule_lists_the_choices(tokenizers: Tokenizers) -> None:
    message = "Unknown rule 'punkt'. Choose one of: equals, line, paper, released, sentence."
    with pytest.raises(ValueError, match=re.escape(message)):
        TokenSet.from_tokenizer(tokenizers["llama"], "punkt")
    assert sorted(RULES) == ["equals", "line", "paper", "released", "sentence"]
