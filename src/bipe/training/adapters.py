"""Low-rank adapters put into a model, and merged into its weights at the end."""

from typing import Any, cast

import torch

from bipe.models.modeling import BipeForCausalLM

from .recipe import LoraSettings

NAME = "default"


def add_adapters(model: BipeForCausalLM, settings: LoraSettings, seed: int) -> Any:
    """Give layers adapters, in place, and freeze all but them and what both encodings learn.

    Args:
        model: what is adapted.
        settings: which layers, and how.
        seed: decides the adapters' initial values, with which they add nothing yet.

    Returns:
        peft's tuner, for `merge_adapters`.

    Raises:
        ValueError: peft is not installed, or no layer has any of the names.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise ValueError("Adapters need the package peft: pip install 'bipe[peft]'.") from error
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if model.config.tie_word_embeddings and {"embed_tokens", "lm_head"} & set(settings.targets):
        raise ValueError(
            "This model's output layer uses the embedding's weights, so neither can have an adapter of its "
            "own: leave embed_tokens and lm_head out of lora's targets."
        )
    unknown = [name for name in settings.targets if name not in names]
    if unknown:
        raise ValueError(f"No layer of the model is called {unknown[0]!r}, which lora's targets name.")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast("Any", settings.alpha),  # a whole number only by its annotation
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuner = LoraModel(model, {NAME: config}, NAME)
    for encoding in (model.model.intra, model.model.inter):  # a retrofit has drawn theirs anew
        encoding.requires_grad_(True)
    return tuner


def merge_adapters(tuner: Any) -> None:
    """Add the adapters to the weights that they stand beside and take them out of the model, in place."""
    model = cast("BipeForCausalLM", tuner.merge_and_unload())
    for parameter in model.parameters():
        parameter.requires_grad_(True)
