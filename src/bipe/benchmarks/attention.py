"""Attention with a bias on segments, relative to the causal kernel without one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from bipe.attention import ATTENTIONS, Visible
from bipe.encodings.inter.alibi import AlibiBias, alibi_slopes
from bipe.encodings.inter.base import Relation
from bipe.models import BipeForCausalLM
from bipe.models.layers import watched
from bipe.registry import choose

from .interleaved import Work, extra_peak_bytes, ratio, seconds_of

CAUSAL = "causal"
"""The baseline: `scaled_dot_product_attention(is_causal=True)`, without a bias."""

MATERIALISED = "materialised"
"""The same kernel with bias and causal order as one tensor `(1, H, T, T)`, which each call makes."""

STORED = "stored"
"""The same with a tensor that is made before the clock starts, and counts as extra memory."""

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

    def attend(self, implementation: str, parts: Sequence[Tensor] | None = None) -> Tensor:
        """The mixed values, `(1, H, T, K)`, by an entry of `ATTENTIONS` or of the kernels above."""
        query, key, value = parts or (self.query, self.key, self.value)
        if implementation in MASKS:
            mask = MASKS[implementation](self)
            return scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None,
                scale=self.scaling,
                enable_gqa=self.groups > 1,
            )
        layer = cast("nn.Module", SimpleNamespace(num_key_value_groups=self.groups, training=False))
        visible = Visible(self.tokens, self.tokens, device=query.device)
        attend = choose("attention implementation", ATTENTIONS, implementation)
        mixed, _ = attend(layer, query, key, value, visible, relation=self.relation, scaling=self.scaling)
        return mixed.transpose(1, 2)

    @cached_property
    def mask(self) -> Tensor:
        """As `make_mask`, made once."""
        return self.make_mask()

    def make_mask(self) -> Tensor:
        """The bias, and the lowest number where a key is later than its query, `(1, H, T, T)`."""
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
            if self.relation.bias is not None:
                logits = logits + self.relation.bias.block(rows, columns)
            weights = logits.masked_fill(~visible.block(rows, columns), float("-inf")).softmax(dim=-1)
            mixed.append(weights @ value)
        return torch.cat(mixed, dim=2)


MASKS: dict[str, Callable[[Layer], Tensor | None]] = {
    CAUSAL: lambda layer: None,
    MATERIALISED: Layer.make_mask,
    STORED: lambda layer: layer.mask,
}
"""What the kernel is given, by the name of what is measured beside `ATTENTIONS`."""

Layers = Callable[[int], list[Layer]]
"""The layers for a number of tokens."""


def drawn_layers(
    heads: int = 12, width: int = 64, tokens_per_segment: int = 25, scale: float = 96.0, seed: int = 0
) -> Layers:
    """One layer of BiPE-ALiBi with queries, keys and values from N(0, 1) and segments of one length."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def make(tokens: int) -> list[Layer]:
        draw = torch.Generator().manual_seed(seed)
        query, key, value = torch.randn(3, 1, heads, tokens, width, generator=draw).to(device)
        segment = (torch.arange(tokens, device=device) // tokens_per_segment)[None]
        slopes = torch.tensor([scale * slope for slope in alibi_slopes(heads)], device=device)
        return [Layer(query, key, value, Relation(bias=AlibiBias(slopes, segment, segment)), width**-0.5)]

    return make


def captured_layers(model: BipeForCausalLM, ids: Tensor) -> Layers:
    """All layers of a model, with what they work on when it reads the beginning of a text, `(n,)` int64."""

    def make(tokens: int) -> list[Layer]:
        if tokens > len(ids):
            raise ValueError(f"The longest text has {len(ids)} tokens; {tokens} were asked for.")
        found: list[Layer] = []

        def watch(
            attention: Any, query: Tensor, key: Tensor, value: Tensor, relation: Relation, _visible: Visible
        ) -> None:
            found.append(Layer(query, key, value, relation, attention.scaling))

        with torch.no_grad(), watched(model.model.layers, watch):
            model.model(ids[None, :tokens].to(model.device), use_cache=False)
        return found

    return make


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
        ValueError: an unknown implementation, no round, no length, or one that the text does not have.
    """
    lengths = sorted(set(lengths))
    if not lengths or lengths[0] < 1:
        raise ValueError(f"Lengths are whole numbers of tokens, at least 1; got {lengths}.")
    for name in (baseline, *implementations):
        choose("attention implementation", {**ATTENTIONS, **MASKS}, name)
    made = {length: layers(length) for length in lengths}
    if {MATERIALISED, STORED} & {baseline, *implementations}:
        _check_room(made[lengths[-1]], lengths[-1])
    works: dict[tuple[str, int], Work] = {
        (name, length): _work(made[length], name, backward)
        for length in lengths
        for name in dict.fromkeys((baseline, *implementations))
    }
    peaks = {which: extra_peak_bytes(work) for which, work in works.items()}
    times = seconds_of(works, rounds)
    mode = "forward and backward" if backward else "forward"
    rows: list[dict[str, Any]] = []
    for (name, length), seconds in times.items():
        checked = length <= LONGEST_CHECKED and name != CAUSAL
        rows.append(
            {
                "row": "cost",
                "implementation": name,
                "length": length,
                "mode": mode,
                "baseline": baseline,
                **ratio(seconds, times[baseline, length]).to_dict(),
                "extra_peak_bytes": peaks[name, length],
                "error": _error(made[length], name) if checked else None,
            }
        )
    for name in dict.fromkeys(name for name, _ in times):
        for shorter, longer in pairwise(lengths):
            rows.append(
                {
                    "row": "growth",
                    "implementation": name,
                    "length": longer,
                    "shorter": shorter,
                    "mode": mode,
                    **ratio(times[name, longer], times[name, shorter]).to_dict(),
                    "peak_ratio": round(peaks[name, longer] / peaks[name, shorter], 3),
                }
            )
    return rows


def _check_room(layers: Sequence[Layer], length: int) -> None:
    """Refuse a bias that would fill the memory: it is made, masked and copied by the kernel."""
    query = layers[0].query
    needed = 3 * 4 * query.shape[1] * length**2
    free = torch.cuda.mem_get_info()[0] if query.is_cuda else psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"A bias of {length} by {length} takes {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are "
            f"free: leave out {MATERIALISED!r} and {STORED!r}, or give shorter lengths."
        )


def _work(layers: Sequence[Layer], implementation: str, backward: bool) -> Work:
    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [layer.attend(implementation) for layer in layers]

    def both() -> list[Tensor]:
        gradients: list[Tensor] = []
        for layer in layers:
            parts = [part.detach().requires_grad_() for part in (layer.query, layer.key, layer.value)]
            mixed = layer.attend(implementation, parts)
            gradients += torch.autograd.grad(mixed, parts, torch.ones_like(mixed))
        return gradients

    return both if backward else forward


@torch.no_grad()
def _error(layers: Sequence[Layer], implementation: str) -> float:
    return max(float((layer.attend(implementation) - layer.exact()).abs().max()) for layer in layers)
