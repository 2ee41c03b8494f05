"""`bipe evaluate`: measure a trained model."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    task: Annotated[
        str,
        typer.Argument(
            help="What to measure: length-curve, arithmetic, passkey, multikey, scrolls or harness.",
            show_default=False,
        ),
    ],
    model: Annotated[Path, typer.Option(help="Folder of the model and its tokenizer.", show_default=False)],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Test text: files, folders, globs, hf:NAME[:config][:split] or stdlib. Of scrolls: tasks, "
            "by name (fetched from the hub) or as zip files."
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Context lengths in tokens, such as 128,1024; default: 1 to 16 times the trained one. Of "
            "arithmetic: numbers of operations."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Of length-curve: how the text is cut, same_targets (the default), blocks or "
            "without_separators."
        ),
    ] = None,
    max_windows: Annotated[
        int | None,
        typer.Option(min=1, help="Windows at most (256), fewer of long blocks; arithmetic problems (1,000)."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of scrolls: train, validation (the default) or test.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Of scrolls: a folder for the answers and the leaderboard's file.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Of harness: tasks of lm-evaluation-harness, such as hellaswag,piqa.")
    ] = None,
    include: Annotated[
        Path | None, typer.Option(help="Of harness: a folder with further tasks as YAML files.")
    ] = None,
    sequence_parallel: Annotated[
        bool,
        typer.Option(
            "--sequence-parallel",
            help="Of length-curve, under torchrun: the processes read each window together.",
        ),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Of length-curve: another model with the same tokenizer; prints by how much log perplexity "
            "differs on the same windows, --model minus this one."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each score as a JSON object.")] = False,
) -> None:
    """Measure a trained model on a task; under torchrun, processes share the work (but harness's)."""
    import json

    from bipe.evaluation.tasks import TASKS, TaskOptions
    from bipe.models.checkpoint import load_checkpoint
    from bipe.processes import is_first
    from bipe.registry import choose
    from bipe_cli.values import numbers, words

    measure = choose("task", TASKS, task)
    only = (
        ("--data", data, ("length-curve", "passkey", "multikey", "scrolls")),
        ("--protocol", protocol, ("length-curve",)),
        ("--split", split, ("scrolls",)),
        ("--out", out, ("scrolls",)),
        ("--tasks", tasks, ("harness",)),
        ("--include", include, ("harness",)),
        ("--sequence-parallel", sequence_parallel or None, ("length-curve",)),
        ("--against", against, ("length-curve",)),
    )
    for option, given, of in only:
        if given is not None and task not in of:
            raise ValueError(f"{option} is an option of {', '.join(of)}, and {task} does not read it.")
    chosen = numbers("--lengths", lengths)
    named = words(tasks) or ()
    options = TaskOptions(
        data=data or (),
        lengths=chosen,
        protocol=protocol or "same_targets",
        max_windows=max_windows,
        split=split or "validation",
        out=out,
        tasks=named,
        include=include,
        sequence_parallel=sequence_parallel,
        against=against,
    )
    found = measure(load_checkpoint(model), options)
    width = max((len(score.metric) for score in found), default=0) if against else 18
    for score in found if is_first() else ():
        if as_json:
            typer.echo(json.dumps(score.to_dict(), allow_nan=False))
        else:
            interval = f"[{score.low:.3f}, {score.high:.3f}]"
            of = f"{score.protocol} " if task in ("harness", "scrolls") else ""  # one of several tasks
            typer.echo(f"{score.length:>8} {of + score.metric:<{width}} {score.value:10.3f}  {interval}")
