"""Checkpoints of others as this project's, and back: the released BiPE format, and Llama's architecture."""

import shutil
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bipe.data.tokens import load_tokenizer
from bipe.encodings.inter import INTER_ENCODINGS
from bipe.registry import choose, split_spec

from .configuration import BipeConfig
from .modeling import BipeForCausalLM
from .schemes import SCHEMES
from .source import Source, plainly, read_source
from .standalone import write_standalone

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
    with plainly(source), torch.device("meta"):
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
    with plainly(source):
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
