"""A run's folder: whose it is, and whether the run is over."""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bipe.models import BipeConfig
from bipe.plain import first_difference, read_object
from bipe.processes import gather, is_first, processes
from bipe.storage import LOCK, discard_drafts, is_draft, sole_writer, write_whole

from . import checkpoints
from .order import Blocks
from .reading import load_recipe
from .recipe import Recipe, TrainingSettings

MARKER = "training.json"
RECIPE = "recipe.yaml"
BOOKKEEPING = frozenset({"checkpoint_every", "keep_checkpoints", "loader_workers", "tensorboard"})
"""Settings that may change between the parts of a run, as they do not change its outcome."""
DEALT = ("batch_size", "gradient_accumulation")
"""Settings that tell, with the number of processes, how many blocks a step has."""
UNSTABLE_FIELDS = frozenset(
    {"dtype", "max_trained_offset", "original_max_segments", "transformers_version", "use_cache"}
)
"""Fields of a config that training or saving sets."""
SAMPLED_BLOCKS = 256

Identity = dict[str, Any]


def identify(
    config: BipeConfig, blocks: Blocks, settings: TrainingSettings, seed: int, start: Path | None = None
) -> Identity:
    """What decides the outcome of a run, as JSON values; of the text a checksum of evenly spread blocks."""
    fields = {name: value for name, value in config.to_dict().items() if name not in UNSTABLE_FIELDS}
    identity = {
        "settings": settings.model_dump(mode="json", exclude=set(BOOKKEEPING)),
        "config": fields,
        "seed": seed,
        "data": _sample_checksum(blocks),
        "processes": processes(),
    }
    if start is not None:
        identity["start"] = _weights_checksum(start)
    return json.loads(json.dumps(identity))


def is_there(run: Path, identity: Identity, resume: bool) -> bool:
    """Whether `run` holds this run, finished; nothing is written.

    Raises:
        ValueError: the folder holds another run (the message names the first difference), a model that no
            run has made, or this run where `resume` is false.
    """
    refuse_foreign_files(run)
    marker = read_marker(run)
    if marker is None or not _holds_anything(run):
        return False
    # Settings that are newer than the run were what they are by default.
    defaults = TrainingSettings(steps=1).model_dump(mode="json", exclude=set(BOOKKEEPING))
    settings = {**defaults, **marker["identity"].get("settings", {})}
    there, here = map(_dealt, ({**marker["identity"], "settings": settings}, identity))
    _refuse_difference(run, there, here, resume)
    return bool(marker["finished"])


def claim(run: Path, identity: Identity, resume: bool) -> bool:
    """As `is_there`, and a folder where nothing was saved yet becomes this run's; it must be `held`."""
    finished = is_there(run, identity, resume)
    if is_first() and not _holds_anything(run):
        write_marker(run, identity, steps_done=0, finished=False)
    return finished


def _dealt(identity: Identity) -> Identity:
    """An identity with the blocks of a step in one number: how they are dealt out is not what a run is."""
    settings = dict(identity["settings"])
    blocks = math.prod(settings.pop(name) for name in DEALT)
    blocks *= identity.get("processes", processes())  # which older records do not tell
    rest = {name: value for name, value in identity.items() if name != "processes"}
    return {**rest, "settings": {**settings, "blocks_per_step": blocks}}


