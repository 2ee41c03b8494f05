"""A trained model with its tokenizer, read from a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from bipe.data.tokens import load_tokenizer
from bipe.processes import local_device
from bipe.segmentation import Segmenter, build_segmenter

from .configuration import BipeConfig
from .weights import config_of


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing bars, and from warning of what is meant here or said more plainly."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to use a trained model on text.

    Attributes:
        directory: where it was read from.
        model: in eval mode, on a GPU where there is one.
        tokenizer: turns text into the model's ids.
    """

    directory: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_checkpoint(directory: str | Path) -> Checkpoint:
    """Read a model and its tokenizer from a folder that `bipe train` or `save_pretrained` wrote.

    Args:
        directory: holds `config.json`, `model.safetensors` and the tokenizer's files.

    Raises:
        ValueError: a file is missing or broken, or the weights are not those of the configuration.
    """
    directory = Path(directory)
    model = load_model(directory)
    return Checkpoint(directory, model, load_tokenizer(str(directory)))


@quiet_transformers()
def load_model(directory: Path) -> PreTrainedModel:
    """Read a model, in eval mode and on a GPU where there is one.

    Raises:
        ValueError: a file is missing or broken, or the weights are not those of the configuration.
    """
    config_of(directory)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            directory,
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, by name
        )
        model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    except ValueError:
        raise
    except Exception as error:  # transformers checks little of a config before it uses it
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{directory} could not be read as a model: {reason}") from error
    for kind in ("missing", "unexpected", "mismatched"):
        # A mismatch is told with both shapes.
        names = sorted(key if isinstance(key, str) else key[0] for key in report[f"{kind}_keys"])
        if names:
            raise ValueError(
                f"The weights in {directory} are not those of its config.json: {kind} {names[0]}."
            )
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"The weights in {directory} are not all finite numbers: {name}.")
    return cast("Any", model).to(local_device()).eval()


def load_segmenter(directory: str | Path) -> Segmenter:
    """What cuts text into segments for a model of this project, read from its folder without its weights.

    Raises:
        ValueError: there is no such model.
    """
    config_of(directory)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # as in load_model
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{directory} could not be read as a model: {reason}") from error
    if not isinstance(config, BipeConfig):
        raise ValueError(f"{directory} holds a model without segments, of type {config.model_type!r}.")
    return build_segmenter(config.segmenter or {})
