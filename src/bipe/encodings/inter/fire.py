"""A small network's function of a distance relative to where the query stands."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.registry import check_number

from .base import Curve, DistanceBias, IndexEncoding, Relation, count_reached

WIDTH = 32  # hidden units of the network


class FireBias(DistanceBias):
    """The network's output for `log(1 + c d) / log(1 + c max(i, L))`.

    Args:
        hidden: `(2, WIDTH)`, weight and bias of the hidden units.
        out: `(H, WIDTH)`, weights of the outputs.
        logarithms: `(2,)`, of c and L.
        query_index, key_index: `(B, T)` and `(B, S)` int64.
    """

    def __init__(
        self, hidden: Tensor, out: Tensor, logarithms: Tensor, query_index: Tensor, key_index: Tensor
    ) -> None:
        super().__init__(query_index, key_index)
        self.hidden, self.out, self.logarithms = hidden, out, logarithms

    def of_indices(self, query: Tensor, key: Tensor, heads: slice) -> Tensor:
        weight, bias = self.hidden.float()[..., None]
        ratio = _ratio(self.distances(query, key), query[..., None], *self.logarithms.float().exp())
        units = torch.relu_(torch.addcmul(bias, weight, ratio.flatten()))
        return (self.out[heads].float() @ units).view(-1, *ratio.shape).transpose(0, 1)

    def curve(self) -> Curve:
        c, threshold = (number.repeat(len(self.out)) for number in self.logarithms.float().exp())
        bounds, slopes, starts = self.lines()

        def at(distance: Tensor, query: Tensor, head: Tensor) -> Tensor:
            ratio = _ratio(distance, query, c[head], threshold[head])
            piece = count_reached(bounds, ratio)
            return slopes[head, piece] * ratio + starts[head, piece]

        return at

    def lines(self) -> tuple[Tensor, Tensor, Tensor]:
        """The network as the pieces of straight lines that it is: between two bounds the same units are on.

        Returns:
            The bounds `(WIDTH,)`, ascending, and each piece's slope and value at 0, `(H, WIDTH + 1)`.
        """
        weight, bias = self.hidden.float()
        bounds, order = torch.where(weight == 0, torch.inf, -bias / weight).detach().sort()
        piece = torch.arange(WIDTH + 1, device=bounds.device)[:, None]
        beyond = piece > order.argsort()  # each unit's bound has been reached
        on = torch.where(weight == 0, bias > 0, beyond == (weight > 0))
        slopes, starts = (self.out.float() @ (part * on).T for part in (weight, bias))
        return bounds, slopes, starts


def _ratio(distance: Tensor, query: Tensor, c: Tensor, threshold: Tensor) -> Tensor:
    scale = torch.log1p(c * torch.maximum(query.float(), threshold))
    return torch.log1p(c * distance.float()) / scale


class Fire(IndexEncoding):
    """FIRE (Li et al. 2024, arXiv:2310.04418, section 3): `f(psi(i - j) / psi(max(i, L)))`.

    `psi(x) = log(1 + c x)`, with positive c and L that are learned (their logarithms are the parameters), and
    a network with 32 hidden units, shared by all layers (the paper's FIRE-S). A bias of its outputs would
    add the same to all logits of a query and is left out.

    Options:
        c: its initial value.
        threshold: L's initial value, in the unit of the index: up to there, distances are not relative.
        index: what the distance counts.
    """

    shift_invariant = False

    def __init__(
        self, config: LlamaConfig, *, c: float = 0.1, threshold: float = 512.0, index: str = "segment"
    ) -> None:
        super().__init__(config, index=index)
        self.initial = (math.log(c), math.log(threshold))
        self.hidden = nn.Parameter(torch.zeros(2, WIDTH))
        self.out = nn.Parameter(torch.zeros(config.num_attention_heads, WIDTH))
        self.logarithms = nn.Parameter(torch.tensor(self.initial))

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        check_number("FIRE's c", options.get("c", 0.1), 0, 1e12, above=True)
        check_number("FIRE's threshold", options.get("threshold", 512.0), 0, 1e12, above=True)

    def relate(self, query: Tensor, key: Tensor, dtype: torch.dtype) -> Relation:
        return Relation(bias=FireBias(self.hidden, self.out, self.logarithms, query, key))

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        nn.init.uniform_(self.hidden, -1, 1)
        nn.init.uniform_(self.out, -(WIDTH**-0.5), WIDTH**-0.5)
        self.logarithms.copy_(torch.tensor(self.initial))
