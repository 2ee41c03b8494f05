"""Attention whose channels fade with distance, on texts of any length."""

from collections.abc import Callable

import torch
from torch import Tensor

from bipe.encodings.inter.base import Damping

from .visible import Visible

MOST_NATS = 5.0
"""By how much a query may be scaled down, and a key up: within the range of float16."""


def attend_damped(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    damping: Damping,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Visible,
) -> tuple[Tensor, Tensor | None]:
    """Attend with queries and keys scaled so that their products fade as the damping says.

    Distances are counted from the first query of its document, so that only keys behind it grow. As many
    queries are taken at a time as keep that small.

    Args:
        attend: attention of `(query, key, value, visible)`.
        damping: how channels fade.
        query: `(B, H, T, K)`, rotated.
        key: `(B, H / groups, S, K)`, rotated.
        value: `(B, H / groups, S, K)`.
        visible: which keys may be seen.
    """
    if damping.pieces is None:  # the first layer
        damping.pieces = [
            (rows, columns, part, _scales(damping, part, query))
            for rows, columns in pieces(damping, visible)
            for part in [visible.part(rows, columns)]
        ]
    found = []
    for rows, columns, part, (of_query, of_key) in damping.pieces:
        scaled = query[:, :, rows] * of_query, key[:, :, columns] * of_key
        found.append(attend(*scaled, value[:, :, columns], part))
    if len(found) == 1:
        return found[0]
    weights = [
        torch.nn.functional.pad(part, (0, visible.sources - part.shape[-1]))
        for _, part in found
        if part is not None
    ]
    return torch.cat([mixed for mixed, _ in found], dim=1), torch.cat(weights, dim=2) if weights else None


def pieces(damping: Damping, visible: Visible) -> list[tuple[slice, slice]]:
    """Queries that can be scaled together, where the index grows by at most 1 a token, and their keys."""
    steps, targets = max(1, int(MOST_NATS / damping.fastest)), visible.targets
    rows = [slice(start, min(start + steps, targets)) for start in range(0, targets, steps)]
    ends = [visible.columns_of(part).stop for part in rows[:-1]] + [visible.sources]
    return [(part, slice(0, end)) for part, end in zip(rows, ends, strict=True)]


def damp(damping: Damping, query: Tensor, key: Tensor, visible: Visible) -> tuple[Tensor, Tensor]:
    """Some queries and the keys up to them, scaled.

    Args:
        damping: how channels fade.
        query: `(B, H, t, K)`.
        key: `(B, H / groups, s, K)`.
        visible: what these queries see of these keys.
    """
    of_query, of_key = _scales(damping, visible, query)
    return query * of_query, key * of_key


def _scales(damping: Damping, visible: Visible, like: Tensor) -> tuple[Tensor, Tensor]:
    """What queries and keys are multiplied by, `(B, 1, t, K)` and `(B, 1, s, K)` in the dtype of `like`."""
    index = damping.key_index[:, : visible.sources]
    own = visible.columns_of(slice(0, visible.targets))
    # Scales are counted from each document's first query among these.
    first = torch.full_like(index, own.start)
    if visible.documents is not None:
        documents = visible.documents[:, : visible.sources].expand(len(index), -1).contiguous()
        first = torch.searchsorted(documents, documents).clamp(min=own.start)
    if visible.real is not None:
        first = _next_real(visible.real[:, : visible.sources].expand(len(index), -1)).gather(-1, first)
    distance = index - index.gather(-1, first)
    # Only keys that no query here sees are further ahead.
    exponents = (-distance[:, own].clamp(min=0), distance.clamp(max=visible.targets))
    of_query, of_key = (
        torch.exp(exponent[..., None].float() * damping.rates)[:, None].to(like.dtype)
        for exponent in exponents
    )
    return of_query, of_key


def _next_real(real: Tensor) -> Tensor:
    """The first column from each one on that is no padding, the last column where there is none."""
    columns = torch.arange(real.shape[1], device=real.device)
    later = torch.where(real, columns, real.shape[1] - 1)
    return later.flip(-1).cummin(dim=-1).values.flip(-1)