def claim_recipe(run: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse a folder that holds another recipe's run, before the text is read.

    Raises:
        ValueError: as `claim`.
    """
    refuse_foreign_files(run)
    if not _holds_anything(run):
        return
    if not (run / RECIPE).exists():
        raise ValueError(f"{run} holds a run without {RECIPE}, so another one. Choose another folder.")
    identity = (read_marker(run) or {"identity": {}})["identity"]
    there, here = load_recipe(run / RECIPE), _outcome(recipe, processes())
    # The recipe in the folder is the last one given, which may deal a step's blocks out in another way than
    # the first, of which the record tells.
    dealt = {name: identity.get("settings", {}).get(name) for name in DEALT}
    known = {name: number for name, number in dealt.items() if number is not None}
    first = there.model_copy(update={"training": there.training.model_copy(update=known)})
    _refuse_difference(run, _outcome(first, identity.get("processes", processes())), here, resume)


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Keep other commands from writing into a run's folder, which is made if it is not there.

    What a command that was killed left half-written there is deleted.

    Raises:
        ValueError: another command writes there; in every process of this one.
    """
    with ExitStack() as stack:
        refusal = None
        if is_first():
            run.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(sole_writer(run))
            except ValueError as error:
                refusal = str(error)
        if refusal := gather([refusal])[0]:
            raise ValueError(refusal)
        if is_first():
            discard_drafts(run)
        yield


def open_folder(run: Path) -> None:
    """Mark a folder that is `held` as a run's, so that what is written next is known to be ours."""
    if read_marker(run) is None:
        write_marker(run, {}, steps_done=0, finished=False)


def is_finished(run: Path) -> bool:
    """Whether a run in this folder has reached its last step."""
    marker = read_marker(run)
    return marker is not None and bool(marker["finished"])


def check_start(run: Path, start: Path) -> None:
    """Refuse a finished run whose start is there and has other weights by now.

    Raises:
        ValueError: it has.
    """
    marker = read_marker(run)
    known = None if marker is None else marker["identity"].get("start")
    if any(start.glob("*.safetensors")) and known != _weights_checksum(start):
        raise ValueError(f"{run} went on from other weights than {start} holds now. Choose another folder.")


def refuse_foreign_files(run: Path) -> None:
    """Raise where `run` holds files, but no record of a run that made them: they are somebody's."""
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run} is a file; a run needs a folder.")
    if run.exists() and not (run / MARKER).exists():
        for path in sorted(run.iterdir()):
            if path.name == LOCK or is_draft(path, MARKER):
                continue
            raise ValueError(
                f"{run} holds a {path.name} but no {MARKER}, so no run of bipe made it. "
                "Choose another folder."
            )


def read_marker(run: Path) -> dict[str, Any] | None:
    """What `training.json` says of the run in this folder, None where there is none."""
    path = run / MARKER
    if not path.exists():
        return None
    marker = read_object(path, "Delete the folder or choose another.")
    if not (isinstance(marker.get("identity"), dict) and {"finished", "steps_done"} <= marker.keys()):
        raise ValueError(f"{path} is not the record of a run. Delete the folder or choose another.")
    return marker


def write_marker(run: Path, identity: Identity, *, steps_done: int, finished: bool) -> None:
    """Write `training.json` in one piece."""
    marker = {"steps_done": steps_done, "finished": finished, "identity": identity}
    write_whole(run / MARKER, json.dumps(marker, indent=1))


def _holds_anything(run: Path) -> bool:
    """Whether a run in this folder has left something that could be resumed or loaded."""
    return is_finished(run) or checkpoints.any_left(run)


def _refuse_difference(run: Path, there: Identity, here: Identity, resume: bool) -> None:
    if difference := first_difference(there, here):
        raise ValueError(f"{run} holds another run: {difference}. Choose another folder, or delete this one.")
    if not resume:
        raise ValueError(
            f"{run} already holds this run. Resume it, choose another folder, or delete this one."
        )


def _outcome(recipe: Recipe, count: int) -> Identity:
    settings = recipe.training.model_dump(mode="json", exclude=set(BOOKKEEPING))
    dealt = _dealt({"settings": settings, "processes": count})
    # Where tokens are kept says nothing of which.
    fields = recipe.model_dump(mode="json", exclude={"data": {"store"}})
    return {**fields, "training": dealt["settings"]}


def _sample_checksum(blocks: Blocks) -> dict[str, Any]:
    count = len(blocks)
    digest = hashlib.sha256()
    for index in range(0, count, -(-count // SAMPLED_BLOCKS)):
        digest.update(blocks[index]["input_ids"].numpy().tobytes())
    return {"blocks": count, "length": len(blocks[0]["input_ids"]), "sha256": digest.hexdigest()}


def _weights_checksum(model: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(model.glob("*.safetensors")):
        with open(path, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
