"""`bipe convert`: checkpoints of others as this project's, and back."""

from pathlib import Path
from typing import Annotated, Any

import typer


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of a Llama-architecture or a released BiPE checkpoint, or a .gguf file.",
            show_default=False,
        ),
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    scheme: Annotated[
        str | None,
        typer.Option(help="Retrofit: keep the weights and change to this scheme, such as bipe-rope."),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="With --scheme, what ends a segment: paper (the default), sentence, line, paragraph, ..."
        ),
    ] = None,
    max_offset: Annotated[
        int | None, typer.Option(min=1, help="With --scheme, rows of a new table of offsets. Default: 1024.")
    ] = None,
    tokens_per_segment: Annotated[
        float | None,
        typer.Option(help="With a scheme whose slopes go by it, the mean of the text it is for."),
    ] = None,
    standalone: Annotated[
        bool,
        typer.Option("--standalone", help="Add the model's code, for trust_remote_code without bipe."),
    ] = False,
    to_llama: Annotated[
        bool, typer.Option("--to-llama", help="Write transformers' Llama from a model of scheme rope.")
    ] = False,
) -> None:
    """Convert a checkpoint, with its tokenizer, so that every other command reads it."""
    from bipe.models.checkpoint import quiet_transformers
    from bipe.models.convert import convert as to_bipe
    from bipe.models.convert import convert_to_llama

    if to_llama and (scheme is not None or standalone):
        raise ValueError("A Llama has one scheme and its own code: give --to-llama alone.")
    options = {"rule": rule, "max_offset": max_offset, "tokens_per_segment": tokens_per_segment}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if scheme is None and given:
        name = next(iter(given)).replace("_", "-")
        raise ValueError(f"--{name} is for a retrofit: give --scheme too.")
    with quiet_transformers():
        if to_llama:
            convert_to_llama(source, target)
        else:
            to_bipe(source, target, scheme, standalone=standalone, **given)
    typer.echo(f"{target}")
