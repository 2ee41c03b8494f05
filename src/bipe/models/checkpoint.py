"""A trained model with its tokenizer, read from a folder."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from bipe.data.tokens import load_tokenizer, opening_ids
from bipe.processes import local_device
from bipe.segmentation import Segmenter, build_segmenter

from .bounded_cache import BoundedCache
from .configuration import BipeConfig
from .modeling import BipeForCausalLM
from .streaming import TextPieces
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


@quiet_transformers()
def complete(
    checkpoint: Checkpoint,
    prompt: str,
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    bounded_cache: bool = False,
    on_piece: Callable[[str], None] | None = None,
) -> str:
    """The prompt with what the model writes after it.

    Args:
        checkpoint: the model and its tokenizer.
        prompt: text, of at least one token; special tokens that it spells are read as such.
        max_new_tokens: at most so many tokens are written; the end-of-text token ends earlier.
        temperature: 0 takes the likeliest token each time; above, tokens are sampled from the tempered
            distribution.
        bounded_cache: keep no keys that no later token can read; see `BoundedCache`.
        on_piece: gets the text as it is written, the prompt first.

    Raises:
        ValueError: the prompt has no token or what is none, a number is out of range, or the model's cache
            cannot be bounded.
    """
    if max_new_tokens < 1:
        raise ValueError(f"The number of new tokens must be at least 1; got {max_new_tokens}.")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"The temperature must be a finite number, at least 0; got {temperature}.")
    prompt.encode()  # a UnicodeError, where the bytes on the command line were no text
    # The prompt starts as a training document does; an eos or sep that the tokenizer would append ends it.
    prompt_ids = opening_ids(checkpoint.tokenizer)
    try:
        prompt_ids += checkpoint.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers has no class of its own for a symbol without an id
        raise ValueError(f"The prompt cannot be cut into tokens of this model: {error}.") from error
    if not prompt_ids:
        raise ValueError("The prompt is empty; give it at least one character.")
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    pad = checkpoint.tokenizer.pad_token_id
    ids = cast("Any", checkpoint.model).generate(
        torch.tensor([prompt_ids], device=checkpoint.model.device),
        max_new_tokens=max_new_tokens,
        pad_token_id=checkpoint.tokenizer.eos_token_id if pad is None else pad,
        past_key_values=_bounded(checkpoint.model) if bounded_cache else None,
        streamer=None if on_piece is None else TextPieces(checkpoint.tokenizer, on_piece),
        **sampling,
    )
    return cast("str", checkpoint.tokenizer.decode(ids[0], skip_special_tokens=True))


def _bounded(model: PreTrainedModel) -> BoundedCache:
    if not isinstance(model, BipeForCausalLM):
        raise ValueError(f"Only this project's models have a bounded cache; got {model.config.model_type!r}.")
    return BoundedCache(model)
