"""`bipe extend`: a longer context for a trained model."""

from pathlib import Path
from typing import Annotated, Any

import typer


def extend(
    context: typer.Context,
    model: Annotated[Path, typer.Option(help="Folder of the trained model.", show_default=False)],
    method: Annotated[
        str,
        typer.Option(
            help="linear, ntk, dynamic, yarn, longrope, llama3, rerope, selfextend or sliding_rope; "
            "of ALiBi: linear."
        ),
    ],
    factor: Annotated[float, typer.Option(help="How many times longer texts are to become.")],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    original: Annotated[
        int | None,
        typer.Option(
            help="Trained length in the index's unit, segments or tokens. Default: as training recorded it."
        ),
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(
            help="More of the method, as YAML: '{beta_fast: 16}', longrope's long_factor, a window."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Text to train the extended model on: files, folders, globs, hf:NAME or stdlib."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of that training.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as a JSON object.")] = False,
) -> None:
    """Stretch a model's relative index, in its own unit, and perhaps train it on longer text.

    Any setting of a training recipe can follow as --name value, such as --train-length 512.
    """
    import json

    from bipe.models.checkpoint import quiet_transformers
    from bipe.training import extend as extend_model
    from bipe.training import parse_overrides

    overrides = parse_overrides(context.args)
    if (data is None) != (steps is None):
        raise ValueError("To train the extended model give both --data and --steps; to extend only, neither.")
    if overrides and data is None:
        raise ValueError(f"--{next(iter(overrides))} is a setting of training: give --data and --steps too.")
    settings: dict[str, Any] | None = None if data is None else {"data.train": data, "training.steps": steps}
    with quiet_transformers():
        extension, trained = extend_model(
            model,
            out,
            method,
            factor,
            original=original,
            parameters=None if parameters is None else _mapping(parameters),
            settings=settings,
            overrides=overrides,
        )
    perplexity = None if trained is None else trained.history[-1]["validation_perplexity"]
    if as_json:
        typer.echo(
            json.dumps({**extension.to_dict(), "directory": str(out), "validation_perplexity": perplexity})
        )
        return
    typer.echo(str(extension))
    after = "" if perplexity is None else f": validation perplexity {perplexity:.2f} after {steps:,} steps"
    typer.echo(f"{out}{after}")


def _mapping(text: str) -> dict[str, Any]:
    from bipe.plain import read_yaml

    try:
        parsed = read_yaml(text)
    except ValueError:
        parsed = text
    if not isinstance(parsed, dict):
        raise ValueError(f"--parameters takes names and values, such as '{{beta_fast: 16}}'; got {parsed!r}.")
    return parsed
