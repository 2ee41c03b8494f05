import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence, Strip
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from bipe.data.tokens import train_tokenizer
from bipe.models.completion import TextPieces


def told(text: str) -> tuple[list[str], int]:
    tokenizer, pieces = train_tokenizer(["plain words"], 270), []
    ids = tokenizer(text)["input_ids"]
    streamer = TextPieces(tokenizer, pieces.append)
    streamer.put(torch.tensor([ids[:2]]))
    for index in ids[2:]:
        streamer.put(torch.tensor([index]))
    streamer.end()
    return pieces, len(ids)


@pytest.mark.parametrize(
    "text", ["plain words", "two\nlines, three  spaces ", "日本語 and 😀.", "\ufffd\ufffd"]
)
def test_pieces_make_up_the_text(text: str) -> None:
    pieces, _ = told(text)
    assert "".join(pieces) == text


def test_a_character_is_shown_once_it_is_whole() -> None:
    pieces, tokens = told("ab日本")
    assert pieces == ["ab", "日", "本"] and tokens == 8


@pytest.mark.parametrize(
    "text", ["Two\nlines, three  spaces, 日本語 and 😀 \ufffd. ", "日本語", "ขอบคุณ", "😀"]
)
def test_a_long_text_is_not_decoded_from_its_start(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(["plain words"], 270)
    decode, longest = tokenizer.decode, []

    def noted(ids: list[int], **options: bool) -> str:
        longest.append(len(ids))
        return decode(ids, **options)

    monkeypatch.setattr(tokenizer, "decode", noted)
    pieces, ids = [], tokenizer(text * 100)["input_ids"]
    streamer = TextPieces(tokenizer, pieces.append)
    for index in ids:
        streamer.put(torch.tensor([index]))
    streamer.end()
    assert "".join(pieces) == text * 100 and len(ids) >= 400
    assert max(longest) < 140


def metaspace() -> Tokenizer:
    """As Llama 2's: blanks before words, which decoding takes off the first one, and bytes of what is unknown."""
    words = {f"▁{word}": 300 + number for number, word in enumerate(["plain", "words", ".", "and"])}
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}, **words}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = Sequence([Replace("▁", " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)])
    return tokenizer


@pytest.mark.parametrize("clean", [False, True])
def test_pieces_make_up_what_other_tokenizers_decode(clean: bool) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=metaspace(), clean_up_tokenization_spaces=clean)
    word, text = torch.Generator().manual_seed(0), "é日😀".encode()
    ids = [300 + int(torch.randint(4, (), generator=word)) for _ in range(400)]
    for place in range(380, 0, -20):
        ids[place:place] = [1 + byte for byte in text]
    pieces: list[str] = []
    streamer = TextPieces(tokenizer, pieces.append)
    for index in ids:
        streamer.put(torch.tensor([index]))
    streamer.end()
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert len(streamer.ids) < 140


def test_special_tokens_are_left_out_and_batches_refused() -> None:
    tokenizer, pieces = train_tokenizer(["plain words"], 270), []
    streamer = TextPieces(tokenizer, pieces.append)
    streamer.put(torch.tensor([tokenizer("ab")["input_ids"]]))
    streamer.put(torch.tensor([tokenizer.eos_token_id]))
    streamer.end()
    assert pieces == ["ab"]
    with pytest.raises(ValueError, match="not a batch of 2"):
        streamer.put(torch.zeros(2, 3, dtype=torch.int64))
