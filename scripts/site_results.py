"""For mkdocs: the pages of results are part of the site, where links to them lead."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

RESULTS = Path(__file__).parents[1] / "results"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and the rows that they link to."""
    for path in sorted(RESULTS.iterdir()):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Let links find their targets: in the repository results lie beside the documentation, here below it."""
    place = page.file.src_uri
    if place.startswith("results/"):
        return markdown.replace("](../docs/", "](../")
    return re.sub(r"\]\((\.\./)+results/", f"]({'../' * place.count('/')}results/", markdown)
