"""What an encoding between segments is, and what it hands to attention."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.positions import BilevelPositions

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each `(B, T, K)`, in the layout of transformers' Llama (two equal halves)."""


class Bias(ABC):
    """A term of the attention logits that depends on positions only, evaluated a block at a time.

    Attributes:
        differentiable: tensors that `block` reads and that gradients are wanted of.
        mask: what attention makes of it where everything is one block, kept for the other layers.
    """

    differentiable: tuple[Tensor, ...] = ()
    mask: Tensor | None = None

    @abstractmethod
    def block(self, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        """The bias of some queries to some keys, `(B or 1, h, t, s)` float32, in memory of its own.

        Args:
            rows: which of the T queries.
            columns: which of the S keys.
            heads: which of the H heads.
        """

    @abstractmethod
    def score(self, score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """One logit with the bias added: FlexAttention's `score_mod`, for indices that are each a number.

        Queries and keys beyond the last, by which FlexAttention rounds lengths up, are asked for too; what is
        returned for them counts for nothing.
        """


class DecayingBias(Bias):
    """A bias that is 0 at distance 0 and never rises with the distance of the index.

    Attributes:
        query_index: `(B or 1, T)` int64, the index of each query whose distance counts.
        key_index: `(B or 1, S)` int64, that of each key; it never falls inside a document.
    """

    query_index: Tensor
    key_index: Tensor

    @abstractmethod
    def reach(self, nats: float | Tensor) -> Tensor:
        """The smallest distance beyond which the bias has fallen by more than `nats`.

        Args:
            nats: at least 0; a number, or `(..., H)` with one for each head.

        Returns:
            `(H,)` or `(..., H)` float32, inf for a head whose bias never falls so far.
        """


@dataclass(frozen=True)
class Relation:
    """How queries and keys relate by position; made once a forward and read by every layer.

    Attributes:
        query_rotation: rotation of the T queries of this call, or None.
        key_rotation: rotation of the T keys of this call, or None; keys are rotated before they enter a
            cache.
        bias: added to the logits of the T queries and all S keys, or None.
    """

    query_rotation: Rotation | None = None
    key_rotation: Rotation | None = None
    bias: Bias | None = None


class InterEncoding(nn.Module, ABC):
    """A relative encoding of the segment index, applied inside attention.

    The keyword-only parameters of `__init__` are the options of the config's `inter` dictionary.

    Attributes:
        shift_invariant: whether only differences of the index matter.
        decays: whether its relation has a `DecayingBias`.
        cacheable: false where what a key stores depends on how long the text is, so that a cache would be
            wrong.
    """

    shift_invariant: ClassVar[bool] = True
    decays: ClassVar[bool] = False
    cacheable: bool = True

    @classmethod
    def adopt(cls, config: LlamaConfig, options: dict[str, Any]) -> dict[str, Any]:
        """Move options that have a field of their own in the config there, and return the rest."""
        return options

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        """Check the options of the config.

        Raises:
            ValueError: an option is out of range.
        """

    @abstractmethod
    def forward(self, query: BilevelPositions, key: BilevelPositions, dtype: torch.dtype) -> Relation:
        """Relate T queries to S keys.

        Args:
            query: positions `(B, T)` of this call's tokens, which are also its newest T keys.
            key: positions `(B, S)` of all keys, S >= T.
            dtype: of the rotation tables; the bias is float32.
        """

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        """Give the parameters, and the buffers that are not saved, their initial values."""
