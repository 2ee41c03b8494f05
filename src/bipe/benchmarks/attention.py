"""Attention with a bias on segments, relative to the causal kernel without one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from bipe.attention import ATTENTIONS, Visible
from bipe.encodings.inter.alibi import AlibiBias, alibi_slopes
from bipe.encodings.inter.base import Content, Relation
from bipe.models import BipeForCausalLM
from bipe.models.layers import watched
from bipe.registry import choose

from .interleaved import Work, extra_peak_bytes, ratio, seconds_of

CAUSAL = "causal"
"""The baseline: `scaled_dot_product_attention(is_causal=True)`, without a bias."""

MATERIALISED = "materialised"
"""The same kernel with bias and causal order as one tensor `(1, H, T, T)`, which is made for each forward."""

STORED = "stored"
"""The same with a tensor that was made before the clock started, and counts as extra memory."""

MASKED = (MATERIALISED, STORED)

LONGEST_CHECKED = 4096
"""Tokens up to which outputs are compared with attention over all keys in float64."""


@dataclass(frozen=True)
class Layer:
    """What one attention layer works on.

    Attributes:
        query: `(1, H, T, K)`.
        key: `(1, H / groups, T, K)`.
        value: `(1, H / groups, T, K)`.
        relation: how positions relate.
        scaling: factor of the logits.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    relation: Relation
    scaling: float

    @property
    def groups(self) -> int:
        """Query heads that share a key."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def tokens(self) -> int:
        """T."""
        return self.query.shape[2]

    def attend(
        self, implementation: str, parts: Sequence[Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The mixed values, `(1, H, T, K)`.

        Args:
            implementation: an entry of `ATTENTIONS`, or one of the above.
            parts: queries, keys and values in place of the layer's own.
            mask: of `make_mask`, for the kernels that take one.
        """
        query, key, value = parts or (self.query, self.key, self.value)
        if implementation in (CAUSAL, *MASKED):
            mask = None if implementation == CAUSAL else mask
            return scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=implementation == CAUSAL,
                scale=self.scaling,
                enable_gqa=self.groups > 1,
            )
        layer = cast("nn.Module", SimpleNamespace(num_key_value_groups=self.groups, training=False))
        visible = Visible(self.tokens, self.tokens, device=query.device)
        attend = choose("attention implementation", ATTENTIONS, implementation)
        mixed, _ = attend(layer, query, key, value, visible, relation=self.relation, scaling=self.scaling)
        return mixed.transpose(1, 2)

    def make_mask(self) -> Tensor:
        """The bias, and the lowest number where a key is later than its query, `(1, H, T, T)`.

        Raises:
            ValueError: the bias depends on queries and keys.
        """
        if self.relation.bias is not None and self.relation.bias.reads_content:
            raise ValueError(
                f"This bias depends on queries and keys, and is no tensor: leave out {' and '.join(MASKED)}."
            )
        everything = slice(0, self.tokens)
        later = ~Visible(self.tokens, self.tokens, device=self.query.device).dense
        bias = self.relation.bias
        dense = (
            torch.zeros(1, device=self.query.device) if bias is None else bias.block(everything, everything)
        )
        return dense.masked_fill(later, torch.finfo(torch.float32).min).to(self.query.dtype)

    def exact(self) -> Tensor:
        """Attention over all keys in float64, a hundred queries at a time."""
        query, key, value = (part.double() for part in (self.query, self.key, self.value))
        key, value = (part.repeat_interleave(self.groups, dim=1) for part in (key, value))
        visible, mixed = Visible(self.tokens, self.tokens, device=query.device), []
        for start in range(0, self.tokens, 100):
            rows, columns = slice(start, min(start + 100, self.tokens)), slice(0, self.tokens)
            logits = query[:, :, rows] @ key.transpose(2, 3) * self.scaling
            seen = visible.block(rows, columns)
            if self.relation.bias is not None:
                content = Content(query[:, :, rows], key, seen, self.scaling)
                logits = logits + self.relation.bias.between(content, rows, columns)
            weights = logits.masked_fill(~seen, float("-inf")).softmax(dim=-1)
            mixed.append(weights @ value)
        return torch.cat(mixed, dim=2)


Layers = Callable[[int], list[Layer]]
"""The layers for a number of tokens."""


