"""Checkpoints that are either whole or not there.

Trainer writes a checkpoint file by file into its final place and resumes from the highest number, so a run
that is killed while it saves leaves a folder that later resumes wrongly, or not at all. Here a checkpoint is
written in a staging folder, gets a manifest of checksums, and appears under its name by one rename.
"""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

FOLDER = "checkpoints"
STAGING = "staging"
MANIFEST = "manifest.json"


def staging_folder(run: Path) -> Path:
    """Where a checkpoint of `run` is written before it is whole."""
    return run / FOLDER / STAGING


def publish(written: Path, run: Path, step: int, keep: int) -> Path:
    """Seal the checkpoint in `written`, give it its name, and delete all but the newest `keep`."""
    manifest = {str(file.relative_to(written)): _checksum(file) for file in _files(written)}
    (written / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    final = run / FOLDER / f"step-{step}"
    shutil.rmtree(final, ignore_errors=True)
    os.replace(written, final)
    for old in _by_step(run)[keep:]:
        shutil.rmtree(old)
    return final


def newest_whole(run: Path) -> Path | None:
    """The checkpoint of the highest step whose files are as they were written; a warning names the others."""
    for checkpoint in _by_step(run):
        if damage := _damage(checkpoint):
            warnings.warn(f"{checkpoint} is damaged ({damage}) and left out.", stacklevel=2)
        else:
            return checkpoint
    return None


def any_left(run: Path) -> bool:
    """Whether `run` has a checkpoint, whole or damaged."""
    return bool(_by_step(run))


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps that a checkpoint holds."""
    return int(checkpoint.name.removeprefix("step-"))


def discard(run: Path) -> None:
    """Delete all checkpoints of a run."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def _by_step(run: Path) -> list[Path]:
    found = [path for path in (run / FOLDER).glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _checksum(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _damage(checkpoint: Path) -> str | None:
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {MANIFEST}"
    for name, checksum in manifest.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if _checksum(file) != checksum:
            return f"{name} has changed"
    return None
