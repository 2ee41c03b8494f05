"""`bipe report`: write the page and the summary of a run folder anew."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[Path, typer.Argument(help="The --out folder of bipe compare, finished or not.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the paths.")] = False,
) -> None:
    """Write report.html and summary.md from the files of a run folder."""
    import json

    from bipe.report.html import write_report

    page = write_report(run_dir)
    summary = page.with_name("summary.md")
    if as_json:
        typer.echo(json.dumps({"report": str(page), "summary": str(summary)}))
    else:
        typer.echo(f"{page}\n{summary}")
