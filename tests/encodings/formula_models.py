"""Small models that encodings are tried in, and the texts that their formulas read."""

from typing import Any, cast

import torch
from torch import Tensor

from bipe import BipeConfig, BipeForCausalLM

from .formulas import Spec, Text, places_of

ENDS = (3, 5)
VOCABULARY = 12
SEGMENTS: Spec = {"type": "token_set", "end_token_ids": list(ENDS)}
TOKENS: Spec = {"type": "every_token"}


def config_of(inter: Spec, segmenter: Spec = SEGMENTS, **fields: Any) -> BipeConfig:
    tiny = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    return BipeConfig(**{**tiny, "segmenter": segmenter, "inter": inter, **fields})


def make(inter: Spec, segmenter: Spec = SEGMENTS, seed: int = 0, **fields: Any) -> BipeForCausalLM:
    """A model whose tables are not what they start as; the same for every `attn_implementation`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BipeForCausalLM(config_of(inter, segmenter, **fields)).eval()
        with torch.no_grad():
            for parameter in (*model.model.inter.parameters(), *model.model.intra.parameters()):
                parameter.add_(0.5 * torch.randn(parameter.shape))
            for layer in model.model.layers:
                norm = cast("Any", layer).input_layernorm.weight
                norm.add_(0.2 * torch.randn(norm.shape))
    return model


def random_ids(tokens: int, rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def texts_of(
    model: BipeForCausalLM,
    inter: Spec,
    ids: Tensor,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    changed: dict[str, Tensor] | None = None,
) -> list[Text]:
    """The rows of a batch, with queries and keys made from the weights, in float64."""
    config = model.config
    segmenter = cast("Spec", config.segmenter)
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    weights.update(changed or {})
    every = segmenter["type"] == "every_token"
    layer = "model.layers.0."
    width = config.hidden_size // config.num_attention_heads
    texts = []
    for row, row_ids in enumerate(ids.tolist()):
        places = places_of(
            row_ids,
            lambda token: every or token in ENDS,
            [1] * len(row_ids) if attention_mask is None else attention_mask[row].tolist(),
            [0] * len(row_ids) if document_ids is None else document_ids[row].tolist(),
        )
        hidden = weights["model.embed_tokens.weight"][row_ids]
        if cast("Spec", config.intra)["type"] != "zero":
            offsets = [0 if place is None else place.offset for place in places]
            hidden = hidden + weights["model.intra.embedding.weight"][offsets]
        norm = (hidden.square().mean(dim=-1, keepdim=True) + config.rms_norm_eps).sqrt()
        normed = hidden / norm * weights[f"{layer}input_layernorm.weight"]
        queries, keys = (
            (normed @ weights[f"{layer}self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, width)).tolist()
            for name in "qk"
        )
        text = Text(inter, config.num_attention_heads, weights, places, queries, keys, [])
        if inter["type"] == "randomized_rope":
            indices = [0 if place is None else text.index(i) for i, place in enumerate(places)]
            stretched = indices
            if inter.get("evaluation_stretch", 1.0) > 1:
                stretch = cast("Any", model.model.inter).stretched
                stretched = stretch(torch.tensor([indices]))[0].tolist()
            text.stretched = stretched
        texts.append(text)
    return texts


def attentions_of(model: BipeForCausalLM, ids: Tensor, **given: Any) -> Tensor:
    attentions = model(ids, output_attentions=True, **given).attentions
    return attentions[0]
