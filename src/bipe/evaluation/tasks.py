"""The tasks that a checkpoint can be evaluated on, by name."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bipe.data import encode, load_documents, token_bytes
from bipe.models.checkpoint import Checkpoint

from .base import Run, Score
from .length_curve import ENOUGH_WINDOWS, length_curve, scheme_name


@dataclass(frozen=True)
class TaskOptions:
    """What a task is run with.

    Attributes:
        data: sources of text, as `load_documents` takes them.
        lengths: context lengths in tokens; empty for 1, 2, 4, 8 and 16 times the training length.
        protocol: how the text is cut.
        max_windows: at most so many windows, of the shortest length for `"blocks"`; None for all.
    """

    data: Sequence[str]
    lengths: Sequence[int] = ()
    protocol: str = "same_targets"
    max_windows: int | None = ENOUGH_WINDOWS


def measure_length_curve(checkpoint: Checkpoint, options: TaskOptions) -> list[Score]:
    """Perplexity of a checkpoint at growing context lengths.

    Raises:
        ValueError: there is no text, or a length does not fit in it.
    """
    documents = encode(load_documents(list(options.data)), checkpoint.tokenizer)
    base = checkpoint.model.config.max_position_embeddings
    return length_curve(
        checkpoint.model,
        documents,
        options.lengths or [factor * base for factor in (1, 2, 4, 8, 16)],
        options.protocol,
        token_bytes(checkpoint.tokenizer),
        run=_run_of(checkpoint),
        max_windows=options.max_windows,
    )


def _run_of(checkpoint: Checkpoint) -> Run:
    """The training run that left its record beside the weights, or one without seed and steps."""
    name = scheme_name(checkpoint.model)
    record = checkpoint.directory / "training.json"
    if not record.is_file():
        return Run(name)
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return Run(name, seed=int(found["identity"]["seed"]), steps=int(found["steps_done"]))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{record} is not the record of a training run; delete it to go without.") from None


TASKS: dict[str, Callable[[Checkpoint, TaskOptions], list[Score]]] = {"length-curve": measure_length_curve}
