"""A run's model before its first step: its config from a recipe, whether it fits, and its initial weights."""

import copy
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import torch
from torch import nn

from bipe.models.checkpoint import load_model
from bipe.models.configuration import BipeConfig
from bipe.models.initialization import initialize_by_name
from bipe.models.modeling import BipeForCausalLM
from bipe.models.schemes import SCHEMES
from bipe.models.standalone import without_auto_map
from bipe.models.weights import read_config
from bipe.plain import first_difference
from bipe.registry import choose
from bipe.segmentation import build_segmenter, check_rule, segmenter_of
from bipe.segmentation.statistics import mean_tokens_per_segment

from .material import Material
from .order import Blocks, SeededOrder, batches
from .recipe import Recipe
from .run_folder import UNSTABLE_FIELDS

BYTES_A_PARAMETER = 16
"""Of training in float32: a weight, its gradient and two moments."""
EXTENT_BLOCKS = 2**17
"""Blocks that are looked through, at most, for the longest offset and the number of segments."""
FROZEN_BYTES = 4
"""Of a weight that stays as it is beside adapters."""


def configure(recipe: Recipe, material: Material) -> BipeConfig:
    """The config of a recipe's model.

    Args:
        recipe: its scheme, rule and sizes are read.
        material: gives the vocabulary and the ids that end segments, and what a scheme measures on documents.

    Raises:
        ValueError: a name is unknown, or a size is out of range.
    """
    if recipe.start is not None:
        return _config_of(recipe.start, recipe.scheme)
    assert recipe.scheme is not None, "the recipe has seen to it"
    tokens_per_segment = None
    if (recipe.model.inter or SCHEMES[recipe.scheme].inter).get("scale") == "auto":
        spec = recipe.model.segmenter
        segmenter = build_segmenter(spec) if spec else segmenter_of(material.tokenizer, recipe.rule)
        tokens_per_segment = mean_tokens_per_segment(
            material.documents, segmenter, cap=recipe.data.block_length
        )
    return BipeConfig.from_scheme(
        recipe.scheme,
        material.tokenizer,
        rule=recipe.rule,
        max_offset=recipe.model.max_offset or recipe.data.block_length,
        tokens_per_segment=tokens_per_segment,
        **config_fields(recipe),
    )


def config_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields of a model's config that stand in its recipe, and the encodings where it names them."""
    given = {name: getattr(recipe.model, name) for name in ("segmenter", "intra", "inter")}
    return {**_sizes(recipe), **{name: spec for name, spec in given.items() if spec is not None}}


def check_recipe(recipe: Recipe) -> None:
    """Refuse what would otherwise fail only after the text is read.

    Raises:
        ValueError: a name is unknown, or a size is out of range.
    """
    check_rule(recipe.rule)
    if recipe.scheme is not None:
        choose("scheme", SCHEMES, recipe.scheme)
    if recipe.start is not None:
        adapted = recipe.training.lora is not None
        _check_memory(_config_of(recipe.start, recipe.scheme), FROZEN_BYTES if adapted else BYTES_A_PARAMETER)
        return
    _check_memory(BipeConfig(vocab_size=recipe.data.vocab_size, **_sizes(recipe)))


def refuse_another_config(start: Path, config: BipeConfig) -> None:
    """Refuse to go on from a model of another config.

    Raises:
        ValueError: it is another; the message names the first difference.
    """
    if difference := first_difference(_fields(config), _fields(_config_of(start))):
        raise ValueError(f"The config is not that of {start}: {difference}.")


def _fields(config: BipeConfig) -> dict[str, Any]:
    """The fields that two configs of the same model share, as JSON holds them."""
    left_out = UNSTABLE_FIELDS | {"auto_map", "architectures", "_name_or_path"}
    fields = {name: value for name, value in config.to_dict().items() if name not in left_out}
    return json.loads(json.dumps(fields))


