"""One long text read by several processes: each has a stretch of its tokens, and all have its keys.

Positions are found from the whole text, and only then shared out. To a process the tokens before its stretch
are what a cache holds: their segments are known from the ids, and their keys come, layer by layer, from the
processes that are making them at the same time.
"""

from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from bipe.processes import join, processes, rank

from .cache import append_state
from .modeling import BipeForCausalLM


@torch.no_grad()
def hidden_states_of_stretch(model: PreTrainedModel, input_ids: Tensor) -> tuple[Tensor, int]:
    """What the decoder makes of this process's stretch of a text; all processes call this together.

    The stretches are as long as each other but for the last. A layer's keys and values of the whole text are
    there while that layer runs; everything else that grows with the text is shared.

    Args:
        model: one of this package's, in evaluation mode, alike in all processes.
        input_ids: `(B, T)` int64 without padding, the whole text in each process.

    Returns:
        `(B, t, D)` and the index of its first token.

    Raises:
        ValueError: the model is none of this package's, the text is too short to give each process a token,
            or the inter encoding allows no cache.
    """
    if not isinstance(model, BipeForCausalLM):
        raise ValueError("Only this package's models find the positions of a whole text beforehand.")
    count, tokens = processes(), input_ids.shape[1]
    size = -(-tokens // count)
    if size * (count - 1) >= tokens:
        raise ValueError(f"A text of {tokens} tokens cannot be shared by {count} processes.")
    start = size * rank()
    own = input_ids[:, start : start + size]
    join()
    layers = [_SharedLayer(start, size) for _ in range(model.config.num_hidden_layers)]
    cache = Cache(layers=cast("Any", layers))
    if start:
        append_state(cache, len(layers), model.model.token_state(input_ids[:, :start]))
    output = model.model(input_ids=own, past_key_values=cache, use_cache=True)
    return cast("Tensor", output.last_hidden_state), start


class _SharedLayer(CacheLayerMixin):
    """A layer whose keys and values before this process's own come from the processes before it.

    Args:
        before: tokens before this process's own.
        size: tokens of each process but the last, which may have fewer.
    """

    def __init__(self, before: int, size: int) -> None:
        super().__init__()
        self.before = before
        self.size = size

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is kept."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens up to this process's last."""
        seen = self.before + key_states.shape[2]
        return self._gathered(key_states)[:, :, :seen], self._gathered(value_states)[:, :, :seen]

    def _gathered(self, own: Tensor) -> Tensor:
        missing = self.size - own.shape[2]
        own = torch.nn.functional.pad(own, (0, 0, 0, missing)).contiguous()
        shares = [torch.empty_like(own) for _ in range(processes())]
        if len(shares) == 1:
            return own
        torch.distributed.all_gather(shares, own)
        return torch.cat(shares[: rank() + 1], dim=2)

    def get_seq_length(self) -> int:
        return self.before

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.before + query_length, 0

    def get_max_length(self) -> int:
        return -1
