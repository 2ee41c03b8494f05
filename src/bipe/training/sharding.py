"""Weights that are shared out over processes (FSDP2)."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor


def shards() -> bool:
    """Whether accelerate was told to share the weights out."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def check_sharding() -> None:
    """Refuse FSDP through accelerate where there is no accelerator, and its first version.

    Raises:
        ValueError: `accelerate launch --use_fsdp` started this process, and it cannot work.
    """
    if shards() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("Only FSDP2 is supported: give accelerate launch --fsdp_version 2.")
    if shards() and not torch.cuda.is_available():
        raise ValueError(
            "accelerate's FSDP shards on accelerators only, and there is none here. Start with torchrun, "
            "which gives each process the whole model; torch's own fully_shard does work on a CPU."
        )


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its shards; all processes call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """The state of a model by name, whole and on a CPU where it is sharded (FSDP2).

    All processes call this together; those behind the first get nothing where it is sharded.
    """
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)
