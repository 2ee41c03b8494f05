"""`bipe theory`: automata as Transformers, checked and counted."""

from pathlib import Path
from typing import Annotated

import typer

theory = typer.Typer(name="theory", help="The paper's theory as code: two-level automata as Transformers.")

Json = Annotated[bool, typer.Option("--json", help="Print rows as JSON objects.")]


@theory.command()
def verify(
    automata: Annotated[int, typer.Option(min=1, help="Random two-level automata.")] = 1000,
    words: Annotated[int, typer.Option(min=1, help="Random words for each.")] = 4,
    most_states: Annotated[int, typer.Option(min=1, help="States of each level, at most.")] = 4,
    max_offset: Annotated[int, typer.Option(min=1, help="Tokens in a segment, at most.")] = 12,
    max_segments: Annotated[int, typer.Option(min=1, help="Segments in a word, at most.")] = 12,
    seed: Annotated[int, typer.Option(help="Decides all that is random.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare compiled automata with the automata at every position of random words.

    Each automaton is compiled twice: with two levels, and flattened with absolute positions. Fails where a
    model tells other states.
    """
    import json
    from dataclasses import asdict

    from bipe.theory.verify import Verified
    from bipe.theory.verify import verify as run

    found = Verified()
    limits = {"most_states": most_states, "max_offset": max_offset, "max_segments": max_segments}
    for found in run(automata, words, **limits, seed=seed):
        if found.automata % 100 == 0 and found.automata < automata:
            line = f"{found.automata} of {automata} automata, {found.mismatches} mismatches"
            typer.echo(json.dumps(asdict(found)) if as_json else line)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        typer.echo(f"{found.automata} automata, {found.positions:,} positions, {found.mismatches} mismatches")
    if found.mismatches:
        raise RuntimeError(f"A compiled model differs from its automaton at {found.mismatches} positions.")


@theory.command()
def size(
    states: Annotated[
        str, typer.Option(help="States of each level, such as 2,3,4; the same number on both.")
    ] = "2,3,4",
    max_offset: Annotated[int, typer.Option(min=1, help="Tokens in a segment.")] = 16,
    max_segments: Annotated[int, typer.Option(min=1, help="Segments in a word.")] = 16,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the sizes into this file (.png, .svg, .pdf).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Width, depth and parameters of both compilations, counted on built models."""
    import json

    from bipe.theory.verify import sizes
    from bipe_cli.values import numbers

    wanted = numbers("--states", states)
    if not wanted or min(wanted) < 1:
        raise ValueError(f"--states are whole numbers, at least 1; got {states!r}.")
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot is a .png, .svg or .pdf file; got {str(plot)!r}.")
    rows = sizes(wanted, wanted, max_offset, max_segments)
    for row in rows:
        line = (
            f"{row['outer_states']} x {row['inner_states']} states, {row['model']}: width {row['width']:,}, "
            f"depth {row['depth']}, hidden {row['hidden_width']:,}, {row['parameters']:,} parameters"
        )
        typer.echo(json.dumps(row) if as_json else line)
    if plot is not None:
        from bipe.report.theory import size_figure

        plot.parent.mkdir(parents=True, exist_ok=True)
        size_figure(rows).savefig(plot, dpi=150)


@theory.command()
def margin(
    max_offset: Annotated[int, typer.Option(min=1, help="Tokens in a segment.")] = 16,
    max_segments: Annotated[int, typer.Option(min=1, help="Segments in a word.")] = 16,
    states: Annotated[int, typer.Option(min=1, help="States of each level.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the words that are tried.")] = 0,
    as_json: Json = False,
) -> None:
    """How sharp attention has to be in a compiled automaton, and how long a word may become.

    The automaton counts a symbol modulo the number of states, in each segment and over all.
    """
    import json
    import random
    from dataclasses import asdict

    from bipe.theory.binfa import counting
    from bipe.theory.compile import compile_binfa
    from bipe.theory.margin import margins, reading_error, smallest_sharpness
    from bipe.theory.verify import SYMBOLS, random_word

    letter, other, stop = SYMBOLS
    binfa, draw = counting(states, letter, stop, other), random.Random(seed)
    model = compile_binfa(binfa, max_offset, max_segments)
    for row in margins(model):
        line = (
            f"layer {row.layer}: margin {row.margin:.6f}, rounding {row.rounding:.1e}, sharpness "
            f"{row.sharpness:.1f}, needed {row.needed:.1f}, enough for {row.longest:.3g} other keys"
        )
        typer.echo(json.dumps(asdict(row)) if as_json else line)
    words = [random_word(draw, (letter, other), stop, max_offset, max_segments) for _ in range(20)]
    words.append(model.longest_word())
    measured = {
        "words": len(words),
        "reading_error": max(reading_error(model, word) for word in words),
        "smallest_sharpness": smallest_sharpness(binfa, model, words),
    }
    line = (
        f"{len(words)} words: read to within {measured['reading_error']:.1e}, exact down to sharpness "
        f"{measured['smallest_sharpness']:.2f}"
    )
    typer.echo(json.dumps(measured) if as_json else line)


@theory.command()
def learn(
    out: Annotated[Path, typer.Option(help="Folder of the training run.")],
    scheme: Annotated[str, typer.Option(help="Positional encoding.")] = "bipe-rope",
    states: Annotated[int, typer.Option(min=1, help="States of each level of the automaton.")] = 3,
    width: Annotated[int, typer.Option(min=8, help="Hidden size, a multiple of 8.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the automaton, the words and the model.")] = 0,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Training steps, of 64 words.")] = 2000,
    learning_rates: Annotated[str, typer.Option(help="The better one is kept.")] = "1e-3,3e-3",
    length: Annotated[int, typer.Option(min=1, help="Symbols of a word to train on.")] = 64,
    longer: Annotated[int, typer.Option(min=1, help="Symbols of a longer word to test on.")] = 256,
    as_json: Json = False,
) -> None:
    """Train a model to tell the states of a random two-level automaton after each symbol.

    Prints the share of symbols after which it is right, in words as long as those trained on and in longer
    ones. The same command goes on where it was broken off.
    """
    import json

    from bipe.comparison.automata import AutomatonRun, learn_automaton
    from bipe_cli.values import rates

    run = AutomatonRun(
        scheme, states, width, seed, layers, steps, rates("--learning-rates", learning_rates), length, longer
    )
    for row in learn_automaton(run, out):
        place = {"words": "words of {} symbols", "from_segment": "from segment {} on"}[row["protocol"]]
        line = f"{place.format(row['length'])}: right after {row['value']:.1%} of the symbols"
        typer.echo(json.dumps(row) if as_json else line)
