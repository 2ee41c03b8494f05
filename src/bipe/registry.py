"""Look-up in the plain dictionaries that serve as registries."""

import inspect
import math
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

V = TypeVar("V")


def choose(kind: str, table: Mapping[str, V], name: str) -> V:
    """Return `table[name]`, or say what could have been chosen.

    >>> choose("inter encoding", {"alibi": 1, "rope": 2}, "rope")
    2

    Args:
        kind: what the table holds, for the message, such as `"inter encoding"`.
        table: the registry.
        name: the key looked for.

    Raises:
        ValueError: `name` is not a key of `table`; the message lists the choices.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        raise ValueError(f"Unknown {kind} {name!r}. Choose one of: {', '.join(sorted(table))}.") from None


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False, whole: bool = False
) -> None:
    """Check an option that is a number.

    >>> check_number("window", 64, 1, whole=True)

    Args:
        name: of the option.
        value: what was given.
        low: the least that it may be.
        high: the most; infinity itself is never allowed.
        above: whether it must be more than the least.
        whole: whether it must be a whole number.

    Raises:
        ValueError: it is no such number; the message names the option, the range and the value.
    """
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if is_number and (low < value if above else low <= value) and value <= min(high, sys.float_info.max):
        return
    least = f"above {low:g}" if above else f"of at least {low:g}"
    # A limit that was kept would only be in the way.
    most = f" and at most {high:{',' if whole else 'g'}}" if is_number and value > high else ""
    raise ValueError(
        f"{name} must be a {'whole' if whole else 'finite'} number {least}{most}; got {value!r}."
    )


def split_spec(kind: str, table: Mapping[str, type[V]], spec: Any) -> tuple[type[V], dict[str, Any]]:
    """Split `{"type": name, **options}` into the registered class and its options.

    The options are the keyword parameters of the class (its keyword-only ones where it has any), and the
    names in its `config_options`.

    Raises:
        ValueError: `spec` is not a dictionary with a `"type"`, the type is unknown, or an option is unknown
            or missing.
    """
    if not isinstance(spec, Mapping) or "type" not in spec:
        raise ValueError(f'The {kind} is given as {{"type": name, ...}}; got {spec!r}.')
    entry = choose(kind, table, spec["type"])
    options = {key: value for key, value in spec.items() if key != "type"}
    parameters = inspect.signature(entry).parameters.values()
    keyword_only = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    accepted = {p.name: p for p in (keyword_only or [p for p in parameters if p.name != "config"])}
    known = {*accepted, *getattr(entry, "config_options", ())}
    if unknown := sorted(set(options) - known):
        choices = ", ".join(sorted(known)) or "none"
        raise ValueError(f"Unknown option {unknown[0]!r} of {kind} {spec['type']!r}. Its options: {choices}.")
    for name, parameter in accepted.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise ValueError(f"The {kind} {spec['type']!r} needs the option {name!r}.")
    return entry, options
