"""The folder of a comparison: whose it is, and what may be added to it."""

import shutil
from pathlib import Path

from pydantic import ValidationError

from bipe.plain import first_difference, read_object
from bipe.storage import LOCK, is_draft
from bipe.training.initial_model import check_recipe

from .corpus import FILE, NAMES
from .runs import jobs_of, recipe_of
from .settings import MARKER, Comparison

ADDABLE = ("arms", "schemes", "seeds")
"""Settings that a comparison may get more of."""

CHANGEABLE = ("lengths", "protocols", "tasks")
"""Settings of its evaluation that a later call may change: what is trained already is measured by them."""


def agreed(settings: Comparison, out: Path) -> Comparison:
    """The settings with what a comparison in this folder has already; nothing is written.

    Schemes, arms and seeds are added to those there. What is measured is what these settings say or, where
    they say nothing, as there. All else decides what comes out of training, and must agree.

    Raises:
        ValueError: the folder is another comparison's, or none's, or a name or size is wrong.
    """
    settings = _with_those_there(settings, out)
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
        before["evaluation"] |= {name: here["evaluation"][name] for name in CHANGEABLE}
        if difference := first_difference(before, here):
            raise ValueError(
                f"{out} holds another comparison: {difference}. Choose another folder with --out."
            )
    settings.check()
    for job in jobs_of(settings, out)[: len(settings.names)]:  # seeds change no recipe's sizes
        check_recipe(recipe_of(job))
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
    """The settings with what a comparison in this folder compares, and how it measures where they do not say.

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
    named = settings.schemes if "schemes" in settings.model_fields_set else []
    schemes = list(dict.fromkeys([*there.schemes, *named]))
    arms, seeds = {**there.arms, **settings.arms}, max(there.seeds, settings.seeds)
    said = settings.evaluation.model_dump(include={*CHANGEABLE}, exclude_unset=True)
    kept = {name: getattr(there.evaluation, name) for name in CHANGEABLE if name not in said}
    evaluation = settings.evaluation.model_copy(update=kept)
    return settings.model_copy(
        update={"schemes": schemes, "arms": arms, "seeds": seeds, "evaluation": evaluation}
    )


def release(out: Path) -> None:
    """Give up the claim on a folder in which nothing was trained yet: the mended command can have it."""
    if any((out / name).exists() for name in ("sweep", "runs", "settings.json")):
        return
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    for name in (FILE, NAMES, MARKER, LOCK):
        (out / name).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()
