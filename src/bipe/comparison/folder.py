"""The folder of a comparison: whose it is, and what may be added to it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bipe.plain import first_difference, read_object
from bipe.storage import LOCK, is_draft
from bipe.training.initial_model import check_recipe

from .corpus import FILE, NAMES
from .runs import jobs_of, recipe_of
from .settings import MARKER, Comparison, EvaluationSettings

ADDABLE = ("arms", "schemes", "seeds")
"""Settings that a comparison may get more of."""

MEASURED = ("lengths", "protocols", "tasks")
"""Likewise, of its evaluation: models that are trained already are measured again."""


def agreed(settings: Comparison, out: Path) -> Comparison:
    """The settings with what a comparison in this folder has already; nothing is written.

    Schemes, seeds and what is measured may be added to a comparison; all else decides what comes out.

    Raises:
        ValueError: the folder is another comparison's, or none's, or a name or size is wrong.
    """
    settings = _with_those_there(settings, out)
    for job in jobs_of(settings, out)[: len(settings.names)]:  # seeds change no recipe's sizes
        check_recipe(recipe_of(job))
    there = settings_there(out)
    if there is None and out.exists():
        if not out.is_dir() or not all(path.name == LOCK or is_draft(path, MARKER) for path in out.iterdir()):
            raise ValueError(
                f"{out} exists and is no folder of a comparison. Choose an empty or a new one with --out."
            )
    elif there is not None:
        here = settings.model_dump(mode="json")
        before = there.model_dump(mode="json")
        before |= {name: here[name] for name in ADDABLE}
        before["evaluation"] |= {name: here["evaluation"][name] for name in MEASURED}
        if difference := first_difference(before, here):
            raise ValueError(
                f"{out} holds another comparison: {difference}. Choose another folder with --out."
            )
    return settings


def settings_there(out: Path) -> Comparison | None:
    """The settings of the comparison in this folder, None where there is none."""
    path = out / MARKER
    if not path.exists():
        return None
    try:
        return Comparison.model_validate(read_object(path, "Delete the folder or choose another."))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(
            f"{path} is not the record of a comparison ({place}). Delete the folder or choose another."
        ) from None


def _with_those_there(settings: Comparison, out: Path) -> Comparison:
    """The settings with what a comparison in this folder compares and measures already.

    Raises:
        ValueError: an arm of the same name is another one there.
    """
    there = settings_there(out)
    if there is None:
        return settings
    for name in there.arms.keys() & settings.arms.keys():
        if there.arms[name] != settings.arms[name]:
            raise ValueError(
                f"{out} holds another arm {name!r}. Give this one another name, or choose another folder "
                "with --out."
            )
    arms, seeds = {**there.arms, **settings.arms}, max(there.seeds, settings.seeds)
    both = {"schemes": _union(there.schemes, settings.schemes), "arms": arms, "seeds": seeds}
    return settings.model_copy(update={**both, "evaluation": _all_measured(there, settings)})


def _all_measured(there: Comparison, here: Comparison) -> EvaluationSettings:
    """How models are measured, with the lengths, protocols and tasks of both."""
    found: dict[str, Any] = {"protocols": _union(there.evaluation.protocols, here.evaluation.protocols)}
    for name in ("lengths", "tasks"):
        both = _union(getattr(there, name), getattr(here, name))
        grown = set(both) > set(getattr(there, name))
        found[name] = sorted(both) if grown else getattr(there.evaluation, name)
    return here.evaluation.model_copy(update=found)


def _union(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """What is in either, in order of appearance."""
    return list(dict.fromkeys([*first, *second]))


def release(out: Path) -> None:
    """Give up the claim on a folder in which nothing was trained yet: the mended command can have it."""
    if (out / "sweep").exists() or (out / "runs").exists():
        return
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    for name in (FILE, NAMES, MARKER, LOCK):
        (out / name).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()
