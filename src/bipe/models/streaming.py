"""Text as it is written, a piece at a time."""

from collections.abc import Callable
from itertools import takewhile

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer


class TextPieces(BaseStreamer):
    """Hands on what each new token makes final of a text, the prompt first.

    All tokens are decoded again each time, since a token's text depends on those before it; a character whose
    last bytes are still to come is held back. Some tokenizers change earlier text when they decode bytes that
    make no character; then what follows is shown from where the two texts part.

    Args:
        tokenizer: decodes the tokens; special tokens are left out.
        on_piece: gets each piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_piece: Callable[[str], None]) -> None:
        self.tokenizer, self.on_piece = tokenizer, on_piece
        self.ids: list[int] = []
        self.told = ""

    def put(self, value: Tensor) -> None:
        """Take the prompt, `(1, T)`, or a new token, `(1,)`.

        Raises:
            ValueError: a batch of several texts.
        """
        if value.dim() > 1 and len(value) > 1:
            raise ValueError(f"One text can be shown as it is written, not a batch of {len(value)}.")
        self.ids += value.flatten().tolist()
        text = self._text()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._tell(text)

    def end(self) -> None:
        self._tell(self._text())

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def _tell(self, text: str) -> None:
        both = takewhile(lambda pair: pair[0] == pair[1], zip(text, self.told, strict=False))
        piece = text[sum(1 for _ in both) :]
        self.told = text
        if piece:
            self.on_piece(piece)
