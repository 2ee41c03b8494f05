"""`bipe bench`: what attention, training steps, generation and positions cost, as ratios inside one run."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

bench = typer.Typer(name="bench", help="Measure what things cost, as ratios inside one run.")

HiddenSize = Annotated[int, typer.Option(min=1, help="Width.")]
IntermediateSize = Annotated[int, typer.Option(min=1, help="Width inside the feed-forward part.")]
Layers = Annotated[int, typer.Option(min=1, help="Layers.")]
Heads = Annotated[int, typer.Option(min=1, help="Heads.")]
Vocabulary = Annotated[int, typer.Option(min=1, help="Tokens in the vocabulary.")]
Rounds = Annotated[int, typer.Option(min=1, help="Measurements of each, in turn; the median counts.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads on a CPU. Default: PyTorch's own choice.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Json = Annotated[bool, typer.Option("--json", help="Print each row as a JSON object.")]


@bench.command()
def attention(
    lengths: Annotated[str, typer.Option(help="Tokens, such as 2048,8192.")] = "2048,8192",
    implementations: Annotated[
        str | None,
        typer.Option(
            help="Of eager, sdpa, segment_local and flex; and SDPA with its whole bias materialised in each "
            "forward, or stored before. Default: sdpa, and segment_local where the bias decays."
        ),
    ] = None,
    against: Annotated[
        str, typer.Option(help="The baseline: causal (SDPA without a bias) or one of the others.")
    ] = "causal",
    backward: Annotated[bool, typer.Option("--backward", help="Time forward and backward.")] = False,
    heads: Annotated[int | None, typer.Option(min=1, help="Heads. Default: 12.")] = None,
    head_width: Annotated[int | None, typer.Option(min=1, help="Width of a head. Default: 64.")] = None,
    tokens_per_segment: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a segment. Default: 25.")
    ] = None,
    scale: Annotated[float | None, typer.Option(min=0, help="Scale of ALiBi's slopes. Default: 96.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of a model whose queries and keys to take, and whose reach to tell."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Text that the model reads: files, folders, globs or stdlib.")
    ] = None,
    dtype: Dtype = "float32",
    rounds: Rounds = 5,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Attention with ALiBi on segments against a baseline, the causal kernel without a bias.

    Without a model on queries, keys and values from N(0, 1). With one also how far back each of its heads
    looks: by its weights (bound), by the rule of segment_local on the text (needed), and with 99 % of its
    attention.
    """
    from bipe.benchmarks.attention import captured_layers, check, drawn_layers, measure
    from bipe.benchmarks.reach import decays, longest_text, reach_rows
    from bipe_cli.values import numbers, words

    _use(threads)
    wanted = numbers("--lengths", lengths)
    drawn = {"heads": heads, "width": head_width, "tokens_per_segment": tokens_per_segment, "scale": scale}
    given = {name: value for name, value in drawn.items() if value is not None}
    if model is None:
        names = words(implementations or "segment_local,sdpa")
        check(wanted, [against, *names])
        layers = drawn_layers(**given, dtype=_dtype(dtype))
    elif given or dtype != "float32":
        raise ValueError(
            "Heads, their width, segments, scale and dtype are those of the model; leave them out."
        )
    else:
        loaded, ids = longest_text(model, data or [])
        names = words(implementations or ("segment_local,sdpa" if decays(loaded) else "sdpa"))
        check(wanted, [against, *names], decays=decays(loaded), available=len(ids))
        _print(reach_rows(loaded, ids[: max(wanted)]), _reach_line, as_json)
        layers = captured_layers(loaded, ids)
    rows = measure(layers, wanted, names, baseline=against, backward=backward, rounds=rounds)
    _print(rows, _attention_line, as_json)


