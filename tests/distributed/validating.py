"""Run by torchrun: each process writes what it finds of blocks by number, and in how many passes."""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from bipe.models import BipeConfig, BipeForCausalLM
from bipe.processes import rank
from bipe.training.trainer import validation_loss

NUMBERS = (3, 5, 8)
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def blocks(number: int) -> list[dict[str, Tensor]]:
    """Blocks of 9 tokens, the first two of which have nothing to predict, the others one token more each."""
    ids = torch.randint(20, (number, 9), generator=torch.Generator().manual_seed(1))
    return [
        {"input_ids": row, "labels": torch.where(torch.arange(9) < index, row, -100)}
        for index, row in enumerate(ids)
    ]


def found(number: int) -> tuple[float, int]:
    """The loss of so many blocks, two in a pass, and the passes that this process made."""
    torch.manual_seed(0)
    model = BipeForCausalLM(BipeConfig(vocab_size=20, **SIZES))
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    return validation_loss(model, blocks(number), 2), len(passes)


if __name__ == "__main__":
    text = json.dumps({number: found(number) for number in NUMBERS})
    Path(sys.argv[1], f"{rank()}.json").write_text(text, encoding="utf-8")
