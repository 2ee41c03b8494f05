"""Colours and markers of the charts: a scheme looks the same in every chart, on light and on dark ground."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple


class Colour(NamedTuple):
    """One role in two themes; `light` also identifies the role inside a drawn figure, so it is unique."""

    light: str
    dark: str


class Style(NamedTuple):
    """How a scheme is drawn.

    Attributes:
        role: key of `COLOURS`.
        marker: a matplotlib marker.
    """

    role: str
    marker: str

    @property
    def colour(self) -> str:
        """The colour on light ground, such as `"#0069a8"`."""
        return COLOURS[self.role].light


# The series keep 4.5:1 contrast on both grounds, since labels are written in them, and differ in lightness
# or marker where a colour-blind eye sees one hue.
COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "ground": Colour("#fffffe", "#15181d"),
        "ink": Colour("#1c2128", "#e9ecf0"),
        "muted": Colour("#5a6371", "#a2abb8"),
        "grid": Colour("#e3e6ea", "#2c323b"),
        "context": Colour("#c6ccd4", "#474f5b"),
        "series-1": Colour("#0069a8", "#4fb3f6"),
        "series-2": Colour("#c04a00", "#ff9455"),
        "series-3": Colour("#007a5c", "#35d0a2"),
        "series-4": Colour("#3b2a9b", "#ada1ff"),
        "series-5": Colour("#8a1f55", "#ea85b3"),
        "series-6": Colour("#646b76", "#b1b8c3"),
        "series-7": Colour("#856600", "#e6c64d"),
        "series-8": Colour("#a83e97", "#e293d8"),
        "series-9": Colour("#4d7318", "#b4d862"),
        "series-10": Colour("#7d4630", "#d6a48b"),
        "series-11": Colour("#1f7a8c", "#7fd6e8"),
        "series-12": Colour("#c2384e", "#ff9aa6"),
        "ramp-1": Colour("#7fb8dc", "#2f5d7c"),
        "ramp-2": Colour("#4f98c9", "#3f7ea6"),
        "ramp-3": Colour("#2a79b2", "#56a0cd"),
        "ramp-4": Colour("#155c92", "#7dbde3"),
        "ramp-5": Colour("#0b416c", "#a9d6f1"),
        "ramp-6": Colour("#062844", "#d8eefb"),
    }
)
RAMP: tuple[str, ...] = tuple(role for role in COLOURS if role.startswith("ramp-"))

_STYLES: Mapping[str, Style] = MappingProxyType(
    {
        "bipe-rope": Style("series-1", "o"),
        "bipe-alibi": Style("series-2", "s"),
        "bipe-alibi-auto": Style("series-3", "D"),
        "rope": Style("series-4", "^"),
        "alibi": Style("series-5", "v"),
        "nope": Style("series-6", "X"),
        "sinusoidal": Style("series-7", "P"),
        "learned": Style("series-8", "<"),
        "intra-only": Style("series-9", ">"),
        "inter-only": Style("series-10", "h"),
    }
)
_SPARE = (Style("series-11", "p"), Style("series-12", "*"))


def scheme_styles(schemes: Iterable[str]) -> dict[str, Style]:
    """Give every scheme its style: well-known schemes keep theirs, others take what is left, in their order.

    >>> scheme_styles(["rope", "mine"])["rope"].marker
    '^'

    Colours come round again with another marker, so that a hundred schemes differ, and a scheme that comes
    later changes no other's style.
    """
    names = list(dict.fromkeys(schemes))
    known = {name: _STYLES[name] for name in names if name in _STYLES}
    every = [*_SPARE, *_STYLES.values()]
    free = [*_SPARE]
    for shift in range(1, len(every)):
        # The colours of schemes that are seldom compared come first.
        free += [Style(every[n].role, every[n - shift].marker) for n in reversed(range(len(every)))]
    others = [name for name in names if name not in known]
    taken = {name: free[n % len(free)] for n, name in enumerate(others)}
    return {name: (known | taken)[name] for name in names}


def theme_css() -> str:
    """Return the colours as CSS variables, `--ink` and so on, for light ground and for dark."""
    light = "".join(f"--{role}:{colour.light};" for role, colour in COLOURS.items())
    dark = "".join(f"--{role}:{colour.dark};" for role, colour in COLOURS.items())
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
