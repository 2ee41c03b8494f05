"""`bipe segment`: show how a tokenizer and a rule cut texts into segments."""

from pathlib import Path
from typing import Annotated

import typer


def segment(
    files: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, hf:NAME[:config][:split] or stdlib.")
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of a tokenizer. Default: a byte-level BPE trained on the files."
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="What ends a segment: paper, sentence, line, released, paragraph, block, section, file. "
            "Default: paper."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder of a model: its own tokenizer and segments, in place of the two above."),
    ] = None,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Print tokens per segment by text length.")
    ] = False,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Text lengths for --statistics, in tokens. Default: those of 256, 512, ... 8192 that fit."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the segments as a page to this file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each segment or length.")
    ] = False,
) -> None:
    """Cut texts into segments and show each token's segment and offset."""
    import json

    from rich.console import Console

    from bipe.data.documents import load_documents
    from bipe.data.tokens import encode, load_tokenizer, train_tokenizer
    from bipe.models.checkpoint import load_segmenter
    from bipe.report.segments import (
        segment_rows,
        segments_html,
        segments_text,
        statistics_table,
        terminal_table,
    )
    from bipe.segmentation import segmenter_of
    from bipe.segmentation.statistics import fitting_lengths, segment_statistics
    from bipe_cli.values import numbers

    if lengths and not statistics:
        raise ValueError("--lengths says at which text lengths --statistics counts; give --statistics too.")
    if model and (tokenizer or rule):
        raise ValueError("A model has its own tokenizer and segments: leave out --tokenizer and --rule.")
    named = load_segmenter(model) if model else None  # before the text, which may take long to read
    documents = load_documents(files)
    texts = (document.text for document in documents)
    name = tokenizer or model
    loaded = load_tokenizer(name) if name else train_tokenizer(texts, 8_000)
    segmenter = named or segmenter_of(loaded, rule or "paper")
    console = Console()
    described = None
    if statistics:
        encoded = encode(documents, loaded)
        described = segment_statistics(
            encoded, segmenter, numbers("--lengths", lengths) if lengths else fitting_lengths(encoded)
        )
    if html:
        rows = segment_rows(documents, loaded, segmenter)
        title = f"Segments of {model}" if model else f"Segments, rule {rule or 'paper'}"
        page = segments_html(rows, title=title, statistics=described)
        html.write_text(page, "utf-8", errors="backslashreplace")  # file names need not be Unicode
    if described and as_json:
        for length, row in described.items():
            typer.echo(json.dumps({"length": length, **row.to_dict()}))
    elif described:
        console.print(terminal_table(statistics_table(described), "Tokens per segment"))
    elif as_json:
        for row in segment_rows(documents, loaded, segmenter):
            typer.echo(json.dumps(row.to_dict()))
    else:
        for row in segment_rows(documents, loaded, segmenter):
            console.print(segments_text([row]), end="", soft_wrap=True)
