"""`bipe compare`: train and measure several schemes alike."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def compare(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Option(help="A YAML file with settings. Default: none.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all that comes out.")] = Path("runs/compare"),
    data: Annotated[
        list[str] | None,
        typer.Option(help="Training text: files, folders, globs, hf:NAME or stdlib (the default)."),
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Test text. Default: held out of the training text.")
    ] = None,
    schemes: Annotated[
        str | None, typer.Option(help="Schemes with commas between, such as rope,bipe-rope.")
    ] = None,
    train_length: Annotated[int | None, typer.Option(help="Tokens in a training block.")] = None,
    lengths: Annotated[str | None, typer.Option(help="Context lengths to test at, such as 128,1024.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each run.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each scheme.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 1,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print each score as a JSON object; progress goes to standard error."),
    ] = False,
) -> None:
    """Train several schemes alike on short text and measure them on long text.

    Writes scores.jsonl, summary.md and report.html. Other settings follow as --name value, such as
    --model.hidden_size 256 or --learning_rates [0.001]; the recipes in recipes/comparisons show them all.
    A comparison that was broken off goes on when the same command is given again. With other schemes or more
    seeds it gets those too. With other lengths, protocols or tasks its models are measured by those and not
    trained again.
    """
    from bipe.comparison import Comparison
    from bipe.comparison import compare as run
    from bipe.processes import processes
    from bipe.report.folder import SCORES
    from bipe.training import parse_overrides, read_settings
    from bipe_cli.values import numbers, words

    if processes() > 1:
        raise ValueError("A comparison starts its own processes: give --workers in place of torchrun.")
    given = {
        "data.train": data,
        "test": test,
        "schemes": words(schemes),
        "data.train_length": train_length,
        "evaluation.lengths": numbers("--lengths", lengths),
        "training.steps": steps,
        "seeds": seeds,
    }
    settings = read_settings(Comparison, recipe, parse_overrides(context.args), given)
    page = run(settings, out, processes=workers, say=partial(typer.echo, err=as_json))
    if as_json:
        typer.echo((out / SCORES).read_text(encoding="utf-8"), nl=False)
    else:
        typer.echo(page)
