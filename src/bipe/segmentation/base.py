"""What a segmenter is."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Segmenter(Protocol):
    """Marks the last token of each segment.

    A segmenter is prefix-stable: whether a token ends a segment depends only on its id and on its index in
    its document, or on those of tokens before it (see `ReadingSegmenter`), never on later tokens, so training
    and generation cut alike.
    """

    def __call__(self, token_ids: Tensor, token_index: Tensor | None = None) -> Tensor:
        """Return `is_end`: `(B, T)` bool, true on the last token of each segment.

        Args:
            token_ids: `(B, T)` int64.
            token_index: `(B, T)` int64, the index of each token inside its document, pads not counted; None
                means that each row is one document and starts at its first column.
        """
        ...

    def to_spec(self) -> dict[str, Any]:
        """Return the JSON-able dictionary that a config stores and `build_segmenter` reads."""
        ...


def columns_of(token_ids: Tensor) -> Tensor:
    """The index of each token, `(B, T)` int64, where each row is one document."""
    return torch.arange(token_ids.shape[-1], device=token_ids.device).expand_as(token_ids)


def on_device(values: Sequence[Any], device: torch.device, copies: dict[torch.device, Tensor]) -> Tensor:
    """Whole numbers as an int64 tensor, copied to each device once."""
    if torch.compiler.is_compiling():  # a traced tensor must not outlive its trace
        return torch.tensor(values, device=device)
    if device not in copies:
        copies[device] = torch.tensor(values, device=device)
    return copies[device]


class Reading(NamedTuple):
    """What a segmenter has found in tokens.

    Attributes:
        ends: `(B, T)` int64, how many levels of segments end at each token: 0 for none, 1 for a segment, 2
            for a segment of segments too, and so on.
        memory: `(B, T)` int64, what must be known of the tokens up to each one to read on behind it.
    """

    ends: Tensor
    memory: Tensor


@runtime_checkable
class ReadingSegmenter(Segmenter, Protocol):
    """A segmenter that reads tokens in the light of those before them, or that has several levels.

    Attributes:
        levels: how many levels of segments it tells apart.
    """

    @property
    def levels(self) -> int: ...

    def read(self, token_ids: Tensor, token_index: Tensor, memory: Tensor | None = None) -> Reading:
        """Read tokens that follow others.

        Args:
            token_ids: `(B, T)` int64.
            token_index: `(B, T)` int64, the index of each token inside its document; 0 forgets what was
                before, and a negative one is padding, which nothing is known of.
            memory: `(B, 1)` int64, that of the last token before these, or None.
        """
        ...


def levels_of(segmenter: Segmenter) -> int:
    """How many levels of segments a segmenter tells apart."""
    return segmenter.levels if isinstance(segmenter, ReadingSegmenter) else 1


def read_ends(
    segmenter: Segmenter, token_ids: Tensor, token_index: Tensor, memory: Tensor | None = None
) -> Reading:
    """What any segmenter finds; the arguments are those of `ReadingSegmenter.read`."""
    if isinstance(segmenter, ReadingSegmenter):
        return segmenter.read(token_ids, token_index, memory)
    return Reading(segmenter(token_ids, token_index.clamp(min=0)).long(), torch.zeros_like(token_ids))
