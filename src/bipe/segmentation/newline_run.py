"""Segments that end where so many newlines follow each other: paragraphs, sections, blocks of code."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bipe.registry import check_number
from bipe.segmentation.base import Reading, columns_of, on_device
from bipe.vocabulary import token_texts

MOST = 15
"""The largest number of newlines that can be asked for."""


class TokenNewlines(NamedTuple):
    """The newlines of a token's text.

    Attributes:
        head: number of newlines before its first printed character; of all, where there is none.
        inner: the most newlines in one run of white space between printed characters.
        tail: number of newlines after its last printed character.
        blank: 1 where there is no printed character, else 0.
    """

    head: int
    inner: int
    tail: int
    blank: int


def newlines_of(text: bytes) -> TokenNewlines:
    r"""The newlines of a text.

    >>> newlines_of(b".\n\n"), newlines_of(b" \n")
    (TokenNewlines(head=0, inner=0, tail=2, blank=0), TokenNewlines(head=1, inner=0, tail=1, blank=1))
    """
    # A part of a character, U+FFFD, is printed too.
    runs = re.split(r"\S+", text.decode("utf-8", errors="replace"))
    counts = [min(run.count("\n"), MOST) for run in runs]
    if len(counts) == 1:
        return TokenNewlines(counts[0], 0, counts[0], 1)
    return TokenNewlines(counts[0], max(counts[1:-1], default=0), counts[-1], 0)


@dataclass(frozen=True, init=False)
class NewlineRun:
    r"""Ends a segment at the token with which so many newlines have followed each other.

    White space between them does not count; what is printed ends a run. Further newlines belong to the next
    segment.

    >>> run = NewlineRun(2, [(7, 1, 0, 1, 1)])
    >>> run(torch.tensor([[5, 7, 7, 7, 5, 7, 5]])).tolist()
    [[False, False, True, False, False, False, False]]

    Args:
        count: newlines in a row, from 1 on; 2 end a paragraph.
        tokens: `(id, head, inner, tail, blank)` of the tokens that have newlines or are blank; see
            `TokenNewlines`.

    Raises:
        ValueError: the count is out of range, or a token is not five numbers.
    """

    count: int
    tokens: tuple[tuple[int, ...], ...]
    _tables: dict[torch.device, Tensor] = field(repr=False, compare=False)

    def __init__(self, count: int, tokens: Sequence[Sequence[int]]) -> None:
        check_number("The number of newlines in a run", count, 1, MOST, whole=True)
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "tokens", _checked_tokens(tokens))
        object.__setattr__(self, "_tables", {})

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, count: int = 2) -> Self:
        """Find newlines and white space in a tokenizer's whole vocabulary, once.

        Raises:
            ValueError: no token has a newline, or the tokenizer is not a fast one.
        """
        found = [
            (index, *newlines_of(text))
            for index, text in enumerate(token_texts(tokenizer))
            if text is not None and (b"\n" in text or newlines_of(text).blank)
        ]
        if not any(any(newlines[:3]) for _, *newlines in found):
            raise ValueError(
                "No token of this vocabulary has a newline, so no run of newlines ever ends one."
            )
        return cls(count, found)

    @property
    def levels(self) -> int:
        """One."""
        return 1

    def __call__(self, token_ids: Tensor, token_index: Tensor | None = None) -> Tensor:
        """Return `is_end`; the arguments are those of `Segmenter`."""
        index = columns_of(token_ids) if token_index is None else token_index
        return self.read(token_ids, index).ends > 0

    def read(self, token_ids: Tensor, token_index: Tensor, memory: Tensor | None = None) -> Reading:
        """As `ReadingSegmenter.read`; the memory is the number of newlines in the run so far."""
        head, inner, tail, blank = self._newlines(token_ids, padding=token_index < 0)
        before = torch.zeros_like(token_ids[:, :1]) if memory is None else memory
        columns = torch.arange(token_ids.shape[-1], device=token_ids.device)
        is_blank, starts = blank > 0, token_index == 0
        # In a run, newlines are those since its start; it starts with a text or with what a token leaves.
        newlines = torch.where(is_blank, head, 0).cumsum(dim=-1)
        begins = ~is_blank | starts
        since = torch.where(begins, columns, -1).cummax(dim=-1).values
        left = torch.where(is_blank, head, tail) - newlines
        run = newlines + torch.where(since < 0, before, left.gather(-1, since.clamp(min=0)))
        run = run.clamp(max=self.count)
        previous = torch.cat((before, run[:, :-1]), dim=-1).masked_fill(starts, 0)
        crossed = (previous < self.count) & (previous + head >= self.count)
        inside = ~is_blank & (torch.maximum(inner, tail) >= self.count)
        return Reading((crossed | inside).long(), run)

    def to_spec(self) -> dict[str, Any]:
        """Return `{"type": "newline_run", "count": 2, "tokens": [[id, head, inner, tail, blank], ...]}`."""
        return {"type": "newline_run", "count": self.count, "tokens": [list(token) for token in self.tokens]}

    def _newlines(self, token_ids: Tensor, padding: Tensor) -> tuple[Tensor, ...]:
        """Head, inner, tail and blank of each token, `(B, T)` int64 each; padding is blank."""
        table = on_device(self.tokens, token_ids.device, self._tables)  # (n, 5), ascending
        ids = table[:, 0].contiguous()
        row = torch.searchsorted(ids, token_ids.long().contiguous()).clamp(max=len(ids) - 1)
        found = table[row, 1:] * (ids[row] == token_ids)[..., None]
        head, inner, tail, blank = found.masked_fill(padding[..., None], 0).unbind(dim=-1)
        return head, inner, tail, blank + padding.long()


def _checked_tokens(tokens: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The tokens in ascending order of their ids."""
    checked = []
    if not isinstance(tokens, list | tuple):
        raise ValueError(f"newline_run has a list of tokens; got {tokens!r}.")
    for token in tokens:
        numbers = tuple(token) if isinstance(token, list | tuple) else ()
        if len(numbers) != 5 or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(
                "A token of newline_run is given as [id, head, inner, tail, blank], whole numbers of at "
                f"least 0; got {token!r}."
            )
        if max(numbers[1:4]) > MOST or numbers[4] > 1 or numbers[0] >= 2**63:
            raise ValueError(f"A token has at most {MOST} newlines, and blank is 0 or 1; got {token!r}.")
        checked.append(numbers)
    if not checked:
        raise ValueError("newline_run has no tokens, so no segment would ever end.")
    if len({numbers[0] for numbers in checked}) < len(checked):
        raise ValueError("newline_run names a token twice.")
    return tuple(sorted(checked))
