"""How far back the heads of a model look: as far as its weights allow, and on a text.

A bias that decays makes attention local, and how local depends on the weights. With logits `q_i.k_j /
sqrt(K)` of normed hidden states, `q_i = M_q u_i` and `k_j = M_k u_j` where `|u| <= sqrt(D)` and the norm's
weight is in the matrices. So no text lets a key's logit exceed that of the query at its own key by more
than the maximum of `u' A (v - u)` over two balls, `A = M_q' M_k / sqrt(K)`. A key whose bias has fallen by
that, and by what rounding swallows, is one that the head cannot read, whatever the text says.
"""

import copy
import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from scipy.linalg import eigvalsh
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from bipe.attention import Visible
from bipe.attention.blocks import all_blocks
from bipe.attention.damping import damp
from bipe.attention.segment_local import WEIGHT_LEFT_OUT, nats_apart, places
from bipe.encodings.inter.base import Content, DecayingBias, Relation
from bipe.positions import MultilevelPositions, Positions
from bipe.segmentation import levels_of

from .layers import BipeAttention, BipeDecoderLayer, watched
from .modes import evaluating

if TYPE_CHECKING:
    from .decoder import BipeModel, BipePreTrainedModel
    from .modeling import BipeForCausalLM

LONGEST_TEXT = 2**31
"""Tokens of the longest text that a bound from the weights is for."""

COARSE = torch.finfo(torch.bfloat16).eps
"""Of the coarsest numbers that a model runs in, whatever its weights are kept in."""


class Distance(NamedTuple):
    """How far back, `(layers, H)` each.

    Attributes:
        segments: float64, distance in segments; inf where there is no limit.
        tokens: float64, distance in tokens.
    """

    segments: Tensor
    tokens: Tensor


class Reach(NamedTuple):
    """How far back each head looks.

    Attributes:
        bound: `(layers, H)` float64, distance in segments beyond which no text lets a head read; inf where
            weights and encoding set no limit. Of an encoding with index `token` it is a distance in tokens,
            and so are the segments of `needed`.
        needed: the distance beyond which nothing could be read on the text, by the norms of its queries and
            keys: what `segment_local` has to look at. None without a text.
        mass: the distance that holds the asked share of the attention weights on the text, or None.
    """

    bound: Tensor
    needed: Distance | None = None
    mass: Distance | None = None


def reach_bound(model: "BipePreTrainedModel") -> Tensor:
    """Segments beyond which no head reads, whatever the text, `(layers, H)` float64.

    Keys further away weigh at most `2^-24` together, in texts of up to `LONGEST_TEXT` tokens.
    """
    decoder = cast("BipeModel", model.base_model)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    nowhere = MultilevelPositions(zero, zero, zero, zero.new_zeros(1, 1, levels_of(decoder.segmenter) - 1))
    inter = copy.deepcopy(decoder.inter).cpu()  # gaps are float64, which not every device has
    bias = inter(nowhere, nowhere, torch.float32).bias
    layers = [cast("BipeDecoderLayer", layer) for layer in decoder.layers]
    if not isinstance(bias, DecayingBias):
        heads = model.config.num_attention_heads
        return torch.full((len(layers), heads), math.inf, dtype=torch.float64)
    gaps = torch.stack([logit_gap(layer) for layer in layers])
    return bias.reach(gaps + WEIGHT_LEFT_OUT + math.log(LONGEST_TEXT)).double()


