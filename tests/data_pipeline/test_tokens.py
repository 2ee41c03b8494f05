"""Tokenizers trained and loaded, and what encoding and byte counts promise."""

import json
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from bipe.data import Document, encode, load_tokenizer, token_bytes, train_tokenizer
from bipe.data import tokens as tokens_module

TEXT = "It was a bright cold day.\n\n    The clocks were striking 13.\ndef f(x):\n        return x\n" * 20
any_text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([TEXT], 300)


class TestTraining:
    def test_vocabulary(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert len(tokenizer) == 300
        assert tokenizer.eos_token == "<|endoftext|>"
        assert tokenizer.eos_token_id == 0
        assert tokenizer.all_special_ids == [0]

    def test_is_deterministic(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert train_tokenizer(iter([TEXT]), 300).get_vocab() == tokenizer.get_vocab()

    def test_bytes_never_seen_have_tokens(self) -> None:
        tokenizer = train_tokenizer(["a"], 257)
        (ids,) = encode([Document("a", "\N{GRINNING FACE}")], tokenizer)
        assert len(ids) == 4
        assert tokenizer.decode(ids) == "\N{GRINNING FACE}"

    def test_fewer_tokens_where_there_is_no_more_to_merge(self) -> None:
        assert len(train_tokenizer(["ab"], 1000)) == 258

    def test_large_texts_are_sampled_evenly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tokens_module, "PIECE_CHARACTERS", 10)
        texts = [f"{i:09d}\n" * 3 for i in range(40)]
        pieces = tokens_module._sample(texts, 300)
        assert pieces == [f"{i // 3:09d}\n" for i in range(3, 120, 4)]
        assert tokens_module._sample(texts, 10_000) == [f"{i:09d}\n" for i in range(40) for _ in range(3)]

    def test_too_small_vocabulary(self) -> None:
        with pytest.raises(ValueError, match=r"needs 257 tokens or more.*got 256"):
            train_tokenizer([TEXT], 256)

    @pytest.mark.parametrize("texts", [[], ["", ""]])
    def test_no_text(self, texts: list[str]) -> None:
        with pytest.raises(ValueError, match="no text to train a tokenizer on"):
            train_tokenizer(texts, 300)


class TestLoading:
    @pytest.mark.parametrize("model_type", [None, "llama", "gpt2"])
    def test_saved_tokenizer_gives_equal_ids(
        self, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, model_type: str | None
    ) -> None:
        """Whatever model lies beside it: transformers may choose the class of a tokenizer by that."""
        tokenizer.save_pretrained(tmp_path)
        if model_type:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        loaded = load_tokenizer(str(tmp_path))
        text = TEXT + "don't  12345 \t caf\N{LATIN SMALL LETTER E WITH ACUTE} \n\n\n  <|endoftext|> x"
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.eos_token_id == 0
        assert torch.equal(token_bytes(loaded), token_bytes(tokenizer))

    def test_folder_without_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"could be loaded from '.*' \(the folder gave: .*save_pretrained"
        ):
            load_tokenizer(str(tmp_path))

    def test_broken_file(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(ValueError, match=r"No tokenizer could be loaded from '.*' \(the folder gave: "):
            load_tokenizer(str(tmp_path))

    def test_missing_path(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no such folder is here"):
            load_tokenizer(str(tmp_path / "gone"))

    def test_file(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(ValueError, match=r"tokenizer\.json' is a file"):
            load_tokenizer(str(tmp_path / "tokenizer.json"))

    def test_vocabulary_of_special_tokens_alone(self, tmp_path: Path) -> None:
        backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
        PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"
        ).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="only its 2 special tokens"):
            load_tokenizer(str(tmp_path))


class TestEncoding:
    @given(any_text)
    def test_bytes_of_tokens_sum_to_the_text(self, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        (ids,) = encode([Document("a", text)], tokenizer)
        assert ids.dtype == torch.int64 and ids.ndim == 1
        assert int(token_bytes(tokenizer)[ids].sum()) == len(text.encode())
        assert tokenizer.decode(ids) == text

    def test_text_cannot_spell_a_special_token(self, tokenizer: PreTrainedTokenizerFast) -> None:
        (ids,) = encode([Document("a", "one<|endoftext|>two")], tokenizer)
        assert 0 not in ids
        assert tokenizer.decode(ids) == "one<|endoftext|>two"

    def test_added_special_tokens_stay_out(self) -> None:
        """Also of a tokenizer that wants to begin each text with one."""
        from tokenizers.processors import TemplateProcessing

        tokenizer = train_tokenizer([TEXT], 300)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        assert tokenizer.encode("x")[0] == 0
        assert encode([Document("a", "x")], tokenizer)[0].tolist() == tokenizer.encode("x")[1:]

    def test_a_bos_that_the_tokenizer_adds_starts_each_document(self) -> None:
        from tokenizers.processors import TemplateProcessing

        tokenizer = train_tokenizer([TEXT], 300)
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        assert encode([Document("a", "x")], tokenizer)[0].tolist() == tokenizer.encode("x")
        bos = tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A <|endoftext|>", special_tokens=[("<s>", bos), ("<|endoftext|>", 0)]
        )
        documents = encode([Document("a", "x"), Document("b", "<s>")], tokenizer)
        assert documents[0].tolist() == tokenizer.encode("x")[:-1]  # packing sets the eos
        assert documents[1][0] == bos and bos not in documents[1][1:]

    def test_batches_change_nothing(
        self, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        documents = [Document(str(i), TEXT[i : 9 * i]) for i in range(30)]
        whole = encode(documents, tokenizer)
        monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 50)
        assert [ids.tolist() for ids in encode(documents, tokenizer)] == [ids.tolist() for ids in whole]
        assert [tokenizer.decode(ids) for ids in whole] == [document.text for document in documents]

    def test_long_text_gives_no_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        tokenizer = train_tokenizer([TEXT], 300)
        tokenizer.model_max_length = 8
        with caplog.at_level(logging.WARNING):
            (ids,) = encode([Document("a", TEXT)], tokenizer)
        assert len(ids) > 8
        assert not caplog.records

    def test_nothing_gives_nothing(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert encode([], tokenizer) == []

    def test_newline_can_stand_alone(self, tokenizer: PreTrainedTokenizerFast) -> None:
        newline = tokenizer.convert_tokens_to_ids("Ċ")
        assert encode([Document("a", "x.\ny")], tokenizer)[0][-2] == newline


def test_token_bytes_counts_every_token(tokenizer: PreTrainedTokenizerFast) -> None:
    counts = token_bytes(tokenizer)
    assert counts.shape == (300,) and counts.dtype == torch.int64
    assert counts[0] == 0 and (counts[1:] >= 1).all()
    assert (counts == 1).sum() == 256
