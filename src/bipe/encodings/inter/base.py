"""What an encoding between segments is, and what it hands to attention."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.positions import Positions

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each `(B, T, K)`, in the layout of transformers' Llama (two equal halves)."""

INDICES = ("segment", "token")
"""What a relative encoding may count."""

Scorer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Adds a bias to one logit: of the logit and of the numbers of its row, head, query and key, `()` each."""

Curve = Callable[[Tensor, Tensor, Tensor], Tensor]
"""One number of a bias: of a distance, the query's index and the number of the head, `()` each."""


class Bias(ABC):
    """A term of the attention logits, evaluated a block at a time.

    Attributes:
        differentiable: parameters that it may read, of which gradients are wanted: all of its
            encoding's, which the model puts here.
        reads_content: whether it depends on queries and keys, and so is another one in each layer.
        mask: what attention makes of it where everything is one block, kept for the other layers.
    """

    differentiable: tuple[Tensor, ...] = ()
    reads_content: ClassVar[bool] = False
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
    def scorer(self, targets: int, sources: int) -> Scorer:
        """FlexAttention's `score_mod`, a function that adds the bias to one logit.

        The compiler that differentiates it has limits. All that is made of parameters is made here; the
        function reads numbers of tensors, at places that it is asked about or has calculated, and calculates
        with them. A tensor that gradients are wanted of has a dimension at least, is read in one place, and
        is no view of another, whose gradient FlexAttention drops without a word.

        Args:
            targets: queries that it will be asked about, T rounded up; what it returns for those beyond the
                last counts for nothing.
            sources: keys that it will be asked about, S rounded up.
        """

    def between(self, content: "Content", rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        """As `block`, given the queries and keys that meet there."""
        return self.block(rows, columns, heads)


@dataclass(frozen=True)
class Content:
    """The queries and keys of a block of attention.

    Attributes:
        query: `(B, h, t, K)`, rotated.
        key: `(B, h, s, K)`, rotated.
        seen: `(B or 1, 1, t, s)` bool, which keys a query may see.
        scaling: factor of the logits.
    """

    query: Tensor
    key: Tensor
    seen: Tensor
    scaling: float


class ContentBias(Bias):
    """A bias that depends on queries and keys too; where they are not given it cannot be made."""

    reads_content = True

    @abstractmethod
    def between(self, content: Content, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        """As `Bias.between`."""

    def block(self, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        raise TypeError("This bias depends on queries and keys: ask for `between`.")

    def scorer(self, targets: int, sources: int) -> Scorer:
        raise ValueError(
            "FlexAttention's score function sees no queries and keys, which this encoding reads: use "
            "attn_implementation='sdpa'."
        )


class DecayingBias(Bias):
    """A bias that is 0 at a query's own key and never rises with the distance of the index.

    Attributes:
        query_index: `(B or 1, T)` int64, the index of each query whose distance counts.
        key_index: `(B or 1, S)` int64, that of each key; it never falls inside a document.
    """

    query_index: Tensor
    key_index: Tensor

    @abstractmethod
    def reach(self, nats: float | Tensor) -> Tensor:
        """The smallest distance beyond which the bias has certainly fallen by more than `nats`.

        Args:
            nats: at least 0; a number, or `(..., H)` with one for each head.

        Returns:
            `(H,)` or `(..., H)` float32, inf for a head whose bias never falls so far.
        """


class DistanceBias(Bias):
    """A bias that is a function of integer distances, and perhaps of the query's index.

    Attributes:
        query_index: `(B or 1, T)` int64, the index of each query.
        key_index: `(B or 1, S)` int64, that of each key.
    """

    def __init__(self, query_index: Tensor, key_index: Tensor) -> None:
        if rows_agree(key_index):  # the queries are among the keys
            query_index, key_index = query_index[:1], key_index[:1]
        self.query_index, self.key_index = query_index, key_index

    @abstractmethod
    def of_indices(self, query: Tensor, key: Tensor, heads: slice) -> Tensor:
        """The bias of queries with these indices `(B or 1, t)` to keys with those `(B or 1, s)`.

        Returns:
            As `block`.
        """

    def block(self, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        query, key = self.query_index[:, rows], self.key_index[:, columns]
        if len(key) > 1 or key.device.type != "cpu" or torch.compiler.is_compiling():
            return self.of_indices(query, key, heads)
        # Tokens of one segment share its index: the bias between segments is made once, and repeated.
        (few_queries, of_row), (few_keys, of_column) = (
            index[0].unique_consecutive(return_inverse=True) for index in (query, key)
        )
        if 2 * len(few_queries) * len(few_keys) > len(of_row) * len(of_column):
            return self.of_indices(query, key, heads)
        few = self.of_indices(few_queries[None], few_keys[None], heads)
        return few.index_select(3, of_column).index_select(2, of_row)

    def distances(self, query: Tensor, key: Tensor) -> Tensor:
        """How far keys lie before queries, `(B or 1, t, s)` int64; 0 for those that lie behind."""
        return (query[..., None] - key[:, None]).clamp(min=0)

    @abstractmethod
    def curve(self) -> Curve:
        """The bias as a function of one distance; what `scorer` says of its function holds for this one."""

    def scorer(self, targets: int, sources: int) -> Scorer:
        curve = self.curve()
        query_at, key_at = reader(self.query_index, targets), reader(self.key_index, sources)

        def score(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            index = query_at(batch, query)
            return score + curve((index - key_at(batch, key)).clamp(min=0), index, head)

        return score


class CurveBias(DistanceBias):
    """A function of the distance with a few numbers for each head."""

    @abstractmethod
    def numbers(self) -> tuple[Tensor, ...]:
        """What each head has of its own, `(H,)` float32 each."""

    @abstractmethod
    def at(self, distance: Tensor, *numbers: Tensor) -> Tensor:
        """The bias at a distance, float32; all are broadcast."""

    def of_indices(self, query: Tensor, key: Tensor, heads: slice) -> Tensor:
        numbers = (number[heads, None, None] for number in self.numbers())
        return self.at(self.distances(query, key)[:, None].float(), *numbers)

    def curve(self) -> Curve:
        numbers = [number.clone() for number in self.numbers()]
        return lambda distance, query, head: self.at(distance.float(), *(number[head] for number in numbers))


def reader(index: Tensor, columns: int) -> Callable[[Tensor, Tensor], Tensor]:
    """For a scorer: the number of `(B or 1, n)` in a row of the batch and a column below `columns`.

    Beyond the last column there are zeros.
    """
    index = nn.functional.pad(index, (0, columns - index.shape[1]))
    return lambda batch, column: index[batch.clamp(max=len(index) - 1), column]


def count_reached(bounds: Tensor, number: Tensor) -> Tensor:
    """For a scorer: how many of the bounds `(n,)` are at most one number, int64."""
    # A bisection would repeat itself in the compiler, exponentially.
    none = torch.zeros_like(number, dtype=torch.int64)
    count = none
    for place in range(len(bounds)):
        # Torch 2.13 cannot lower the backward pass of what reads at a place that is no tensor.
        count = count + (bounds[none + place] <= number)
    return count


def rows_agree(index: Tensor) -> bool:
    """Whether all rows of the batch have equal positions, where looking at them costs no waiting."""
    if torch.compiler.is_compiling() or index.device.type != "cpu":
        return len(index) == 1
    return len(index) == 1 or bool((index == index[:1]).all())


@dataclass
class Damping:
    """Channels whose part in a logit fades with distance: channel `c` by `exp(-rates[c] * distance)`.

    It is no rotation, since what fades may not be stored with the keys: far from where a scale starts, it
    leaves the range of any floating point number.

    Attributes:
        rates: `(K,)` float32, at least 0.
        fastest: the largest of them, above 0.
        key_index: `(B, S)` int64, the index of each key; inside a document it never falls and grows by at
            most 1 a token. The queries are the newest keys.
        pieces: what attention makes of it in the first layer, kept for the others.
    """

    rates: Tensor
    fastest: float
    key_index: Tensor
    pieces: Any = None


@dataclass(frozen=True)
class Relation:
    """How queries and keys relate by position; made once a forward and read by every layer.

    Attributes:
        query_rotation: rotation of the T queries of this call, or None.
        key_rotation: rotation of the T keys of this call, or None; keys are rotated before they enter a
            cache.
        bias: added to the logits of the T queries and all S keys, or None.
        damping: of the T queries and all S keys after their rotation, or None; not beside a bias.
    """

    query_rotation: Rotation | None = None
    key_rotation: Rotation | None = None
    bias: Bias | None = None
    damping: Damping | None = None


class InterEncoding(nn.Module, ABC):
    """A relative encoding of an index, the segment's if nothing else is said, applied inside attention.

    The keyword-only parameters of `__init__` are the options of the config's `inter` dictionary.

    Attributes:
        config_options: further options, which `adopt` moves into fields of the config.
        shift_invariant: whether only differences of the index matter.
        decays: whether its relation has a `DecayingBias`.
        reads_content: whether its relation has a `ContentBias`.
        reads_inside: whether it tells tokens of one segment apart.
        index: what is counted, one of `INDICES`.
    """

    config_options: ClassVar[tuple[str, ...]] = ()
    shift_invariant: ClassVar[bool] = True
    decays: ClassVar[bool] = False
    reads_content: ClassVar[bool] = False
    reads_inside: ClassVar[bool] = False

    def __init__(self, config: LlamaConfig, *, index: str = "segment") -> None:
        super().__init__()
        self.index = index

    @property
    def cacheable(self) -> bool:
        """False where what a key stores holds for this call alone, so that a cache would be wrong."""
        return True

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
        index = options.get("index", "segment")
        if index not in INDICES:
            raise ValueError(f"index must be one of {', '.join(INDICES)}; got {index!r}.")

    @abstractmethod
    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        """Relate T queries to S keys.

        Args:
            query: positions `(B, T)` of this call's tokens, which are also its newest T keys.
            key: positions `(B, S)` of all keys, S >= T.
            dtype: of the rotation tables; a bias is float32.
        """

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        """Give the parameters, and the buffers that are not saved, their initial values."""


class IndexEncoding(InterEncoding):
    """An encoding that reads one index, the one that its option `index` names."""

    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        return self.relate(getattr(query, self.index), getattr(key, self.index), dtype)

    @abstractmethod
    def relate(self, query: Tensor, key: Tensor, dtype: torch.dtype) -> Relation:
        """As `forward`, given the index of the queries `(B, T)` and of the keys `(B, S)`, int64."""
