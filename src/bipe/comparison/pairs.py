"""Which schemes of a comparison are compared with which."""

from itertools import combinations

from bipe.models import SCHEMES

from .settings import Comparison

MOST_PAIRS = 12
"""Differences between more pairs of schemes than that are more than anybody reads."""


def pairs_of(settings: Comparison) -> list[tuple[str, str]]:
    """What is compared with what: everything, schemes on tokens before those on segments.

    Where that would be more than `MOST_PAIRS`: each arm with the scheme that it changes, and schemes on
    tokens with those on segments that have the same encoding between them.
    """
    schemes = {name: SCHEMES[settings.arm(name).scheme] for name in settings.names}
    ordered = sorted(schemes, key=lambda name: schemes[name].counts_segments)
    pairs = list(combinations(ordered, 2))
    if len(pairs) <= MOST_PAIRS:
        return pairs

    def belong(one: str, two: str) -> bool:
        if settings.arm(two).scheme == one or settings.arm(one).scheme == two:
            return True
        levels = [schemes[name].counts_segments for name in (one, two)]
        return levels == [False, True] and schemes[one].inter["type"] == schemes[two].inter["type"]

    return [(one, two) for one, two in pairs if belong(one, two)]
