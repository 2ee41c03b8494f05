"""Prompts, and greedy generation with a cache and by recomputing every step from the full text."""

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from bipe import BipeForCausalLM

NEW = 12
PROMPT = torch.tensor([[5, 1, 6, 8, 4, 9, 2, 3, 1, 10]])
PROMPTS = torch.tensor(
    [
        [0, 0, 0, 5, 1, 6, 8, 4, 9, 2],
        [11, 7, 3, 3, 1, 1, 10, 2, 6, 5],
        [1, 1, 1, 1, 1, 1, 1, 1, 8, 4],
    ]
)
MASK = torch.tensor([[0] * 3 + [1] * 7, [1] * 10, [0] * 8 + [1] * 2])
"""Rows padded on the left, one with a pad id that also ends segments."""
GREEDY: Mapping[str, Any] = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "pad_token_id": 0,
    "eos_token_id": None,
}


def generate(model: BipeForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    """The whole sequences that `generate` returns."""
    generated = cast("Any", model).generate(ids, **{**GREEDY, **options})
    assert isinstance(generated, Tensor)
    return generated


@torch.no_grad()
def recompute(model: BipeForCausalLM, ids: Tensor, mask: Tensor | None = None, new: int = NEW) -> Tensor:
    """Greedy decoding by a forward over the full text for each token."""
    mask = torch.ones_like(ids) if mask is None else mask
    for _ in range(new):
        logits = model(ids, attention_mask=mask, use_cache=False).logits
        assert logits is not None
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1)
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
    return ids


@pytest.fixture(params=["eager", None], ids=["eager", "default"])
def attention(request: pytest.FixtureRequest) -> str | None:
    return request.param