def _config_of(start: str | Path, scheme: str | None = None) -> BipeConfig:
    """The config of a model to go on from."""
    kind = read_config(Path(start)).get("model_type")
    if kind != BipeConfig.model_type:
        raise ValueError(f"{start} holds a model of type {kind!r}; make it one of ours with bipe convert.")
    config = without_auto_map(BipeConfig.from_pretrained(start))
    if scheme is not None and scheme != config.scheme:
        raise ValueError(
            f"{start} has scheme {config.scheme!r}, and the recipe says {scheme!r}: retrofit it first, with "
            f"bipe convert --scheme {scheme}."
        )
    return config


def _check_memory(config: BipeConfig, bytes_each: int = BYTES_A_PARAMETER) -> None:
    """Refuse a model that could not even be held, rather than be killed while it is made."""
    if torch.cuda.is_available():
        return
    with torch.device("meta"):
        model = BipeForCausalLM(BipeConfig(**{**config.to_dict(), "num_hidden_layers": 1}))
    layer = sum(parameter.numel() for parameter in model.model.layers.parameters())
    parameters = model.num_parameters() + (config.num_hidden_layers - 1) * layer
    needed, there = parameters * bytes_each, psutil.virtual_memory().total
    if needed > there:
        raise ValueError(
            f"This model has {parameters:,} parameters; training it needs {needed / 2**30:,.0f} GiB for "
            f"weights, gradients and AdamW's two moments, and this machine has {there / 2**30:,.0f} GiB. "
            "Make hidden_size, num_hidden_layers or vocab_size smaller."
        )


def _sizes(recipe: Recipe) -> dict[str, Any]:
    """The config fields that stand under the same name in the recipe."""
    chosen = recipe.model.model_dump(exclude={"max_offset", "segmenter", "intra", "inter"})
    return {**chosen, "max_position_embeddings": recipe.data.block_length}


def initial_model(
    config: BipeConfig, blocks: Blocks, order: SeededOrder, start: Path | None
) -> BipeForCausalLM:
    """The model with its initial weights; its config says how far the blocks that are drawn reach."""
    if start is None:
        model = BipeForCausalLM(copy.deepcopy(config))
        initialize_by_name(model, order.seed)
    else:
        model = cast(BipeForCausalLM, load_model(start)).float()
        without_auto_map(model.config)
    longest, segments = _extent(model, blocks, order.drawn(EXTENT_BLOCKS))
    trained = model.config.max_trained_offset
    # None says of a converted model that all have been trained, or of a retrofitted one that none has.
    if start is None or trained is not None or _are_zero(model.model.intra):
        model.config.max_trained_offset = max(longest, trained or 0)
    model.config.original_max_segments = max(segments, model.config.original_max_segments or 0)
    scaling = (model.config.rope_parameters or {}).get("rope_type", "default")
    if start is not None and scaling == "default" and model.config.extension is None:
        # A scaled rotation is computed from the length that the model had before.
        block = len(blocks[0]["input_ids"])
        model.config.max_position_embeddings = max(block, model.config.max_position_embeddings)
    return model


def _are_zero(module: nn.Module) -> bool:
    """Whether a module has parameters, and all of them are zero."""
    return all(not part.any() for part in module.parameters()) and any(True for _ in module.parameters())


def _extent(model: BipeForCausalLM, blocks: Blocks, drawn: list[int]) -> tuple[int, int]:
    """The longest offset of the blocks, and the 99th percentile (nearest rank) of their segments."""
    longest, segments = 0, []
    for batch in batches(blocks, drawn, 256):
        positions = model.positions(
            batch["input_ids"], batch.get("attention_mask"), document_ids=batch.get("document_ids")
        )
        longest = max(longest, int(positions.offset.max()))
        segments.append(positions.segment.amax(dim=1) + 1)
    return longest, int(np.percentile(torch.cat(segments).cpu().numpy(), 99, method="inverted_cdf"))