def drawn_layers(
    heads: int = 12,
    width: int = 64,
    tokens_per_segment: int = 25,
    scale: float = 96.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Layers:
    """One layer of BiPE-ALiBi with queries, keys and values from N(0, 1) and segments of one length.

    Raises:
        ValueError: the scale is negative or no number.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"ALiBi's scale must be a finite number, at least 0; got {scale}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def make(tokens: int) -> list[Layer]:
        draw = torch.Generator().manual_seed(seed)
        query, key, value = torch.randn(3, 1, heads, tokens, width, generator=draw).to(device, dtype)
        segment = (torch.arange(tokens, device=device) // tokens_per_segment)[None]
        slopes = torch.tensor([scale * slope for slope in alibi_slopes(heads)], device=device)
        return [Layer(query, key, value, Relation(bias=AlibiBias(slopes, segment, segment)), width**-0.5)]

    return make


def captured_layers(model: BipeForCausalLM, ids: Tensor) -> Layers:
    """All layers of a model, with what they work on when it reads the beginning of a text, `(n,)` int64.

    Raises:
        ValueError: once they are made, where channels fade with distance, as in xPos: that is no part of
            what is measured here.
    """

    def make(tokens: int) -> list[Layer]:
        found: list[Layer] = []

        def watch(
            attention: Any, query: Tensor, key: Tensor, value: Tensor, relation: Relation, _visible: Visible
        ) -> None:
            if relation.damping is not None:
                raise ValueError("Of xPos, whose channels fade, attention is not measured by itself here.")
            found.append(Layer(query, key, value, relation, attention.scaling))

        with torch.no_grad(), watched(model.model.layers, watch):
            model.model(ids[None, :tokens].to(model.device), use_cache=False)
        return found

    return make


def check(
    lengths: Sequence[int],
    implementations: Sequence[str],
    *,
    decays: bool = True,
    available: int | None = None,
) -> list[int]:
    """The lengths in order, each once, where all of this can be measured.

    Args:
        lengths: in tokens.
        implementations: names, the baseline's too.
        decays: whether the bias does.
        available: tokens of the text; None for as many as wanted.

    Raises:
        ValueError: an unknown implementation, one that cannot honour the bias, no length, or one that the
            text does not have.
    """
    lengths = sorted(set(lengths))
    if not lengths or lengths[0] < 1:
        raise ValueError(f"Lengths are whole numbers of tokens, at least 1; got {lengths}.")
    if available is not None and lengths[-1] > available:
        raise ValueError(f"The longest text has {available} tokens; {lengths[-1]} were asked for.")
    for name in implementations:
        choose("attention implementation", {**ATTENTIONS, **dict.fromkeys((CAUSAL, *MASKED))}, name)
    if "segment_local" in implementations and not decays:
        raise ValueError("segment_local needs a bias that decays, and this model has none: leave it out.")
    return lengths


def measure(
    layers: Layers,
    lengths: Sequence[int],
    implementations: Sequence[str] = ("segment_local", "sdpa"),
    *,
    baseline: str = CAUSAL,
    backward: bool = False,
    rounds: int = 5,
) -> list[dict[str, Any]]:
    """Rows for each implementation and length, and for each implementation and step in length.

    A row `cost` has the time relative to that of the baseline at this length (`median`, `low`, `high`,
    `rounds`), the `extra_peak_bytes`, and up to `LONGEST_CHECKED` tokens the largest `error` against float64.
    A row `growth` has the ratios of the time and of the peak to those at the length `shorter`.

    Raises:
        ValueError: as `check`, or no round, or a materialised bias that does not fit in memory.
    """
    names = list(dict.fromkeys((baseline, *implementations)))
    lengths = check(lengths, names)
    made = {length: layers(length) for length in lengths}
    _check_room(made, names)
    masks = {length: made[length][0].make_mask() for length in lengths if STORED in names}
    works: dict[tuple[str, int], Work] = {
        (name, length): _work(made[length], name, masks.get(length), backward)
        for length in lengths
        for name in names
    }
    peaks = {
        (name, length): extra_peak_bytes(work) + (masks[length].nbytes if name == STORED else 0)
        for (name, length), work in works.items()
    }
    times = seconds_of(works, rounds)
    mode = "forward and backward" if backward else "forward"
    costs: list[dict[str, Any]] = [
        {
            "row": "cost",
            "implementation": name,
            "length": length,
            "mode": mode,
            "baseline": baseline,
            **ratio(seconds, times[baseline, length]),
            "extra_peak_bytes": peaks[name, length],
            "error": _error(made[length], name, masks.get(length)) if length <= LONGEST_CHECKED else None,
        }
        for (name, length), seconds in times.items()
    ]
    return costs + [
        {
            "row": "growth",
            "implementation": name,
            "length": longer,
            "shorter": shorter,
            "mode": mode,
            **ratio(times[name, longer], times[name, shorter]),
            "peak_ratio": round(peaks[name, longer] / peaks[name, shorter], 3),
        }
        for name in names
        for shorter, longer in pairwise(lengths)
    ]


def _check_room(made: Mapping[int, Sequence[Layer]], names: Sequence[str]) -> None:
    """Refuse a bias that would fill the memory: while one is made there are two in float32, and a copy."""
    query = made[max(made)][0].query
    stored = sum(length**2 for length in made) if STORED in names else 0
    needed = stored * query.element_size()
    if set(MASKED) & set(names):
        copy = query.element_size() if query.element_size() < 4 else 0
        needed += max(made) ** 2 * (8 + copy)
    needed *= query.shape[1]
    free = torch.cuda.mem_get_info()[0] if query.is_cuda else psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"A bias of {max(made)} by {max(made)} takes {needed / 2**30:.0f} GiB with its copies, and "
            f"{free / 2**30:.0f} GiB are free: give shorter lengths, or leave out {' and '.join(MASKED)}."
        )


def _work(layers: Sequence[Layer], implementation: str, stored: Tensor | None, backward: bool) -> Work:
    def mask() -> Tensor | None:
        return layers[0].make_mask() if implementation == MATERIALISED else stored

    def forward() -> list[Tensor]:
        with torch.no_grad():
            shared = mask()
            return [layer.attend(implementation, mask=shared) for layer in layers]

    def both() -> list[Tensor]:
        shared, gradients = mask(), []
        for layer in layers:
            parts = [part.detach().requires_grad_() for part in (layer.query, layer.key, layer.value)]
            mixed = layer.attend(implementation, parts, shared)
            gradients += torch.autograd.grad(mixed, parts, torch.ones_like(mixed))
        return gradients

    return both if backward else forward


@torch.no_grad()
def _error(layers: Sequence[Layer], implementation: str, stored: Tensor | None) -> float | None:
    if implementation == CAUSAL:
        return None
    mask = layers[0].make_mask() if implementation == MATERIALISED else stored
    return max(
        float((layer.attend(implementation, mask=mask) - layer.exact()).abs().max()) for layer in layers
    )
