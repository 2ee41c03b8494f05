"""Segments that end at chosen tokens, such as full stops and newlines."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bipe.registry import choose
from bipe.segmentation.base import on_device
from bipe.segmentation.rules import RULES


@dataclass(frozen=True, init=False)
class TokenSet:
    """Ends a segment at each token of a set.

    >>> TokenSet([13, 7])(torch.tensor([[5, 7, 9, 13]])).tolist()
    [[False, True, False, True]]

    Args:
        end_token_ids: the ids that end a segment, at least one, each of at least 0.

    Raises:
        ValueError: `end_token_ids` is empty or holds something else than token ids.
    """

    end_token_ids: tuple[int, ...]
    _sorted_ids: dict[torch.device, Tensor] = field(repr=False, compare=False)

    def __init__(self, end_token_ids: Iterable[int]) -> None:
        object.__setattr__(self, "end_token_ids", _checked(end_token_ids))
        object.__setattr__(self, "_sorted_ids", {})

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, rule: str = "paper") -> Self:
        """Find the ends of segments in a tokenizer's whole vocabulary, once.

        Args:
            tokenizer: any fast tokenizer of transformers. Special tokens never match by their text; its eos
                token is added, because it ends a document (not under `released`).
            rule: `paper` (the token's text, stripped of white space, ends in a full stop, or the token holds
                a newline), `sentence` (also `!`, `?`, `…` and other scripts' full stops, with closing quotes
                and brackets after them), `line` (holds a newline) or `released` (ids 869 and 13 of the
                authors' code).

        Raises:
            ValueError: the rule is unknown, no token matches it, or the tokenizer is not a fast one.
        """
        return cls(choose("rule", RULES, rule)(tokenizer))

    def __call__(self, token_ids: Tensor, token_index: Tensor | None = None) -> Tensor:
        """Return `is_end`, true where a token is in the set; the arguments are those of `Segmenter`."""
        ends = on_device(self.end_token_ids, token_ids.device, self._sorted_ids)
        nearest = torch.searchsorted(ends, token_ids.long().contiguous()).clamp(max=len(ends) - 1)
        return ends[nearest] == token_ids

    def to_spec(self) -> dict[str, Any]:
        """Return `{"type": "token_set", "end_token_ids": [...]}`."""
        return {"type": "token_set", "end_token_ids": list(self.end_token_ids)}


def _checked(end_token_ids: Iterable[int]) -> tuple[int, ...]:
    """Return the ids sorted and without repeats."""
    if not isinstance(end_token_ids, Iterable) or isinstance(end_token_ids, str | bytes):
        raise ValueError(f"end_token_ids is a list of token ids, such as [13, 29889]; got {end_token_ids!r}.")
    ids = list(end_token_ids)
    for index in ids:
        if not isinstance(index, Integral) or isinstance(index, bool) or not 0 <= index < 2**63:
            raise ValueError(f"end_token_ids holds whole numbers of at least 0; got {index!r}.")
    if not ids:
        raise ValueError(
            "end_token_ids is empty, so no segment would ever end. Give at least one id, or use Never()."
        )
    return tuple(sorted({int(index) for index in ids}))
