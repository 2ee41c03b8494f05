"""Initial values that do not depend on what else a model has."""

import hashlib

import torch

from .modeling import BipeForCausalLM


def initialize_by_name(model: BipeForCausalLM, seed: int) -> None:
    """Draw each module's initial values from a generator seeded by its name.

    Two models with the same seed agree in every parameter that both have: an extra table shifts nothing.

    Args:
        model: changed in place.
        seed: any integer.
    """
    for name, module in model.named_modules():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            for parameter in module.parameters(recurse=False):
                # Transformers draws nothing for what it takes to be loaded from a file.
                parameter._is_hf_initialized = False  # pyright: ignore[reportAttributeAccessIssue]
            model._init_weights(module)
    model.tie_weights()
