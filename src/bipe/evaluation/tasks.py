"""The tasks that a checkpoint can be evaluated on, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bipe.data import encode, load_documents, token_bytes
from bipe.data.scrolls import read_scrolls
from bipe.models.checkpoint import Checkpoint, load_checkpoint
from bipe.plain import read_object
from bipe.processes import is_first
from bipe.segmentation.rules import RULES

from .arithmetic import score_arithmetic, trained_operators
from .base import Run, Score
from .harness import score_harness
from .length_curve import difference_scores, scheme_name, scores
from .losses import window_losses
from .passkey import score_passkey
from .scrolls import judge, predict, refuse_unanswerable, score_scrolls, write_predictions
from .windows import ENOUGH_WINDOWS

PROBLEMS = 1000
"""Arithmetic problems of each length where nothing else is said."""
TRIALS = 100
"""Likewise, questions for a key."""
KEYS_OF = {"multikey": 4, "passkey": 1}
"""Keys that a task tells."""


@dataclass(frozen=True)
class TaskOptions:
    """What a task is run with.

    Attributes:
        data: sources of text, as `load_documents` takes them, for tasks on text.
        split: of SCROLLS, the split to answer.
        out: of SCROLLS, the folder to write answers to.
        tasks: names of the harness's tasks.
        include: a folder with further tasks for the harness.
        sequence_parallel: of a length curve, whether the processes of torchrun read each window together.
        against: of a length curve, the folder of another model with the same tokenizer, to be compared with
            on the same windows.
        documents: such text as ids already, each `(n,)` int64, in place of `data`.
        lengths: context lengths in tokens, empty for 1, 2, 4, 8 and 16 times the training length; of
            arithmetic, numbers of operations, empty for the trained one.
        protocol: how the text is cut.
        max_windows: at most so many windows, of the shortest length for `"blocks"`; of other tasks, so many
            questions at each length. None for the task's own number.
    """

    data: Sequence[str] = ()
    lengths: Sequence[int] = ()
    protocol: str = "same_targets"
    max_windows: int | None = None
    split: str = "validation"
    out: Path | None = None
    tasks: Sequence[str] = ()
    include: Path | None = None
    sequence_parallel: bool = False
    against: Path | None = None
    documents: Sequence[Tensor] = ()

    def texts(self, checkpoint: Checkpoint, what: str) -> Sequence[Tensor]:
        """The test text as ids.

        Raises:
            ValueError: there is none.
        """
        if self.documents:
            return self.documents
        if not self.data:
            raise ValueError(f"{what} needs test text: give --data.")
        return encode(load_documents(list(self.data)), checkpoint.tokenizer)


def separators_of(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end segments under the rule `paper`, whatever the model's own rule is."""
    return RULES["paper"](tokenizer)


def measure_length_curve(checkpoint: Checkpoint, options: TaskOptions) -> list[Score]:
    """Perplexity of a checkpoint at growing context lengths, and how it differs from another's.

    Raises:
        ValueError: there is no text, a length does not fit in it, or the other has another tokenizer.
    """
    tokenizer = checkpoint.tokenizer
    curve_of = partial(
        window_losses,
        documents=options.texts(checkpoint, "A length curve"),
        lengths=options.lengths or _multiples(checkpoint),
        protocol=options.protocol,
        token_bytes=token_bytes(tokenizer),
        max_windows=options.max_windows or ENOUGH_WINDOWS,
        separators=separators_of(tokenizer) if options.protocol == "without_separators" else (),
        sequence_parallel=options.sequence_parallel,
    )
    other = None if options.against is None else load_checkpoint(options.against)
    if other is not None and other.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"Only losses of the same tokens can be compared, and {options.against} has another tokenizer "
            f"than {checkpoint.directory}."
        )
    about = (_run_of(checkpoint), options.protocol, checkpoint.model.num_parameters())
    curve = curve_of(checkpoint.model)
    found = scores(curve, *about)
    return found if other is None else found + difference_scores(curve, curve_of(other.model), *about)


def measure_arithmetic(checkpoint: Checkpoint, options: TaskOptions) -> list[Score]:
    """Accuracy of a checkpoint on arithmetic problems of growing length.

    Raises:
        ValueError: as `score_arithmetic`.
    """
    model, problems = checkpoint.model, options.max_windows or PROBLEMS
    operators = options.lengths or [trained_operators(model)]
    return score_arithmetic(model, operators, problems, run=_run_of(checkpoint))


