"""Two penalties: one in proportion to the distance in segments, one to that in tokens inside a segment."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.positions import Positions
from bipe.registry import check_number

from .alibi import Alibi, Slopes, alibi_slopes
from .base import DecayingBias, Relation, Scorer, reader, rows_agree


class TwoLevelBias(DecayingBias):
    """`-slope * (s_i - s_j) - inside * d`, where `d` counts the tokens from i back to j in i's segment.

    A key of an earlier segment is as far inside as the first token of the query's own.
    """

    def __init__(self, slopes: Slopes, inside: Slopes, query: Positions, key: Positions) -> None:
        rows = 1 if rows_agree(torch.cat((key.segment, key.offset), dim=-1)) else None
        self.query_index, self.query_offset = query.segment[:rows], query.offset[:rows]
        self.key_index, self.key_offset = key.segment[:rows], key.offset[:rows]
        self.slopes, self.inside = slopes, inside

    def block(self, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        segments = self.query_index[:, rows, None] - self.key_index[:, None, columns]
        tokens = self.query_offset[:, rows, None] - self.key_offset[:, None, columns] * (segments == 0)
        slopes, inside = (-part.values()[heads, None, None] for part in (self.slopes, self.inside))
        return torch.addcmul(slopes * segments[:, None].float(), inside, tokens[:, None].float())

    def scorer(self, targets: int, sources: int) -> Scorer:
        slopes, inside = self.slopes.values(), self.inside.values()
        queries = [reader(index, targets) for index in (self.query_index, self.query_offset)]
        keys = [reader(index, sources) for index in (self.key_index, self.key_offset)]

        def score(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            index, offset = (at(batch, query) for at in queries)
            key_index, key_offset = (at(batch, key) for at in keys)
            segments = index - key_index
            tokens = offset - key_offset * (segments == 0)
            return score - slopes[head] * segments.float() - inside[head] * tokens.float()

        return score

    def reach(self, nats: float | Tensor) -> Tensor:
        return self.slopes.reach(nats)


class Alibi2(Alibi):
    """ALiBi on segments with a second slope a head for tokens of the query's own segment (this project's).

    Options:
        scale, learned, factor: as of `Alibi`; both slopes are learned. The factor divides those of segments,
            as offsets inside a segment do not grow with the text.
        inside_scale: factor of the slopes of tokens; 1 gives those of ALiBi.
    """

    reads_inside = True

    def __init__(
        self,
        config: LlamaConfig,
        *,
        scale: float = 96.0,
        inside_scale: float = 1.0,
        learned: bool = False,
        factor: float = 1.0,
    ) -> None:
        super().__init__(config, scale=scale, learned=learned, factor=factor)
        self.inside_starts = [inside_scale * slope for slope in alibi_slopes(config.num_attention_heads)]
        self.log_inside = nn.Parameter(torch.tensor(self.inside_starts).log()) if learned else None

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        check_number("ALiBi's inside_scale", options.get("inside_scale", 1.0), 0, above=True)

    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        device = query.segment.device
        inside = Slopes(torch.tensor(self.inside_starts, dtype=torch.float32, device=device), self.log_inside)
        return Relation(bias=TwoLevelBias(self.slopes(device), inside, query, key))

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        super().reset_parameters(std)
        if self.log_inside is not None:
            self.log_inside.copy_(torch.tensor(self.inside_starts).log())
