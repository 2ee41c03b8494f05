"""What implementations of attention are tried on: batches of every shape, and biases from a table."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bipe import BipeForCausalLM
from bipe.encodings.inter.base import Bias, Scorer

BORDERS = torch.tensor([0, 7, 8, 15])


def ids_of(rows: int, tokens: int) -> Tensor:
    return torch.randint(12, (rows, tokens), generator=torch.Generator().manual_seed(tokens))


def mask_of(*pads: int, tokens: int) -> Tensor:
    """Rows padded on the left (positive) or on the right (negative)."""
    rows = [[0] * max(pad, 0) + [1] * (tokens - abs(pad)) + [0] * max(-pad, 0) for pad in pads]
    return torch.tensor(rows)


def documents_of(rows: int, tokens: int) -> Tensor:
    """The border moves by one from row to row."""
    column = torch.arange(tokens)
    return torch.stack([torch.bucketize(column, BORDERS + row, right=True) for row in range(rows)])


BATCHES: dict[str, dict[str, Tensor]] = {
    "plain": {"input_ids": ids_of(2, 20)},
    "one_token": {"input_ids": ids_of(3, 1)},
    "long": {"input_ids": ids_of(2, 600)},  # so long that segment_local leaves keys out
    "left_padded": {"input_ids": ids_of(3, 20), "attention_mask": mask_of(5, 0, 19, tokens=20)},
    "right_padded": {"input_ids": ids_of(3, 20), "attention_mask": mask_of(-5, 0, -19, tokens=20)},
    "long_and_padded": {"input_ids": ids_of(2, 600), "attention_mask": mask_of(140, -9, tokens=600)},
    "packed": {"input_ids": ids_of(2, 20), "document_ids": documents_of(2, 20)},
    "packed_and_padded": {
        "input_ids": ids_of(2, 20),
        "document_ids": documents_of(2, 20),
        "attention_mask": mask_of(3, -4, tokens=20),
    },
}


def logits_and_gradients(
    model: BipeForCausalLM, batch: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits at real tokens, and the gradients of a sum over them that treats no two alike."""
    logits = model(**batch).logits
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    logits = logits[real]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    (logits * weights).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


class TableBias(Bias):
    """A bias read from a `(B, H, T, S)` table."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def block(self, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        return self.table[:, heads, rows, columns].clone()

    def scorer(self, targets: int, sources: int) -> Scorer:
        return lambda score, batch, head, query, key: score + self.table[batch, head, query, key]


def random_attention_inputs(targets: int, sources: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    shapes = {"query": (2, 4, targets, 8), "key": (2, 2, sources, 8), "value": (2, 2, sources, 8)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
