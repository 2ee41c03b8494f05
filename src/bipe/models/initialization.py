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
    drawn: set[int] = set()
    for name, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        if any(id(parameter) in drawn for parameter in parameters):
            continue  # tied to a module that came first
        drawn.update(map(id, parameters))
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            for parameter in parameters:
                # Transformers draws nothing for what it takes to be loaded from a file.
                parameter._is_hf_initialized = False  # pyright: ignore[reportAttributeAccessIssue]
            model._init_weights(module)
    model.tie_weights()
