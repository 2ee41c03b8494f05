"""`bipe train`: train a model from a recipe."""

import json
from pathlib import Path
from typing import Annotated

import typer


def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.", show_default="runs/NAME_OF_THE_RECIPE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each row of the history as JSON.")] = False,
) -> None:
    """Train a model from a recipe; any of its settings can follow as --name value.

    A folder that holds this run is resumed, or loaded where the run is finished.
    """
    from bipe.processes import is_first
    from bipe.training import load_recipe, parse_overrides, train_recipe

    resolved = load_recipe(recipe, parse_overrides(context.args))
    folder = out or Path("runs") / recipe.stem
    print_row = (lambda row: typer.echo(json.dumps(row))) if as_json else None
    trained = train_recipe(resolved, folder, on_progress=print_row)
    if not is_first():
        return
    summary = {
        "directory": str(trained.directory),
        "scheme": trained.model.config.scheme,
        "seed": resolved.seed,
        "steps": resolved.training.steps,
        "parameters": trained.model.num_parameters(),
        "validation_perplexity": trained.history[-1]["validation_perplexity"],
    }
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        typer.echo(
            f"{trained.directory}: {summary['scheme']}, {summary['parameters']:,} parameters, "
            f"{summary['steps']:,} steps, validation perplexity {summary['validation_perplexity']:.2f}"
        )
