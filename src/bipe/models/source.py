"""A checkpoint in this project's terms: our own, the released BiPE format, and Llama's architecture."""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from bipe.registry import choose

from .configuration import BipeConfig
from .standalone import without_auto_map
from .weights import read_config, read_weights

RELEASED_SCHEMES = {"rope": "rope", "alibi": "alibi", "bipe_rope": "bipe-rope", "bipe_alibi": "bipe-alibi"}
"""Schemes by the released format's `rpe_type`."""

RELEASED_ENDS = (13, 869)
"""The newline and the lone full stop of LLaMA's vocabulary, which end segments in the released code."""

LLAMA_TYPES = ("llama", "mistral")
"""Values of `model_type` whose layers are Llama's; Mistral's where it has no sliding window."""


@dataclass(frozen=True)
class Source:
    """What a checkpoint holds, in this project's terms.

    Attributes:
        config: of the model.
        weights: by the names of `BipeForCausalLM`.
    """

    config: BipeConfig
    weights: dict[str, Tensor]


def read_source(source: Path) -> Source:
    """Read a checkpoint as one of this project's.

    Raises:
        ValueError: as `convert`.
    """
    with plainly(source):
        if source.suffix == ".gguf":
            return _untied(_read_gguf(source))
        fields = read_config(source)
        kind = fields.get("model_type")
        if "rpe_type" in fields:
            return _untied(_from_released(fields, read_weights(source), source))
        if kind == BipeConfig.model_type:
            return _untied(Source(without_auto_map(BipeConfig.from_pretrained(source)), read_weights(source)))
        if kind in LLAMA_TYPES:
            return _untied(_from_llama(fields, read_weights(source)))
    raise ValueError(
        f"{source} holds a model of type {kind!r}. Those that can be converted: {', '.join(LLAMA_TYPES)}, "
        f"{BipeConfig.model_type}, and the released BiPE format, whose config.json has an rpe_type."
    )


@contextmanager
def plainly(source: Path) -> Iterator[None]:
    """Tell in one line what a checkpoint's odd settings make libraries fail with."""
    try:
        yield
    except ValueError:
        raise
    except (TypeError, KeyError, AttributeError, AssertionError, RuntimeError, struct.error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{source} cannot be read as a model: {type(error).__name__}: {reason}") from error


def _untied(found: Source) -> Source:
    """With the output layer's weights apart from the embedding's where the file says that they differ."""
    head = found.weights.get("lm_head.weight")
    embedding = found.weights.get("model.embed_tokens.weight")
    if found.config.tie_word_embeddings and head is not None and embedding is not None:
        found.config.tie_word_embeddings = bool(torch.equal(head, embedding))
    return found


def _from_released(fields: dict[str, Any], weights: dict[str, Tensor], source: Path) -> Source:
    """The authors' format (github.com/zhenyuhe00/BiPE): Llama's names, an offset table, biases as buffers."""
    kind = choose("rpe_type", RELEASED_SCHEMES, fields["rpe_type"])
    if fields.get("log_scale"):
        raise ValueError(
            f"{source} scales its logits by the logarithm of the length, which is not supported."
        )
    table = weights.pop("model.embeds.0.weight", None)
    if kind.startswith("bipe-"):
        if table is None:
            raise ValueError(f"{source} lacks the table of offsets, model.embeds.0.weight.")
        weights["model.intra.embedding.weight"] = table
    elif table is not None:
        raise ValueError(
            f"{source} has a table of offsets, which its rpe_type {fields['rpe_type']!r} has not."
        )
    given = {
        name: value
        for name, value in fields.items()
        if name not in ("rpe_type", "log_scale", "train_scale", "rope_scaling", "pad_token_id")
    }
    pad = fields.get("pad_token_id")
    config = BipeConfig.from_scheme(
        kind,
        end_token_ids=RELEASED_ENDS,
        max_offset=None if table is None else len(table),
        pad_token_id=None if pad is None or pad < 0 else pad,  # -1 meant the last row, which is kept as it is
        **_llama_fields(given),
        **_released_scaling(kind, fields),
    )
    return Source(
        config, {name: part for name, part in weights.items() if not name.endswith(".self_attn.alibi")}
    )


def _released_scaling(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The rotation's scaling; its lengths are counted in what the rotation counts."""
    scaling = fields.get("rope_scaling")
    if not scaling or not kind.endswith("rope"):
        return {}
    named = {"rope_type": scaling.get("type"), "factor": scaling.get("factor")}
    if kind == "bipe-rope" and named["rope_type"] == "dynamic":
        named["original_max_segments"] = fields.get("max_position_embeddings", 2048)
    return {"rope_parameters": named}


def _from_llama(fields: dict[str, Any], weights: dict[str, Tensor]) -> Source:
    if fields.get("model_type") == "mistral" and fields.get("sliding_window") is not None:
        raise ValueError(
            f"This Mistral attends within a sliding window of {fields['sliding_window']} tokens, which "
            "Llama's layers do not."
        )
    return Source(BipeConfig.from_scheme("rope", **_llama_fields(fields)), weights)


def _llama_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says in terms of `LlamaConfig`, by transformers' own reading of older names.

    Raises:
        ValueError: it says that the layers do something else than Llama's.
    """
    layers = fields.get("layer_types") or []
    for strange, what in (
        (fields.get("is_causal") is False, "attends to later tokens (is_causal)"),
        (any(kind != "full_attention" for kind in layers), "has layers of other kinds (layer_types)"),
        (fields.get("quantization_config"), "is quantized: dequantize it first, or take a .gguf file"),
    ):
        if strange:
            raise ValueError(f"This model {what}.")
    own = {"model_type", "architectures", "transformers_version", "_name_or_path", "dtype", "auto_map"}
    known = (set(LlamaConfig().to_dict()) | {"rope_theta", "rope_scaling"}) - own
    return {name: value for name, value in fields.items() if name in known}


def _read_gguf(path: Path) -> Source:
    """A `.gguf` file, through transformers, with its weights in float32."""
    if not path.is_file():
        raise ValueError(f"{path} is no file.")
    try:
        model = cast(
            "PreTrainedModel",
            AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **_dequantized()),
        )
    except ImportError as error:
        raise ValueError(f"Reading {path} needs the package gguf: pip install 'bipe[gguf]'.") from error
    fields = {**model.config.to_dict(), "quantization_config": None}
    if fields.get("model_type") not in LLAMA_TYPES:
        raise ValueError(f"{path} holds a model of type {fields.get('model_type')!r}, not of Llama's layers.")
    return _from_llama(fields, dict(model.state_dict()))


def _dequantized() -> dict[str, Any]:
    """What asks for whole weights; before 5.17 transformers gives no others of a GGUF file."""
    settings = getattr(transformers, "GgufConfig", None)
    return {} if settings is None else {"quantization_config": settings(dequantize=True)}