def measure_passkey(checkpoint: Checkpoint, options: TaskOptions, *, keys: int) -> list[Score]:
    """How often a checkpoint finds a key in texts of growing length.

    Raises:
        ValueError: as `score_passkey`.
    """
    return score_passkey(
        checkpoint.model,
        checkpoint.tokenizer,
        options.texts(checkpoint, "Looking for a key"),
        options.lengths or _multiples(checkpoint),
        keys=keys,
        trials=options.max_windows or TRIALS,
        run=_run_of(checkpoint),
    )


def measure_harness(checkpoint: Checkpoint, options: TaskOptions) -> list[Score]:
    """Tasks of lm-evaluation-harness.

    Raises:
        ValueError: as `score_harness`, or no tasks, or not one length, are named.
    """
    if not options.tasks:
        raise ValueError("The harness needs names of its tasks: give --tasks, such as hellaswag,piqa.")
    if len(options.lengths) != 1:
        raise ValueError(
            "The harness is run at one context length, such as --lengths 1024; got "
            f"{', '.join(map(str, options.lengths)) or 'none'}."
        )
    return score_harness(
        checkpoint,
        options.tasks,
        options.lengths[0],
        run=_run_of(checkpoint),
        limit=options.max_windows,
        include=options.include,
    )


def measure_scrolls(checkpoint: Checkpoint, options: TaskOptions) -> list[Score]:
    """Answer tasks of SCROLLS, write the answers down, and judge them where right ones are known.

    Raises:
        ValueError: as `read_scrolls` and `predict`, or several lengths are asked for; before any answer.
    """
    if not options.data:
        raise ValueError("SCROLLS needs its tasks: give --data, such as qasper or the path of qasper.zip.")
    if len(options.lengths) > 1:
        raise ValueError(f"SCROLLS is answered at one length; got {len(options.lengths)}.")
    if options.split == "test" and options.out is None:
        raise ValueError("The right answers of the test split are not known: give --out to keep the answers.")
    length = (options.lengths or [checkpoint.model.config.max_position_embeddings])[0]
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ValueError(f"Answers are kept in a folder, and {options.out} is a file.")
    asked = [read_scrolls(source, options.split) for source in options.data]
    for task, examples in asked:
        refuse_unanswerable(checkpoint.tokenizer, task, length)
        if first := next((example for example in examples if example.outputs), None):
            judge(task, [first], {first.id: ""})  # which may want a package
    rows: list[Score] = []
    for task, examples in asked:
        chosen = examples[: options.max_windows]
        answers = predict(checkpoint.model, checkpoint.tokenizer, task, chosen, length)
        if options.out is not None and is_first():
            whole = len(chosen) == len(examples)
            write_predictions(options.out, task, options.split, answers, whole=whole)
        if known := [example for example in chosen if example.outputs]:
            rows += score_scrolls(
                checkpoint.model,
                checkpoint.tokenizer,
                task,
                known,
                answers,
                length,
                run=_run_of(checkpoint),
            )
    return rows


def _multiples(checkpoint: Checkpoint) -> list[int]:
    """1, 2, 4, 8 and 16 times the trained length."""
    return [factor * checkpoint.model.config.max_position_embeddings for factor in (1, 2, 4, 8, 16)]


def _run_of(checkpoint: Checkpoint) -> Run:
    """The training run that left its record beside the weights, or one without seed and steps."""
    name = scheme_name(checkpoint.model)
    record = checkpoint.directory / "training.json"
    if not record.is_file():
        return Run(name)
    try:
        found = read_object(record)
        return Run(name, seed=int(found["identity"]["seed"]), steps=int(found["steps_done"]))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{record} is not the record of a training run; delete it to go without.") from None


TASKS: dict[str, Callable[[Checkpoint, TaskOptions], list[Score]]] = {
    "arithmetic": measure_arithmetic,
    "harness": measure_harness,
    "length-curve": measure_length_curve,
    **{task: partial(measure_passkey, keys=keys) for task, keys in KEYS_OF.items()},
    "scrolls": measure_scrolls,
}
