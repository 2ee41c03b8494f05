"""Context extension of a checkpoint, with training on longer text after it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bipe.models.convert import check_free
from bipe.models.extension import Extension, extend_checkpoint, read_extension, write_extended
from bipe.models.weights import read_config
from bipe.plain import first_difference
from bipe.processes import processes

from .history import Progress
from .reading import read_settings
from .recipe import Recipe
from .run_folder import refuse_foreign_files
from .train import TrainedModel, train_recipe


def extend(
    source: str | Path,
    out: str | Path,
    method: str,
    factor: float,
    *,
    original: int | None = None,
    parameters: dict[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> tuple[Extension, TrainedModel | None]:
    """Extend a model's context, and train the extended model on where there is text for it.

    With training, the extended model before it stands beside the result, in `OUT.start`; the same call goes
    on where an interrupted one stopped.

    Args:
        source: folder of the trained model.
        out: the folder to write.
        method: a key of `METHODS`.
        factor: how many times longer texts are to become.
        original: the trained length in the unit of the index; None for what training has recorded.
        parameters: further ones of the rope type.
        settings: of the training by dotted name, as a recipe has them, with `data.train`; None for none. Its
            `train_length` is by default `factor` times the model's.
        overrides: single settings as typed on a command line.
        on_progress: gets each row of the training's history.

    Raises:
        ValueError: as `extension_of`, `convert` and `train_recipe`.
        RuntimeError: the loss stopped being finite.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.
    """
    source, out = Path(source), Path(out).resolve()
    if settings is None and not overrides:
        return extend_checkpoint(source, out, method, factor, original=original, parameters=parameters), None
    if processes() > 1:
        raise ValueError(
            "Extending and training in one go is for one process: extend without training, then give the "
            "result to torchrun ... bipe train as --start."
        )
    start = out.with_name(f"{out.name}.start")
    made = not start.exists()
    if made:
        check_free(source, start)
    found, extension = read_extension(source, method, factor, original=original, parameters=parameters)
    length = round(factor * found.config.max_position_embeddings)
    values = {"start": str(start), "data.train_length": length, **(settings or {})}
    recipe = read_settings(Recipe, None, overrides, values)
    refuse_foreign_files(out)
    for folder in (start, out):
        _refuse_another(folder, extension)
    if made:
        write_extended(extension, found, source, start)
    del found  # a second copy of the weights while training has its own
    try:
        trained = train_recipe(recipe, out, on_progress=on_progress)
    except ValueError:
        if made and not out.exists():  # nothing was trained: the mended call makes its own
            shutil.rmtree(start)
        raise
    return extension, trained


def _refuse_another(folder: Path, extension: Extension) -> None:
    """Refuse a folder of a model that was extended otherwise, or of another model."""
    if not (folder / "config.json").is_file():
        return
    there, here = read_config(folder).get("extension") or {}, extension.config.extension or {}
    if difference := first_difference(there, here):
        raise ValueError(
            f"{folder} holds another extension: {difference}. Choose another folder with --out, or delete "
            "this one."
        )
