"""What a recipe takes, computed from its sizes: parameters, tokens, arithmetic, memory of a device."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from bipe.data.tokens import load_tokenizer
from bipe.models.configuration import BipeConfig
from bipe.models.modeling import BipeForCausalLM
from bipe.segmentation import check_rule
from bipe.vocabulary import vocabulary_size

from .initial_model import config_fields
from .recipe import Recipe

FLOAT32, BFLOAT16, INT64 = 4, 2, 8


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights: in float32.
        gradients: in float32, and under DDP the buckets that they are sent in.
        moments: AdamW's two.
        activations: what layers keep for the backward pass; under autocast with matrices in bfloat16.
        loss: the logits and what the loss keeps and makes of them.
        gathered: under FSDP, the largest module that is whole for a while, with its gradient.
        peak: all that is there at once when most is.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    loss: int
    gathered: int
    peak: int


@dataclass(frozen=True)
class Plan:
    """What training takes.

    Attributes:
        parameters: in all.
        parts: of these, by what they are.
        tokens_per_step: over all devices.
        tokens: in all steps.
        flops: multiplications and additions in all steps, forward and backward, attention included.
        replicated: memory where each device has the whole model (DDP, or one device).
        sharded: memory where weights, gradients and moments are shared out (FSDP); None for one device.
    """

    parameters: int
    parts: dict[str, int]
    tokens_per_step: int
    tokens: int
    flops: float
    replicated: Memory
    sharded: Memory | None


def plan(recipe: Recipe, devices: int = 1, vocab_size: int | None = None) -> Plan:
    """What training a recipe from scratch takes, without building the model or reading any text.

    The activations are those of a decoder layer of this package under `sdpa` (or any attention that keeps no
    weights), without dropout: `tests/training/test_plan.py` compares them with torch's MemTracker. What the
    allocator wastes, the CUDA context (about half a GiB) and kernels' workspaces come on top.

    Args:
        recipe: a recipe that does not start from a checkpoint, of text.
        devices: how many train together.
        vocab_size: of the tokenizer; None where the recipe trains one or names a folder.

    Raises:
        ValueError: there is no device, a name is unknown, or the recipe is one whose model is not known from
            it.
    """
    if devices < 1:
        raise ValueError(f"There must be at least one device; got {devices}.")
    if recipe.start is not None or recipe.data.train is None or recipe.training.lora is not None:
        raise ValueError("A plan is made for recipes that train on text from scratch, all weights.")
    check_rule(recipe.rule)
    config = _config(recipe, vocab_size or _vocab_size(recipe))
    with torch.device("meta"):
        model = BipeForCausalLM(config)
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    embedding, head = model.model.embed_tokens.weight.numel(), config.vocab_size * config.hidden_size
    parameters = model.num_parameters()
    parts = {
        "embedding": embedding,
        "layers": layer * config.num_hidden_layers,
        "output layer": 0 if config.tie_word_embeddings else head,
    }
    parts["positions and norm"] = parameters - sum(parts.values())
    training, length = recipe.training, recipe.data.block_length
    tokens = training.batch_size * length * training.gradient_accumulation * devices
    multiplied = sum(weight.numel() for weight in model.model.layers.parameters() if weight.dim() == 2) + head
    # Of the keys before each query, half of all on average, products with and sums of values.
    attention = 2 * config.num_hidden_layers * config.hidden_size * (length + 1)
    once = 2 * multiplied + attention
    # A layer runs again up to the last product, whose result nothing needs.
    last = config.num_hidden_layers * config.intermediate_size * config.hidden_size
    again = once - 2 * (head + last) if training.gradient_checkpointing else 0
    return Plan(
        parameters=parameters,
        parts=parts,
        tokens_per_step=tokens,
        tokens=tokens * training.steps,
        flops=float((3 * once + again) * tokens * training.steps),
        replicated=_memory(recipe, config, parameters, layer, devices, sharded=False),
        sharded=_memory(recipe, config, parameters, layer, devices, sharded=True) if devices > 1 else None,
    )


def _memory(
    recipe: Recipe, config: BipeConfig, parameters: int, layer: int, devices: int, sharded: bool
) -> Memory:
    training = recipe.training
    tokens = training.batch_size * recipe.data.block_length
    layers, vocabulary, width = config.num_hidden_layers, config.vocab_size, config.hidden_size
    head, kept = vocabulary * width, layer_bytes(config, training.bf16)
    share = devices if sharded else 1
    weights = FLOAT32 * math.ceil(parameters / share)
    # Under DDP gradients have a copy in the buckets that are sent.
    buckets = 2 if devices > 1 and not sharded else 1
    gradients = buckets * weights
    gathered = 2 * FLOAT32 * max(layer, head) if sharded else 0
    outside = tokens * (3 * INT64 + 2 * FLOAT32 * width + FLOAT32 + (2 if training.bf16 else 4) * width)
    # The softmax's logarithm is kept; its gradient, and a second tensor of that size while it is made.
    loss = 3 * tokens * vocabulary * FLOAT32
    copy = BFLOAT16 if training.bf16 else 0
    if training.gradient_checkpointing:
        a_layer, again = tokens * FLOAT32 * width, math.ceil(tokens * kept * BACKWARD) + copy * layer
    else:
        a_layer, again = tokens * kept + copy * layer, 0
    there = gradients if training.gradient_accumulation > 1 or buckets > 1 else 0
    at_once = [copy * head + layers * a_layer + outside + loss + there]
    for left in range(layers, -1, -1):  # layers that the backward pass has not reached
        made = gradients if left == 0 else FLOAT32 * (head + (layers - left) * layer) // share
        at_once.append(left * a_layer + outside + (again if left else 0) + max(there, made))
    return Memory(
        weights=weights,
        gradients=gradients,
        moments=2 * weights,
        activations=layers * a_layer + outside + again + copy * head,
        loss=loss,
        gathered=gathered,
        peak=3 * weights + gathered + max(at_once),
    )


BACKWARD = 1.2
"""What a layer that runs again takes, with the gradients inside it, over what it keeps: measured, 1.07 to
1.25."""


def layer_bytes(config: BipeConfig, bf16: bool) -> int:
    """What a decoder layer keeps for its backward pass, a token.

    In float32: the input of each norm and what it makes of it; the reciprocal root of each norm; the output
    of the norms times their weights, which queries, keys, values and the feed-forward part read; the rotated
    queries and keys, values, what attention gives and its logarithms of sums; four tensors of the
    feed-forward part. Under autocast everything from the norms' outputs on is in bfloat16, and each of the
    five matrices that read one has a copy of its own.

    Args:
        config: of the model.
        bf16: whether under autocast.
    """
    width, feed_forward = config.hidden_size, config.intermediate_size
    heads = config.num_key_value_heads or config.num_attention_heads
    keys = heads * (width // config.num_attention_heads)
    norms = 4 * FLOAT32 * width + 2 * FLOAT32
    sums = FLOAT32 * config.num_attention_heads
    size, inputs = (BFLOAT16, 5) if bf16 else (FLOAT32, 2)
    return norms + sums + size * (inputs * width + 2 * width + 2 * keys + 4 * feed_forward)


def _config(recipe: Recipe, vocab_size: int) -> BipeConfig:
    return BipeConfig.from_scheme(
        recipe.scheme or "",
        end_token_ids=[0],
        max_offset=recipe.model.max_offset or recipe.data.block_length,
        tokens_per_segment=1.0,
        vocab_size=vocab_size,
        **config_fields(recipe),
    )


def _vocab_size(recipe: Recipe) -> int:
    name = recipe.data.tokenizer
    if name is None:
        return recipe.data.vocab_size
    if not Path(name).exists():
        raise ValueError(
            f"The size of the vocabulary of {name!r} is not known without loading it: give --vocab-size."
        )
    return vocabulary_size(load_tokenizer(name))
