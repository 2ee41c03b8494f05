"""A cache that drops the keys which no later query can read."""

from typing import TYPE_CHECKING, cast

import torch
from transformers.cache_utils import Cache, DynamicLayer

from bipe.attention import Visible
from bipe.positions import Positions

from .reach import LONGEST_TEXT, reach_bound

if TYPE_CHECKING:
    from .decoder import BipeModel, BipePreTrainedModel


class BoundedCache(Cache):
    """A cache that stops growing, for models whose bias decays.

    It keeps the segments that some head can still read by `model.reach().bound`, which holds for every text,
    so that each layer's output is that of a cache of everything but for `2^-23` of the largest value. Give it
    to `generate` or to a forward as `past_key_values`. It holds for the weights that the model has when the
    cache is made. The flattest head decides how much is kept: 700 to 1,400 segments for small
    trained models with scale 96 (`results/segment_local.md`). Assisted decoding needs the default cache.

    >>> from bipe import BipeConfig, BipeForCausalLM
    >>> model = BipeForCausalLM(BipeConfig.from_scheme("alibi", vocab_size=10, hidden_size=16,
    ...     intermediate_size=32, num_hidden_layers=1, num_attention_heads=2))
    >>> cache = BoundedCache(model)
    >>> model.generate(
    ...     torch.tensor([[5, 6]]), past_key_values=cache, min_new_tokens=3, max_new_tokens=3
    ... ).shape
    torch.Size([1, 5])

    Attributes:
        reach: the most segments that any head looks back (tokens, where the encoding counts those).
        index: which index that is of.

    Raises:
        ValueError: the model's bias does not decay, or not in every head, or a weight is not finite.
    """

    def __init__(self, model: "BipePreTrainedModel") -> None:
        reach = float(reach_bound(model).max())
        if reach > LONGEST_TEXT:
            raise ValueError(
                "A bounded cache drops keys that a decaying bias has pushed out of reach, and with the inter "
                f"encoding {model.config.inter} keys can be read from further than any text is long: use the "
                "default cache."
            )
        super().__init__(layer_class_to_replicate=BoundedLayer)
        self.reach = int(reach)
        self.index = cast("BipeModel", model.base_model).inter.index

    @property
    def is_croppable(self) -> bool:
        return False

    @torch.no_grad()
    def drop(self, key: Positions, visible: Visible) -> None:
        """Drop what comes before the first key that any row needs; one key stays in any case.

        Args:
            key: positions `(B, S)` of the keys that are held.
            visible: their documents and padding.
        """
        index, real, documents = getattr(key, self.index), visible.real, visible.documents
        there = torch.ones_like(index, dtype=torch.bool) if real is None else real.expand_as(index)
        columns = torch.arange(index.shape[1], device=index.device)
        last = torch.where(there, columns, 0).amax(dim=1, keepdim=True)
        needed = there & (index >= index.gather(1, last) - self.reach)
        if documents is not None:
            needed = needed & (documents == documents.gather(1, last))
        first = torch.where(needed, columns, index.shape[1] - 1).amin()
        for layer in self.layers:
            cast("BoundedLayer", layer).drop(int(first))


class BoundedLayer(DynamicLayer):
    """A layer's keys and values without the first `dropped`, which still count as seen."""

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    def drop(self, count: int) -> None:
        """Drop the first `count` of the keys that are held."""
        if count:
            # Copied, since a slice would keep all of them in memory.
            self.keys, self.values = (
                cast("torch.Tensor", part)[..., count:, :].clone() for part in (self.keys, self.values)
            )
            self.dropped += count

    def get_seq_length(self) -> int:
        return self.dropped + super().get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return super().get_seq_length() + query_length, self.dropped

    def reset(self) -> None:
        # Before 5.18 transformers fills with zeros what it goes on from, and so counts it as seen.
        self.keys = self.values = None
        self.is_initialized = False
        super().reset()
        self.dropped = 0

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError(
                "A bounded cache cannot go back, since earlier tokens may need keys that it has dropped: use "
                "the default cache."
            )
