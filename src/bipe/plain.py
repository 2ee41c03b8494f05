"""JSON and YAML that were written by anybody: plain values, or an error that says what is wrong."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError


def read_json(text: str | bytes) -> Any:
    """The value that JSON spells.

    >>> read_json('{"a": [1, null]}')
    {'a': [1, None]}

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_object(path: Path, otherwise: str = "Repair or delete it.") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: the file.
        otherwise: what to do where it holds something else, for the message.

    Raises:
        ValueError: it does; the message names the file.
    """
    try:
        found = read_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON object ({error}). {otherwise}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not a JSON object. {otherwise}")
    return found


def read_yaml(text: str) -> Any:
    """The value that YAML spells, of plain types only.

    >>> read_yaml("a: [1, null]")
    {'a': [1, None]}

    Raises:
        ValueError: it is not YAML, has a tag of some program's, names something twice, repeats a part by an
            alias (a few lines of which can stand for more than memory holds), or is nested too deeply.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{place}{getattr(error, 'problem', None) or 'unreadable'}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (AttributeError, LookupError, TypeError) as error:  # of a tag whose value is of another kind
        raise ValueError(f"a value is not of its tag's kind ({error!r})") from None


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> str | None:
    """Name the first value in which two nested mappings differ, None where they agree.

    >>> first_difference({"a": {"b": 1}}, {"a": {"b": 2}})
    'a.b is 1 there and 2 here'
    """
    for name in sorted({*there, *here}):
        old, new = there.get(name), here.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if difference := first_difference(old, new, f"{prefix}{name}."):
                return difference
        elif old != new:
            return f"{prefix}{name} is {old!r} there and {new!r} here"
    return None


class _PlainLoader(yaml.SafeLoader):
    """A SafeLoader without aliases, where each key stands once."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise ComposerError(None, None, "aliases are not read here", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str | None] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                problem = f"{name!r} stands there twice"
                raise ConstructorError(None, None, problem, key.start_mark)
            seen |= {name} - {None}
        return super().construct_mapping(node, deep)
