"""`token_texts` against the tokenizers' own decoders and against the texts they encode."""

from collections.abc import Mapping
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bipe.segmentation import TokenSet
from bipe.vocabulary import token_texts

Tokenizers = Mapping[str, PreTrainedTokenizerFast]


@cache
def cached_texts(tokenizer: PreTrainedTokenizerFast) -> list[bytes | None]:
    return token_texts(tokenizer)


def spelled(tokenizer: PreTrainedTokenizerFast, text: str) -> bytes:
    """The bytes of `text` put together from its tokens."""
    texts = cached_texts(tokenizer)
    return b"".join(texts[index] or b"" for index in tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_fused"])
@given(text=st.text(max_size=40))
def test_byte_level_tokens_spell_every_text(tokenizers: Tokenizers, kind: str, text: str) -> None:
    assert spelled(tokenizers[kind], text) == text.encode()


@given(
    text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), min_size=1, max_size=40)
)
def test_byte_fallback_tokens_spell_every_text(tokenizers: Tokenizers, text: str) -> None:
    assert spelled(tokenizers["llama"], text) == f" {text}".encode()


def test_metaspace_tokens_spell_the_text(tokenizers: Tokenizers) -> None:
    assert spelled(tokenizers["unigram"], "She said. No end.") == b" She said. No end."


def test_word_piece_tokens_carry_no_mark(tokenizers: Tokenizers) -> None:
    assert spelled(tokenizers["word_piece"], "Elliot came") == b"Elliotcame"


def test_each_token_agrees_with_the_decoder_of_its_backend(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = token_texts(tokenizer)
    decoder = tokenizer.backend_tokenizer.decoder
    assert decoder is not None
    for token, index in tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).items():
        text = texts[index]
        if text is not None:  # decoders treat the first token of a text in a way of their own
            assert text.decode(errors="replace").strip() == decoder.decode(["a", token])[1:].strip(), token


def test_special_tokens_have_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    texts, ids = token_texts(tokenizer), tokenizer.get_vocab()
    assert [texts[ids[token]] for token in ("</s>", "<|stop|>.", "<|line|>\n")] == [None] * 3
    assert texts[ids["<br>.\n"]] == b"<br>.\n"
    assert len(texts) == len(tokenizer)


def test_tokens_of_single_bytes_are_text_even_if_they_are_flagged_as_special(tokenizers: Tokenizers) -> None:
    backend = Tokenizer.from_str(tokenizers["llama"].backend_tokenizer.to_str())
    backend.add_special_tokens(["<0x0A>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert token_texts(tokenizer)[13] == b"\n"
    assert 13 in TokenSet.from_tokenizer(tokenizer, "line").end_token_ids


def test_added_tokens_are_literal_even_in_the_byte_alphabet(tokenizers: Tokenizers) -> None:
    backend = Tokenizer.from_str(tokenizers["byte_level"].backend_tokenizer.to_str())
    backend.add_tokens(["Ċé"])
    assert token_texts(PreTrainedTokenizerFast(tokenizer_object=backend))[-1] == "Ċé".encode()


def test_unused_ids_have_no_text() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 3}))
    assert token_texts(PreTrainedTokenizerFast(tokenizer_object=backend)) == [b"a", None, None, b"b"]


def test_a_mark_for_the_newline_is_undone() -> None:
    backend = Tokenizer(models.WordLevel({"end.<n>": 0, "▁of": 1, "<0x0A>": 2}))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Replace("\n", "<n>"), normalizers.Replace(" ", "▁")]
    )
    assert token_texts(PreTrainedTokenizerFast(tokenizer_object=backend)) == [b"end.\n", b" of", b"<0x0A>"]


def test_a_normalizer_that_drops_marks_is_not_undone() -> None:
    backend = Tokenizer(models.WordLevel({"a_b": 0, "_": 1}))
    backend.normalizer = normalizers.Replace("_", " ")
    assert token_texts(PreTrainedTokenizerFast(tokenizer_object=backend)) == [b"a_b", b"_"]


def test_the_mark_after_a_word_is_a_space() -> None:
    vocabulary = {"end.</w>": 0, "en": 1, "ĠéĊ": 2}
    backend = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>"))
    backend.decoder = decoders.BPEDecoder()
    assert token_texts(PreTrainedTokenizerFast(tokenizer_object=backend))[:2] == [b"end. ", b"en"]
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()  # CLIP's kind
    assert token_texts(PreTrainedTokenizerFast(tokenizer_object=backend)) == [b"end. ", b"en", b" \xe9\n"]


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow(PreTrainedTokenizerBase):
        """Has no backend."""

    with pytest.raises(ValueError, match=r"Slow is no fast tokenizer.*AutoTokenizer"):
        token_texts(Slow())
