"""What a model writes after a prompt, whole or a piece at a time."""

import math
from collections.abc import Callable
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from bipe.data.tokens import opening_ids

from .bounded_cache import BoundedCache
from .checkpoint import Checkpoint, quiet_transformers
from .modeling import BipeForCausalLM

CONTEXT = 64
"""Tokens, at least, with which a new one is decoded."""
MOST_BYTES = 4
"""Of a character in UTF-8, and so tokens of one, at most."""


@quiet_transformers()
def complete(
    checkpoint: Checkpoint,
    prompt: str,
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    bounded_cache: bool = False,
    on_piece: Callable[[str], None] | None = None,
) -> str:
    """The prompt with what the model writes after it.

    Args:
        checkpoint: the model and its tokenizer.
        prompt: text, of at least one token; special tokens that it spells are read as such.
        max_new_tokens: at most so many tokens are written; the end-of-text token ends earlier.
        temperature: 0 takes the likeliest token each time; above, tokens are sampled from the tempered
            distribution.
        bounded_cache: keep no keys that no later token can read; see `BoundedCache`.
        on_piece: gets the text as it is written, the prompt first.

    Raises:
        ValueError: the prompt has no token or what is none, a number is out of range, or the model's cache
            cannot be bounded.
    """
    if max_new_tokens < 1:
        raise ValueError(f"The number of new tokens must be at least 1; got {max_new_tokens}.")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"The temperature must be a finite number, at least 0; got {temperature}.")
    prompt.encode()  # a UnicodeError, where the bytes on the command line were no text
    # The prompt starts as a training document does; an eos or sep that the tokenizer would append ends it.
    prompt_ids = opening_ids(checkpoint.tokenizer)
    try:
        prompt_ids += checkpoint.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers has no class of its own for a symbol without an id
        raise ValueError(f"The prompt cannot be cut into tokens of this model: {error}.") from error
    if not prompt_ids:
        raise ValueError("The prompt is empty; give it at least one character.")
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    pad = checkpoint.tokenizer.pad_token_id
    ids = cast("Any", checkpoint.model).generate(
        torch.tensor([prompt_ids], device=checkpoint.model.device),
        max_new_tokens=max_new_tokens,
        pad_token_id=checkpoint.tokenizer.eos_token_id if pad is None else pad,
        past_key_values=_bounded(checkpoint.model) if bounded_cache else None,
        streamer=None if on_piece is None else TextPieces(checkpoint.tokenizer, on_piece),
        **sampling,
    )
    return cast("str", checkpoint.tokenizer.decode(ids[0], skip_special_tokens=True))


def _bounded(model: PreTrainedModel) -> BoundedCache:
    if not isinstance(model, BipeForCausalLM):
        raise ValueError(f"Only this project's models have a bounded cache; got {model.config.model_type!r}.")
    return BoundedCache(model)


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
        if len(self.ids) < 2 * CONTEXT:
            return
        for count in range(CONTEXT, CONTEXT + MOST_BYTES):  # some may begin inside a character
            rest = self.ids[-count:]
            if (text := self._text(rest)) and self.told.endswith(text):
                self.ids, self.told = rest, text
                return
