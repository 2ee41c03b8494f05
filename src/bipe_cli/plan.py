"""`bipe plan`: what a recipe takes."""

from pathlib import Path
from typing import Annotated

import typer

GIB = 2**30


def plan(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    devices: Annotated[int, typer.Option(min=1, help="How many train together.")] = 1,
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Of the tokenizer, where it would have to be fetched.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Parameters, tokens, arithmetic and memory of a recipe; any of its settings can follow as --name value.

    Nothing is built and no text is read.
    """
    import json
    from dataclasses import asdict

    from bipe.training import load_recipe, parse_overrides
    from bipe.training.plan import plan as make

    resolved = load_recipe(recipe, parse_overrides(context.args))
    planned = make(resolved, devices, vocab_size)
    if as_json:
        typer.echo(json.dumps(asdict(planned)))
        return
    training = resolved.training
    parts = ", ".join(f"{name} {count:,}" for name, count in planned.parts.items())
    passes = f" x {training.gradient_accumulation} passes" if training.gradient_accumulation > 1 else ""
    days = planned.flops / 86400 / devices / 1e14
    typer.echo(
        f"{resolved.scheme}, {planned.parameters:,} parameters ({parts})\n"
        f"{devices:,} device{'s' if devices > 1 else ''} x {training.batch_size:,} blocks x "
        f"{resolved.data.block_length:,} tokens{passes} = {planned.tokens_per_step:,} tokens a step; "
        f"{training.steps:,} steps, {planned.tokens:,} tokens, {planned.tokens / planned.parameters:,.1f} a "
        "parameter\n"
        f"{planned.flops:.2e} multiplications and additions, {days:,.1f} days "
        "at 100 TFLOP/s a device\n"
    )
    layouts = {"DDP" if devices > 1 else "one device": planned.replicated}
    if planned.sharded is not None:
        layouts["FSDP"] = planned.sharded
    typer.echo("memory of a device, GiB".ljust(28) + "".join(f"{name:>12}" for name in layouts))
    rows = [asdict(memory) for memory in layouts.values()]
    for name in rows[0]:
        numbers = "".join(f"{row[name] / GIB:12.2f}" for row in rows)
        typer.echo(f"{'at once, at most' if name == 'peak' else name:28}{numbers}")
