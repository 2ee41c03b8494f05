"""Checkpoints of others as this project's, and back: the released BiPE format, and Llama's architecture."""

import shutil
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bipe.data.tokens import load_tokenizer
from bipe.encodings.inter import INTER_ENCODINGS
from bipe.plain import read_json
from bipe.registry import choose, split_spec

from .configuration import BipeConfig
from .modeling import BipeForCausalLM
from .schemes import SCHEMES
from .standalone import without_code, write_standalone
from .weights import config_of, read_weights

RELEASED_SCHEMES = {"rope": "rope", "alibi": "alibi", "bipe_rope": "bipe-rope", "bipe_alibi": "bipe-alibi"}
"""Schemes by the released format's `rpe_type`."""

RELEASED_ENDS = (13, 869)
"""The newline and the lone full stop of LLaMA's vocabulary, which end segments in the released code."""

LLAMA_TYPES = ("llama", "mistral")
"""Values of `model_type` whose layers are Llama's; Mistral's where it has no sliding window."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Source:
    """What a checkpoint holds, in this project's terms.

    Attributes:
        config: of the model.
        weights: by the names of `BipeForCausalLM`.
    """

    config: BipeConfig
    weights: dict[str, Tensor]


def convert(
    source: str | Path,
    target: str | Path,
    scheme: str | None = None,
    *,
    rule: str = "paper",
    end_token_ids: Iterable[int] | None = None,
    max_offset: int = 1024,
    tokens_per_segment: float | None = None,
    standalone: bool = False,
) -> Path:
    """Write a checkpoint of this project from one of the authors' released format or of Llama's architecture.

    Without a scheme the model computes what the source does: bit for bit for a Llama. With one it is
    retrofitted, ready for fine-tuning: weights in common are kept, new offset vectors start at zero, and the
    rotation, of the same base and without scaling, counts what the scheme's segments say. Tokenizer and
    generation settings are copied.

    Args:
        source: a folder with `config.json` and weights (safetensors or pickled, whole or in shards), or a
            `.gguf` file.
        target: the folder to write, which must not exist or be empty; nothing is left there on failure.
        scheme: a key of `SCHEMES`, or None for the source's own.
        rule: what ends a segment in a retrofitted model; see `segmenter_of`.
        end_token_ids: these ids instead of a rule.
        max_offset: rows of a new table of offsets.
        tokens_per_segment: for schemes whose scale is `auto`, such as `bipe-alibi-auto`, the mean over the
            text that it is for.
        standalone: also write the model's code, with which `trust_remote_code=True` loads the folder where
            this package is not installed; see `write_standalone`.

    Returns:
        The target.

    Raises:
        ValueError: the source is no checkpoint of these kinds, damaged, or its tensors are not those of its
            config; the scheme is unknown or needs what is not there; the target is in use.
    """
    source, target = Path(source), Path(target).resolve()
    if scheme is not None:
        choose("scheme", SCHEMES, scheme)
    check_free(source, target)
    found = read_source(source)
    if scheme is not None:
        fields = {"rule": rule, "end_token_ids": end_token_ids, "max_offset": max_offset}
        found = _retrofitted(found, source, scheme, tokens_per_segment=tokens_per_segment, **fields)
    with _plainly(source), torch.device("meta"):
        model = BipeForCausalLM(found.config)
    write_checkpoint(model, found.weights, source, target, standalone=standalone)
    return target


def convert_to_llama(source: str | Path, target: str | Path) -> Path:
    """Write a checkpoint of scheme `rope` as transformers' own Llama.

    Raises:
        ValueError: the model has segments, offsets or another relation than RoPE, which Llama has not; or the
            target is in use.
    """
    source, target = Path(source), Path(target).resolve()
    check_free(source, target)
    found = read_source(source)
    config = found.config
    plain = {"segmenter": {"type": "every_token"}, "intra": {"type": "zero"}, "inter": {"type": "rope"}}
    for name, wanted in plain.items():
        if getattr(config, name) != wanted:
            raise ValueError(
                f"Only a model of scheme 'rope' is a Llama; this one has {name} {getattr(config, name)}."
            )
    names = set(LlamaConfig().to_dict()) - {"model_type", "architectures"}
    fields = {name: value for name, value in config.to_dict().items() if name in names}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**fields))
    write_checkpoint(model, found.weights, source, target)
    return target


def read_source(source: Path) -> Source:
    """Read a checkpoint as one of this project's.

    Raises:
        ValueError: as `convert`.
    """
    with _plainly(source):
        if source.suffix == ".gguf":
            return _untied(_read_gguf(source))
        fields = read_config(source)
        kind = fields.get("model_type")
        if "rpe_type" in fields:
            return _untied(_from_released(fields, read_weights(source), source))
        if kind == BipeConfig.model_type:
            return _untied(Source(without_code(BipeConfig.from_pretrained(source)), read_weights(source)))
        if kind in LLAMA_TYPES:
            return _untied(_from_llama(fields, read_weights(source)))
    raise ValueError(
        f"{source} holds a model of type {kind!r}. Those that can be converted: {', '.join(LLAMA_TYPES)}, "
        f"{BipeConfig.model_type}, and the released BiPE format, whose config.json has an rpe_type."
    )


@contextmanager
def _plainly(source: Path) -> Iterator[None]:
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


def read_config(source: Path) -> dict[str, Any]:
    """The settings in a model's `config.json`.

    Raises:
        ValueError: there are none.
    """
    path = config_of(source)
    try:
        fields = read_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds no settings by name.")
    return fields


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


def _retrofitted(
    found: Source,
    source: Path,
    scheme: str,
    *,
    end_token_ids: Iterable[int] | None,
    **given: Any,
) -> Source:
    """The same weights under another scheme; new offset vectors are zero, and an encoding starts anew."""
    tokenizer = None
    if end_token_ids is None and SCHEMES[scheme].counts_segments:
        tokenizer = _tokenizer_of(source)
    if found.config.extension is not None:
        raise ValueError(
            f"{source} has an extended context, which a retrofit would lose: retrofit the model that it was "
            "made of, and extend the result."
        )
    rope = found.config.rope_parameters or {}
    theta, scaling = rope.get("rope_theta"), rope.get("rope_type", "default")
    if scaling != "default":
        warnings.warn(
            f"The frequencies of {source} are scaled ({scaling}), which a retrofit does not keep: those of "
            f"{scheme} start without.",
            stacklevel=2,
        )
    changed = ("segmenter", "intra", "inter", "scheme", "rope_parameters", "model_type")
    measured = ("max_trained_offset", "original_max_segments")
    fields = {
        name: value for name, value in found.config.to_dict().items() if name not in (*changed, *measured)
    }
    config = BipeConfig.from_scheme(
        scheme,
        tokenizer,
        end_token_ids=end_token_ids,
        rope_theta=theta,
        **given,
        **fields,
    )
    with torch.device("meta"):
        wanted = BipeForCausalLM(config).state_dict()
    new = ("model.intra.", "model.inter.")
    weights = {name: part for name, part in found.weights.items() if not name.startswith(new)}
    like = next(iter(weights.values()))
    for name, part in _inter_weights(config).items():
        kept = found.weights.get(name) if found.config.inter == config.inter else None
        weights[name] = part.to(like.dtype) if kept is None else kept
    config.max_trained_offset = found.config.max_trained_offset
    for name, part in wanted.items():
        if not name.startswith("model.intra."):
            continue
        old = found.weights.get(name)
        if old is not None and old.shape == part.shape:
            weights[name] = old
        else:
            # Zeros change nothing until they are trained: no offset has to share another's.
            weights[name] = torch.zeros(part.shape, dtype=like.dtype)
            config.max_trained_offset = None
    return Source(config, weights)


def _inter_weights(config: BipeConfig) -> dict[str, Tensor]:
    """The initial values of what an encoding between segments learns, by name."""
    inter, options = split_spec("inter encoding", INTER_ENCODINGS, config.inter)
    made = inter(config, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made.reset_parameters(config.initializer_range)
    return {f"model.inter.{name}": part.detach() for name, part in made.named_parameters()}


def check_free(source: Path, target: Path) -> None:
    """Refuse a target that holds something, or lies inside the source.

    Raises:
        ValueError: it does.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is in use: give a folder that does not exist yet.")
    if source.resolve() in (target, *target.parents):
        raise ValueError(f"{target} lies inside {source}: give a folder elsewhere.")