@torch.no_grad()
def logit_gap(layer: BipeDecoderLayer, rounding: float = COARSE) -> Tensor:
    """The most by which a logit can exceed that of the query at its own key, `(H,)` float64, without a bias.

    Args:
        layer: its projections may be any linear modules, such as adapted ones; what they add is counted in.
        rounding: relative precision of the arithmetic; 0 for exact arithmetic, where the bound is attained.

    Raises:
        ValueError: a weight is not a finite number.
    """
    attention = cast("BipeAttention", layer.self_attn)
    weight, width = layer.input_layernorm.weight, attention.head_dim
    query, query_offset = _matrix(attention.q_proj, weight, width)
    key, key_offset = (
        part.repeat_interleave(attention.num_key_value_groups, dim=0)
        for part in _matrix(attention.k_proj, weight, width)
    )
    radius = math.sqrt(query.shape[-1])
    gap = torch.tensor([_largest_rise(*pair) for pair in zip(query, key, strict=True)], dtype=torch.float64)
    # The key's offset is in both logits; the query's reads the difference of two keys.
    linear = 2 * radius * torch.linalg.vector_norm(torch.einsum("hk,hkd->hd", query_offset, key), dim=-1)
    allowance = rounding * _rounded_share(query, query_offset, key, key_offset, radius)
    return (gap * radius**2 + linear + allowance) * abs(attention.scaling)


def _rounded_share(
    query: Tensor, query_offset: Tensor, key: Tensor, key_offset: Tensor, radius: float
) -> Tensor:
    """By how many roundings a difference of two logits may change, `(H,)` float64.

    The hidden states twice, in the norm and by its weight, and then queries and keys are rounded by half the
    precision each; so are weights that autocast rounds, which errs by their Frobenius norm at most.
    """
    norms, weights = [], []
    for matrix, offset in ((query, query_offset), (key, key_offset)):
        offset_norm = torch.linalg.vector_norm(offset, dim=-1)
        norms.append(torch.linalg.matrix_norm(matrix, ord=2) * radius + offset_norm)
        weights.append(torch.linalg.matrix_norm(matrix) * radius + offset_norm)
    return 2 * (4 * norms[0] * norms[1] + (weights[0] * norms[1] + norms[0] * weights[1]) / 2)


