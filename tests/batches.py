"""Small batches of random ids, names of documents for them, and how near two answers to them have to be."""

import torch
from torch import Tensor


def ids_of(rows: int, tokens: int, vocab_size: int = 12) -> Tensor:
    return torch.randint(vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(tokens))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def documents_of(lengths: tuple[int, ...], names: tuple[int, ...] | None = None) -> Tensor:
    return torch.repeat_interleave(torch.tensor(names or range(len(lengths))), torch.tensor(lengths))[None]