def write_checkpoint(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    source: Path,
    target: Path,
    *,
    standalone: bool = False,
) -> None:
    """Fill a model without storage and save it with the source's tokenizer, all of it or nothing."""
    with _plainly(source):
        _fill(model, weights)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        draft = Path(scratch) / "model"
        model.save_pretrained(draft)
        _copy_tokenizer(source, draft)
        if standalone:
            write_standalone(draft)
        if target.exists():
            target.rmdir()
        draft.rename(target)


def _fill(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Give a model on the meta device its weights, as they are.

    Raises:
        ValueError: names or shapes are not the model's.
    """
    wanted = model.state_dict()
    if model.config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
        weights = {name: part for name, part in weights.items() if name != "lm_head.weight"}
    # Buffers that older versions of transformers saved.
    weights = {name: part for name, part in weights.items() if not name.endswith(".rotary_emb.inv_freq")}
    for kind, names in (("missing", set(wanted) - set(weights)), ("unknown", set(weights) - set(wanted))):
        if names:
            raise ValueError(
                f"The weights are not those of the config: {len(names)} {kind}, such as {min(names)}."
            )
    storages: set[int] = set()
    for name, part in weights.items():
        if not part.is_floating_point():
            raise ValueError(f"The weights are not those of the config: {name} holds {part.dtype}.")
        if part.untyped_storage().data_ptr() in storages:  # saved twice, or not at all
            weights[name] = part.clone()
        storages.add(part.untyped_storage().data_ptr())
        if part.shape != wanted[name].shape:
            raise ValueError(
                f"The weights are not those of the config: {name} has the shape {tuple(part.shape)}, not "
                f"{tuple(wanted[name].shape)}."
            )
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()


def _tokenizer_of(source: Path) -> PreTrainedTokenizerBase:
    if source.is_dir():
        return load_tokenizer(str(source))
    return AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)


def _copy_tokenizer(source: Path, target: Path) -> None:
    if source.is_file():
        _tokenizer_of(source).save_pretrained(target)
        return
    for name in TOKENIZER_FILES:
        with suppress(FileNotFoundError):
            shutil.copy2(source / name, target / name)
