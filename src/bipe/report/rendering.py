"""Figures as inline SVG that follows the page's theme, and as PNG."""

import io
import re
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.figure import Figure

from bipe.report.palette import COLOURS

# A fixed salt and no date make equal figures equal bytes; text stays text, in the page's own typeface.
_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "bipe"}


def figure_svg(figure: Figure, name: str, label: str) -> str:
    """Return `figure` as one `<svg>` element for a page whose CSS holds `palette.theme_css()`.

    Each colour is written as `var(--role, #light)`: the page's theme decides, and the element alone is light.

    Args:
        figure: a figure drawn in the colours of `palette.COLOURS` only.
        name: put before every id in the element, so that several elements share a page.
        label: what the chart shows, for those who do not see it.
    """
    with matplotlib.rc_context(_SETTINGS):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(?:d|transform|x|y)="[^"]*"', _shorten, svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for role, colour in COLOURS.items():
        svg = svg.replace(colour.light, f"var(--{role}, {colour.light})")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg" {box.group()}'
    return f'{head} role="img" aria-label={quoteattr(label)} stroke-linejoin="round"{svg[svg.index(">") :]}'


def figure_png(figure: Figure, dots_per_inch: int = 200) -> bytes:
    """Return `figure` as a PNG on the light ground, equal bytes for equal figures."""
    stream = io.BytesIO()
    figure.savefig(
        stream,
        format="png",
        dpi=dots_per_inch,
        facecolor=COLOURS["ground"].light,
        metadata={"Software": None},
    )
    return stream.getvalue()


def _shorten(attribute: re.Match[str]) -> str:
    """Round the coordinates of an attribute to hundredths of a point."""
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number.group()):.2f}", attribute.group())
