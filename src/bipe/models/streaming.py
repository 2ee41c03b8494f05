"""Text as it is written, a piece at a time."""

from collections.abc import Callable
from itertools import takewhile

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

CONTEXT = 64
"""Tokens, at least, with which a new one is decoded."""


class TextPieces(BaseStreamer):
    """Hands on what each new token makes final of a text, the prompt first.

    A token's text depends on those before it, so the last 64 to 128 tokens are decoded again each time; a
    character whose last bytes are still to come is held back. Some tokenizers change earlier text when they
    decode bytes that make no character; then what follows is shown from where the two texts part.

    Args:
        tokenizer: decodes the tokens; special tokens are left out.
        on_piece: gets each piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_piece: Callable[[str], None]) -> None:
        self.tokenizer, self.on_piece = tokenizer, on_piece
        self.ids: list[int] = []
        """The last tokens, from one on at which the text can be cut."""
        self.told = ""
        """What of their text has been handed on."""

    def put(self, value: Tensor) -> None:
        """Take the prompt, `(1, T)`, or a new token, `(1,)`.

        Raises:
            ValueError: a batch of several texts.
        """
        if value.dim() > 1 and len(value) > 1:
            raise ValueError(f"One text can be shown as it is written, not a batch of {len(value)}.")
        self.ids += value.flatten().tolist()
        text = self._text(self.ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._tell(text)
            self._forget()

    def end(self) -> None:
        self._tell(self._text(self.ids))

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _tell(self, text: str) -> None:
        both = takewhile(lambda pair: pair[0] == pair[1], zip(text, self.told, strict=False))
        piece = text[sum(1 for _ in both) :]
        self.told = text
        if piece:
            self.on_piece(piece)

    def _forget(self) -> None:
        """Leave out what is far behind, where the rest reads the same without it."""
        if len(self.ids) >= 2 * CONTEXT:
            rest = self.ids[-CONTEXT:]
            if (text := self._text(rest)) and self.told.endswith(text):
                self.ids, self.told = rest, text
