"""Reading settings: from a YAML file, single values as typed on a command line, and back to YAML."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from bipe.plain import read_yaml

from .recipe import Recipe, Settings
from .shipped import find_recipe, recipes_folder

S = TypeVar("S", bound=Settings)


def read_settings(
    kind: type[S],
    path: str | Path | None,
    overrides: Mapping[str, str] | None = None,
    values: Mapping[str, Any] | None = None,
) -> S:
    """Read settings from a YAML file and set single values of them.

    Args:
        kind: what is read, such as `Recipe`.
        path: the YAML file, or the name of one that comes with the package, such as `recipes/tiny.yaml`; None
            for the defaults.
        overrides: values by name, as typed on a command line: `training.steps` or, where only one group has
            such a setting, `steps`. `null` stands for no value; lists and dictionaries are written `[a, b]`
            and `{type: rope}`.
        values: values by dotted name, of their own types; None and empty lists are not set, and overrides
            come before them.

    Raises:
        ValueError: the file is no YAML mapping, a name is unknown, stands for several settings or is given
            twice, or a value is of a wrong type or out of range; one line that names each such setting.
    """
    path = None if path is None else find_recipe(Path(path))
    found = {} if path is None else _read_mapping(kind, path)
    typed = {name: value for name, value in (values or {}).items() if value is not None and value != []}
    chosen: dict[str, Any] = {}
    for name, text in (overrides or {}).items():
        setting = _setting(kind, name)
        if setting in chosen:
            raise ValueError(f"The setting {setting} is given twice.")
        chosen[setting] = _parse_value(text)
    typed |= chosen
    for name, value in typed.items():
        *groups, leaf = name.split(".")
        group = found
        for key in groups:
            if not isinstance(group.get(key) or {}, dict):
                raise ValueError(f"{key} must hold settings by name; got {group[key]!r}.")
            group[key] = dict(group.get(key) or {})
            group = group[key]
        group[leaf] = value
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        reasons = [_describe(kind, dict(one)) for one in error.errors(include_url=False)]
        given = [".".join(map(str, one["loc"])) in typed for one in error.errors()]
        place = "" if path is None or all(given) else f"{path}: "  # what was typed is not the file's fault
        raise ValueError(place + "; ".join(reasons)) from None


def load_recipe(path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe and set single values of it; see `read_settings`."""
    return read_settings(Recipe, path, overrides)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every setting with its value."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Read `--name value` and `--name=value` pairs.

    >>> parse_overrides(["--training.steps", "100", "--batch-size=4"])
    {'training.steps': '100', 'batch_size': '4'}

    Raises:
        ValueError: an argument is no `--name`, has no value, or names what another one does.
    """
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or len(name) == 2:
            raise ValueError(f"Settings are given as --name value; got {name!r}.")
        if not equals and (not rest or rest[0].startswith("--")):
            raise ValueError(f"The setting {name} has no value; write {name} VALUE.")
        setting = name[2:].replace("-", "_")
        if setting in overrides:
            raise ValueError(f"The setting {name} is given twice.")
        overrides[setting] = value if equals else rest.pop(0)
    return overrides


def _read_mapping(kind: type[Settings], path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise ValueError(
            f"The recipe {str(path)!r} cannot be read: {reason}. Those of the package: {recipes_folder()}."
        ) from None
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is no plain YAML: {error}.") from None
    if isinstance(values, dict) and "scheme" in values and "schemes" in kind.model_fields:
        raise ValueError(f"{path} is the recipe of a single model, for bipe train.")
    if isinstance(values, dict) and {"schemes", "arms"} & set(values) and "scheme" in kind.model_fields:
        raise ValueError(f"{path} is the recipe of a comparison, for bipe compare --recipe.")
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping with {_names(kind)}; got {type(values).__name__}.")
    return values


def _setting(kind: type[Settings], name: str) -> str:
    """The dotted name of a setting given by its dotted or its last name."""
    known = list(_dotted_names(kind))
    if name in known:
        return name
    matches = [dotted for dotted in known if dotted.rpartition(".")[2] == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"The setting {name!r} stands for several; write one of: {', '.join(matches)}.")
    near = get_close_matches(name, [*known, *(dotted.rpartition(".")[2] for dotted in known)], 1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown setting {name!r}.{meant} Choose one of: {', '.join(known)}.")


def _dotted_names(settings: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in settings.model_fields.items():
        inner = _settings_in(field.annotation)
        if inner is None or field.default is None:  # as a whole, where it may be left out
            yield prefix + name
        if inner is not None:
            yield from _dotted_names(inner, f"{prefix}{name}.")


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, if it holds one, or may; not groups by name."""
    if get_origin(annotation) is dict:
        return None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _parse_value(text: str) -> Any:
    """Numbers and words stay text, which pydantic turns into the setting's own type."""
    if text in ("null", "none", "None"):
        return None
    if text[:1] not in ("[", "{"):
        return text
    try:
        return read_yaml(text)
    except ValueError:
        raise ValueError(f"{text!r} is no list or dictionary in YAML.") from None


def _describe(kind: type[BaseModel], one: Mapping[str, Any]) -> str:
    keys = [str(key) for key in one["loc"]]
    name = ".".join(keys) or "the recipe"
    if one["type"] == "extra_forbidden":
        return f"unknown setting {name!r}, choose one of: {_names(_group(kind, keys[:-1]))}"
    if one["type"] == "missing":
        return f"the setting {name!r} is missing"
    message = one["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{name}: {message}" + ("" if one["type"] == "value_error" else f", got {one['input']!r}")


def _group(kind: type[BaseModel], keys: Sequence[str]) -> type[BaseModel]:
    group, rest = kind, list(keys)
    while rest:
        annotation = group.model_fields[rest.pop(0)].annotation
        if get_origin(annotation) is dict:  # of groups by name
            annotation = get_args(annotation)[1]
            rest = rest[1:]
        inner = _settings_in(annotation)
        assert inner is not None, "pydantic finds unknown names in groups only"
        group = inner
    return group


def _names(settings: type[BaseModel]) -> str:
    return ", ".join(settings.model_fields)
