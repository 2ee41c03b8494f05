"""What a segmenter is."""

from typing import Any, Protocol

from torch import Tensor


class Segmenter(Protocol):
    """Marks the last token of each segment.

    A segmenter is prefix-stable: whether a token ends a segment depends only on its id and on its index in
    its document, never on later tokens, so training and generation cut alike.
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
