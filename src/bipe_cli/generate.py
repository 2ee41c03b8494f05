"""`bipe generate`: continue a text."""

from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[Path, typer.Option(help="Folder of the model and its tokenizer.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="The text to continue.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 100,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token; above, tokens are sampled.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides what is sampled.")] = 0,
    bounded_cache: Annotated[
        bool,
        typer.Option("--bounded-cache", help="With ALiBi: keep no keys that no later token can read."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print prompt and text as a JSON object.")] = False,
) -> None:
    """Continue a text with a trained model, and show it as it is written."""
    import json

    from transformers import set_seed

    from bipe.models.checkpoint import load_checkpoint
    from bipe.models.completion import complete

    set_seed(seed)
    text = complete(
        load_checkpoint(model),
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        bounded_cache=bounded_cache,
        on_piece=None if as_json else lambda piece: typer.echo(piece, nl=False),
    )
    typer.echo(json.dumps({"prompt": prompt, "text": text}) if as_json else "")
