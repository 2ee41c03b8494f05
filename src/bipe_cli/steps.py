"""What an experiment is made of: its setup, and lists of commands."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setup:
    """What the commands of an experiment are filled in with.

    Attributes:
        out: the experiment's folder.
        recipes: the folder of recipes.
        data: training text, as `bipe compare --data` takes it.
        test: test text; empty to hold out some of the training text.
        workers: runs at a time.
        seeds: of each model.
        tasks: of SCROLLS, by name or as zip files, empty for two that are short; or of the harness, by name.
        settings: further settings of comparisons and trainings, as `--name value`.
    """

    out: Path
    recipes: Path
    data: Sequence[str]
    test: Sequence[str]
    workers: int
    seeds: int
    tasks: Sequence[str] = ()
    settings: Sequence[str] = ()

    def compare(self, recipe: str, folder: str, *more: str, text: bool = True) -> "Step":
        """A comparison in a folder of its own."""
        seeds = () if "--seeds" in more else ("--seeds", str(self.seeds))
        return Step(
            "compare",
            *("--recipe", str(self.recipes / recipe), "--out", str(self.out / folder)),
            *("--workers", str(self.workers), *seeds, *more, *(self.text if text else ()), *self.settings),
        )

    @property
    def text(self) -> tuple[str, ...]:
        """The options that name the text."""
        pairs = [*(("--data", name) for name in self.data), *(("--test", name) for name in self.test)]
        return tuple(part for pair in pairs for part in pair)

    @property
    def tested(self) -> tuple[str, ...]:
        """The options that name the text to evaluate on."""
        return tuple(part for name in self.test or self.data for part in ("--data", name))


class Step:
    """One command of `bipe`, without the program's name.

    Args:
        arguments: of the command.
        makes: a folder that the command writes at its end; where it is there, the step is done.
        rows: a file that keeps what it prints, JSON lines; where it is there, the step is done.
        arm: the name of its rows, in place of their scheme's.
        seed: of its rows, in place of what they say; an extended model does not know its own.
        suffices: from its rows, whether the steps that follow in its list are needless.
    """

    def __init__(
        self,
        *arguments: str,
        makes: Path | None = None,
        rows: Path | None = None,
        arm: str | None = None,
        seed: int | None = None,
        suffices: Callable[[list[dict[str, Any]]], bool] | None = None,
    ) -> None:
        self.arguments = (*arguments, "--json") if rows else arguments
        self.makes = makes
        self.rows = rows
        self.suffices = suffices
        self.named = {name: value for name, value in (("scheme", arm), ("seed", seed)) if value is not None}

    def __str__(self) -> str:
        return shlex.join(("bipe", *self.arguments))

    @property
    def is_done(self) -> bool:
        """Whether it left what it makes; a command that finds that out by itself is given again.

        Raises:
            ValueError: another command left that.
        """
        left = self.makes or self.rows
        if left is None or not left.exists():
            return False
        if not self._record.is_file() or self._record.read_text(encoding="utf-8") != str(self):
            raise ValueError(f"{left} is of another command. Choose another folder with --out.")
        return True

    @property
    def measured(self) -> list[dict[str, Any]]:
        """What it printed, by the names given to it; nothing where it was needless."""
        from bipe.records import read_records

        if self.rows is None or not self.rows.exists():
            return []
        return [{**row, **self.named} for row in read_records(self.rows)]

    @property
    def is_last(self) -> bool:
        """Whether what it left makes the steps after it needless."""
        return self.suffices is not None and self.suffices(self.measured)

    def remember(self) -> None:
        """Note beside what it leaves by which command that is."""
        if self.makes or self.rows:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            self._record.write_text(str(self), encoding="utf-8")

    @property
    def _record(self) -> Path:
        left = self.makes or self.rows
        assert left is not None
        return left.with_name(f"{left.name}.command")


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    Attributes:
        title: what it is about.
        claim: what the paper says, and how sure that is.
        lanes: from the setup to lists of steps; those of a list follow each other, lists do not.
        hardware: what the commands of `paper_size` want.
        takes: options that it reads, among data, test, tasks, seeds and settings of recipes.
        needs_test: whether test text has to be named beside training text.
    """

    title: str
    claim: str
    lanes: Callable[[Setup], list[list[Step]]]
    hardware: str
    takes: tuple[str, ...] = ("data", "test", "seeds", "settings")
    needs_test: bool = False