@bench.command()
def model(
    schemes: Annotated[str, typer.Option(help="Schemes, such as bipe-rope,bipe-alibi.")] = "bipe-rope",
    lengths: Annotated[str, typer.Option(help="Tokens, such as 1024,4096.")] = "1024,4096",
    hidden_size: HiddenSize = 768,
    intermediate_size: IntermediateSize = 2048,
    layers: Layers = 4,
    heads: Heads = 12,
    vocabulary: Vocabulary = 8000,
    dtype: Dtype = "float32",
    rounds: Rounds = 5,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """A training step of each scheme against transformers' Llama of the same size."""
    from bipe.benchmarks.model import Size, measure_steps
    from bipe_cli.values import numbers, words

    _use(threads)
    size = Size(hidden_size, intermediate_size, layers, heads, vocabulary, dtype=_dtype(dtype))
    rows = measure_steps(words(schemes), numbers("--lengths", lengths), size, rounds=rounds)
    _print(rows, _step_line, as_json)


@bench.command()
def generate(
    schemes: Annotated[str, typer.Option(help="Schemes, such as bipe-rope,bipe-alibi.")] = "bipe-rope",
    contexts: Annotated[str, typer.Option(help="Tokens before the new ones, such as 128,2048.")] = "2048",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens written in each measurement.")] = 16,
    hidden_size: HiddenSize = 768,
    intermediate_size: IntermediateSize = 2048,
    layers: Layers = 4,
    heads: Heads = 12,
    vocabulary: Vocabulary = 8000,
    dtype: Dtype = "float32",
    rounds: Rounds = 7,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Greedy generation with a cache against transformers' Llama of the same size."""
    from bipe.benchmarks.model import Size, measure_generation
    from bipe_cli.values import numbers, words

    _use(threads)
    size = Size(hidden_size, intermediate_size, layers, heads, vocabulary, dtype=_dtype(dtype))
    context = numbers("--contexts", contexts)
    rows = measure_generation(words(schemes), context, size, new_tokens=new_tokens, rounds=rounds)
    _print(rows, _generation_line, as_json)


@bench.command()
def positions(
    scheme: Annotated[str, typer.Option(help="The scheme whose forward it is compared with.")] = "bipe-alibi",
    rows: Annotated[int, typer.Option(min=1, help="Texts at once.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Tokens of each.")] = 8192,
    hidden_size: HiddenSize = 768,
    intermediate_size: IntermediateSize = 2048,
    layers: Layers = 4,
    heads: Heads = 12,
    vocabulary: Vocabulary = 8000,
    dtype: Dtype = "float32",
    rounds: Rounds = 3,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Finding positions, as a share of a forward of the model on the same tokens."""
    from bipe.benchmarks.model import Size, measure_positions

    _use(threads)
    size = Size(hidden_size, intermediate_size, layers, heads, vocabulary, dtype=_dtype(dtype))
    _print([measure_positions(scheme, rows, length, size, rounds=rounds)], _positions_line, as_json)


def _dtype(name: str) -> "torch.dtype":
    import torch

    from bipe.registry import choose

    kinds = {kind: getattr(torch, kind) for kind in ("float32", "bfloat16", "float16")}
    return choose("dtype", kinds, name)


def _use(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _print(rows: Iterable[dict[str, Any]], line: Any, as_json: bool) -> None:
    import json

    import torch

    machine = {
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
    }
    for row in rows:
        typer.echo(json.dumps({**row, **machine}, allow_nan=False) if as_json else line(row))


def _spread(row: dict[str, Any]) -> str:
    return f"{row['median']:.4g} (median of {row['rounds']}, {row['low']:.4g} to {row['high']:.4g})"


def _attention_line(row: dict[str, Any]) -> str:
    what = f"{row['implementation']}, {row['mode']}, {row['length']} tokens:"
    if row["row"] == "growth":
        return f"{what} {_spread(row)} of its time at {row['shorter']}; peak memory {row['peak_ratio']}"
    error = "" if row["error"] is None else f"; error {row['error']:.2g}"
    cost = "the baseline" if row["implementation"] == row["baseline"] else f"{_spread(row)} of the baseline"
    return f"{what} {cost}; {_bytes(row['extra_peak_bytes'])}{error}"


def _reach_line(row: dict[str, Any]) -> str:
    def distance(name: str) -> str:
        return "all" if row[name] is None else f"{row[name]:.0f}"

    return (
        f"layer {row['layer']} head {row['head']}: bound {distance('bound_segments')} segments; "
        f"needed {distance('needed_segments')} segments, {distance('needed_tokens')} tokens; "
        f"{row['share']:.0%} of attention within {distance('mass_segments')} segments, "
        f"{distance('mass_tokens')} tokens"
    )


def _step_line(row: dict[str, Any]) -> str:
    return (
        f"{row['scheme']} at {row['length']} tokens: {_spread(row)} of Llama's step; "
        f"peak memory {row['peak_ratio']} of Llama's"
    )


def _generation_line(row: dict[str, Any]) -> str:
    return f"{row['scheme']} after {row['context']} tokens: {_spread(row)} of Llama's time"


def _positions_line(row: dict[str, Any]) -> str:
    batch = f"({row['rows']}, {row['length']})"
    return f"bilevel_positions on {batch}: {_spread(row)} of a forward of {row['scheme']}"


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB more at the peak"
