"""Config and weights read from transformers' checkpoints, without running what may be in their files."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bipe.plain import read_json

FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of whole weights, the one to prefer first; in shards, each has an index beside it."""


def config_of(folder: str | Path) -> Path:
    """The `config.json` of a model's folder.

    Raises:
        ValueError: there is none; the message says what is there instead.
    """
    folder = Path(folder)
    if (path := folder / "config.json").is_file():
        return path
    reason = "it has no config.json"
    if (folder / "adapter_config.json").is_file():
        reason = "it holds an adapter of peft; merge it into its model (merge_and_unload) and save that"
    elif not folder.exists():
        reason = "no such folder is here; a model of the hub has to be downloaded first (hf download NAME)"
    raise ValueError(f"{folder} is no folder of a model: {reason}.")


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


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, whole or in shards, safetensors or pickled.

    Raises:
        ValueError: there are none, a file is missing or damaged, or a pickle holds more than tensors.
    """
    for name in FILES:
        if (folder / name).is_file():
            return _read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    raise ValueError(f"{folder} has no weights: neither {' nor '.join(FILES)}, whole or in shards.")


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        place: dict[str, str] = read_json(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({str(shard) for shard in place.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not the index of a checkpoint in shards: {error!r}.") from error
    weights: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"{index} names the shard {shard!r}, which lies outside its folder.")
        weights |= _read_file(index.with_name(shard))
    missing = sorted(set(place) - set(weights))
    if missing:
        raise ValueError(f"{index} names {len(missing)} tensors that its shards lack, such as {missing[0]}.")
    return weights


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle's protocol; what matters is said below
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and what is pickled may run as a program: it was not read. Ask "
            "for safetensors."
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from error
    if not isinstance(weights, dict) or not all(isinstance(part, Tensor) for part in weights.values()):
        raise ValueError(f"{path} holds something else than tensors by name.")
    return weights
