"""Documents of random tokens, and the windows that are cut from them."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bipe.evaluation.windows import PROTOCOLS

LENGTHS = [8, 16, 32]
CUTS = ["blocks", "same_targets"]
few_windows_are_fine = pytest.mark.filterwarnings("ignore:Only .* windows:UserWarning")


def document(tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(12, (tokens,), generator=torch.Generator().manual_seed(seed))


DOCUMENTS = [document(71, 1), document(16, 2), document(36, 3)]


def spans_of(protocol: str, lengths: Sequence[int] = LENGTHS, most: int | None = None) -> dict[int, Any]:
    return PROTOCOLS[protocol](DOCUMENTS, lengths, most)
