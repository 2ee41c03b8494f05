"""Tasks of EleutherAI's lm-evaluation-harness, by name, at a context length that is given and not guessed."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, cast

from bipe.data.tokens import plain_ids
from bipe.models.checkpoint import Checkpoint, quiet_transformers

from .base import Run, Score
from .ruler import refuse_too_short

NORMAL_INTERVAL = 1.96
"""Standard errors on either side of a value that make a 95 % interval."""


@quiet_transformers()
def score_harness(
    checkpoint: Checkpoint,
    tasks: Sequence[str],
    length: int,
    *,
    run: Run,
    limit: int | None = None,
    include: Path | None = None,
) -> list[Score]:
    """What the harness measures of a model, a row for each task and metric.

    The harness would take the context length from `max_position_embeddings`, and cut longer prompts without
    a word; here it is given, and what is longer is cut to that.

    Args:
        checkpoint: the model and its tokenizer.
        tasks: names of tasks or groups, such as `hellaswag` or `ruler_vt`.
        length: tokens of context at most; RULER's tasks make their texts that long.
        run: where the model comes from.
        limit: questions of each task at most; None for all.
        include: a folder with further tasks as YAML files.

    Returns:
        Rows of task `harness`, whose protocol is the name of the harness's task. The interval is 1.96 of its
        standard errors on either side, and the value itself where it gives none.

    Raises:
        ValueError: the harness is not installed or knows no such task, the folder is none, the tokenizer has
            no eos or no tokens for words, or RULER's shortest text does not fit into the length.
    """
    if length < 1:
        raise ValueError(f"The context length must be at least 1; got {length}.")
    if include is not None and not include.is_dir():
        raise ValueError(f"--include names a folder with tasks as YAML files; {include} is none.")
    try:
        from lm_eval import evaluator
        from lm_eval.models import huggingface
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError("lm-evaluation-harness is not installed: pip install 'bipe[eval]'.") from None
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if tokenizer.eos_token_id is None:
        raise ValueError("The harness ends texts with the tokenizer's eos, and this one has none.")
    plain_ids(tokenizer, ["A text of words."])
    refuse_too_short(tasks, tokenizer, length)
    metadata = {"tokenizer": str(checkpoint.directory), "max_seq_lengths": [length]}
    manager = TaskManager(include_path=None if include is None else str(include), metadata=metadata)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise ValueError(f"lm-evaluation-harness has no task {unknown[0]!r}; `lm-eval ls tasks` lists them.")
    batch = 1 if model.device.type == "cpu" else 8
    # Its decorators hide the parameters of both from a type checker.
    wrap, evaluate = cast("Any", huggingface.HFLM), cast("Any", evaluator.simple_evaluate)
    wrapped = wrap(pretrained=model, tokenizer=tokenizer, max_length=length, batch_size=batch)
    try:
        with redirect_stdout(sys.stderr):  # where some tasks print on making their texts
            found = evaluate(
                wrapped,
                tasks=list(tasks),
                limit=limit,
                task_manager=manager,
                log_samples=False,
                metadata=metadata,
            )
    except ImportError as error:  # of what a task needs beside the harness
        raise ValueError(str(error)) from error
    assert found is not None, "only other ranks than the first get nothing"
    return [
        _score(checkpoint, name, metric, measured, length, _questions(found, name), run)
        for name, measured in found["results"].items()
        for metric in _metrics(measured)
    ]


def _metrics(measured: dict[str, Any]) -> list[str]:
    """The names of what was measured; RULER says -1 of the lengths that it did not try."""
    return [
        name
        for name, value in measured.items()
        if isinstance(value, int | float) and "," in name and "_stderr," not in name and value != -1
    ]


def _questions(found: Any, task: str) -> int:
    counted = found.get("n-samples", {}).get(task, {})
    return int(counted.get("effective", 0))


def _score(
    checkpoint: Checkpoint,
    task: str,
    metric: str,
    measured: dict[str, Any],
    length: int,
    questions: int,
    run: Run,
) -> Score:
    name, _, kind = metric.partition(",")
    value, error = float(measured[metric]), measured.get(f"{name}_stderr,{kind}")
    margin = NORMAL_INTERVAL * float(error) if isinstance(error, int | float) else 0.0
    return Score(
        scheme=run.scheme,
        seed=run.seed,
        task="harness",
        protocol=task,
        length=length,
        metric=name if kind == "none" else f"{name} ({kind})",
        value=value,
        low=value - margin,
        high=value + margin,
        tokens=0,
        windows=questions,
        tokens_per_segment=None,
        offsets_beyond_trained=None,
        steps=run.steps,
        parameters=checkpoint.model.num_parameters(),
    )
