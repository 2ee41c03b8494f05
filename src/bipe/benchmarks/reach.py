"""How far back the heads of a model look, as rows."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bipe.data import encode, load_documents
from bipe.models import BipeForCausalLM
from bipe.models.checkpoint import load_checkpoint

SHARE = 0.99
"""Share of the attention weights that `mass` holds."""

MOST_TOKENS = 8192
"""Of a text that reach is measured on, since all its pairs are looked at."""


def longest_text(directory: Path, data: Sequence[str]) -> tuple[BipeForCausalLM, Tensor]:
    """A model and the longest document of some sources as its ids, `(n,)` int64.

    Raises:
        ValueError: no source, no text, or another kind of model.
    """
    if not data:
        raise ValueError("Say with --data what the model is to read: files, folders, globs or stdlib.")
    checkpoint = load_checkpoint(directory)
    if not isinstance(checkpoint.model, BipeForCausalLM):
        kind = checkpoint.model.config.model_type
        raise ValueError(f"{directory} holds a model of type {kind!r}, not one of this project's.")
    return checkpoint.model, max(encode(load_documents(list(data)), checkpoint.tokenizer), key=len).long()


def decays(model: BipeForCausalLM) -> bool:
    """Whether the bias of a model decays, so that `segment_local` honours it."""
    return model.model.inter.decays


def reach_rows(model: BipeForCausalLM, ids: Tensor) -> list[dict[str, Any]]:
    """A row for each layer and head; distances are None where there is no limit.

    Args:
        model: any scheme.
        ids: `(n,)` int64, the text, of which the first `MOST_TOKENS` are read.
    """
    ids = ids[:MOST_TOKENS]
    reach = model.reach(ids[None].to(model.device), share=SHARE)
    assert reach.needed is not None and reach.mass is not None
    columns = {
        "bound_segments": reach.bound,
        "needed_segments": reach.needed.segments,
        "needed_tokens": reach.needed.tokens,
        "mass_segments": reach.mass.segments,
        "mass_tokens": reach.mass.tokens,
    }
    layers, heads = reach.bound.shape
    return [
        {
            "row": "reach",
            "layer": layer,
            "head": head,
            "tokens": len(ids),
            "share": SHARE,
            **{name: _finite(column[layer, head].item()) for name, column in columns.items()},
        }
        for layer in range(layers)
        for head in range(heads)
    ]


def _finite(distance: float) -> float | None:
    return None if math.isinf(distance) else distance