def _matrix(projection: nn.Module, weight: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The projection after the norm's weight, `(heads, K, D)`, and what it adds, `(heads, K)`, in float64."""
    exact = copy.deepcopy(projection).eval().double()
    inputs = torch.cat((torch.diag(weight), torch.zeros_like(weight)[None])).double()
    with torch.autocast(weight.device.type, enabled=False):
        outputs = exact(inputs).cpu()
    if not torch.isfinite(outputs).all():
        raise ValueError("The model's weights are not all finite numbers, so nothing bounds its attention.")
    offset = outputs[-1]
    return (outputs[:-1] - offset).T.unflatten(0, (-1, width)), offset.unflatten(0, (-1, width))


def _largest_rise(query: Tensor, key: Tensor) -> float:
    """The maximum of `u' A (v - u)` over unit balls, `A = query' key`, both `(K, D)` float64.

    For each `m > 0`, `u'Av <= |A'u| <= m / 2 + |A'u|^2 / 2m`, so that `m / 2` and the largest eigenvalue of
    `AA' / 2m - (A + A') / 2` bound it together; the best `m` gives the maximum itself.
    """
    span, _ = torch.linalg.qr(torch.cat((query, key)).T)  # nothing happens outside it
    matrix = ((query @ span).T @ (key @ span)).numpy()
    both, square = (matrix + matrix.T) / 2, matrix @ matrix.T
    scale = math.sqrt(square.trace())  # at least the largest singular value
    if scale == 0:
        return 0.0
    last = len(matrix) - 1

    def bound(m: float) -> float:
        top = eigvalsh(square / (2 * m) - both, subset_by_index=[last, last])[0]
        return max(float(top), 0.0) + m / 2

    found = minimize_scalar(
        bound, bounds=(1e-4 * scale, scale), method="bounded", options={"xatol": 1e-5 * scale}
    )
    return float(cast("Any", found).fun)


def reach_on_text(
    model: "BipeForCausalLM",
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    share: float = 0.99,
) -> tuple[Distance, Distance]:
    """`Reach.needed` and `Reach.mass`.

    The share is of the weights of all queries that have at least half the text before them.
    """
    if not 0 < share < 1:
        raise ValueError(f"The share of the attention weights must be between 0 and 1; got {share}.")
    positions = model.positions(input_ids, attention_mask, document_ids)
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    late = real & (2 * positions.token >= positions.token.max())
    found: list[tuple[Distance, Distance]] = []

    def watch(
        attention: BipeAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        relation: Relation,
        visible: Visible,
    ) -> None:
        key = key.repeat_interleave(attention.num_key_value_groups, dim=1)
        layer = _Layer(query, key, relation, visible, attention.scaling)
        found.append((_needed(layer, positions, real), _mass(layer, positions, late, share)))

    with watched(model.model.layers, watch), torch.no_grad(), evaluating(model):
        model.model(input_ids, attention_mask, document_ids=document_ids, use_cache=False)
    needed, mass = (Distance(*map(torch.stack, zip(*part, strict=True))) for part in zip(*found, strict=True))
    return needed, mass


class _Layer(NamedTuple):
    """What a layer attends with."""

    query: Tensor
    key: Tensor
    relation: Relation
    visible: Visible
    scaling: float


def _needed(layer: _Layer, positions: Positions, real: Tensor) -> Distance:
    """How far back the rule of `segment_local` looks, over all queries."""
    query, key, relation, visible, scaling = layer
    bias, (rows, tokens) = relation.bias, positions.token.shape
    if not isinstance(bias, DecayingBias):
        nothing = torch.full(query.shape[1:2], math.inf, dtype=torch.float64)
        return Distance(nothing, nothing)
    reach = bias.reach(nats_apart(query, key, visible, scaling, 1).transpose(1, 2)).double()  # (B, T, H)
    along = places(bias, visible).double().expand(rows, -1)
    nearest_left_out = along[..., None] - reach
    first = torch.searchsorted(along.contiguous(), nearest_left_out.flatten(1)).view_as(reach)
    index = torch.arange(tokens, device=first.device)[:, None]
    # Columns are tokens but for padding, and no document's first token is followed back further.
    back = torch.minimum(index - first, positions.token[..., None])
    where = real[..., None]
    return Distance(
        reach.masked_fill(~where, 0).amax(dim=(0, 1)).cpu(),
        back.masked_fill(~where, 0).amax(dim=(0, 1)).double().cpu(),
    )


def _mass(layer: _Layer, positions: Positions, counted: Tensor, share: float) -> Distance:
    """The smallest distances within which so much of the weights of the counted queries lies."""
    query, key, relation, visible, scaling = layer
    heads = query.shape[1]
    totals = [
        torch.zeros(heads, int(index.max()) + 1, dtype=torch.float64, device=query.device)
        for index in (positions.segment, positions.token)
    ]
    for block in all_blocks(visible, query):
        if not counted[:, block.rows].any():
            continue
        part = visible.part(block.rows, block.columns)
        own, sources = block.of_queries(query).float(), block.of_keys(key).float()
        if relation.damping is not None:
            own, sources = damp(relation.damping, own, sources, part)
        logits = own @ sources.transpose(2, 3) * scaling
        seen = part.dense
        if relation.bias is not None:
            content = Content(own, sources, seen, scaling)
            logits = logits + relation.bias.between(content, block.rows, block.columns)
        weights = logits.masked_fill(~seen, torch.finfo(logits.dtype).min).softmax(dim=-1)
        weights = weights.masked_fill(~counted[:, None, block.rows, None], 0).double()
        by_head = weights.transpose(0, 1).flatten(1)
        for total, index in zip(totals, (positions.segment, positions.token), strict=True):
            distance = index[:, block.rows, None] - index[:, None, block.columns]
            total.scatter_add_(1, distance.clamp(min=0).flatten().expand(heads, -1), by_head)
    return Distance(*(_within(total, share) for total in totals))


def _within(total: Tensor, share: float) -> Tensor:
    """The first column up to which each row has the share of its sum, `(H,)` float64."""
    sums = total.cumsum(dim=-1)
    return (sums < share * sums[:, -1:]).sum(dim=-1).double().cpu()
