import pytest
import torch

from bipe.data.tokens import train_tokenizer
from bipe.models.streaming import TextPieces


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


def test_special_tokens_are_left_out_and_batches_refused() -> None:
    tokenizer, pieces = train_tokenizer(["plain words"], 270), []
    streamer = TextPieces(tokenizer, pieces.append)
    streamer.put(torch.tensor([tokenizer("ab")["input_ids"]]))
    streamer.put(torch.tensor([tokenizer.eos_token_id]))
    streamer.end()
    assert pieces == ["ab"]
    with pytest.raises(ValueError, match="not a batch of 2"):
        streamer.put(torch.zeros(2, 3, dtype=torch.int64))
