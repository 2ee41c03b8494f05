"""`bipe reproduce`: an experiment of the paper, run from one command."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bipe_cli.steps import Experiment, Step


def reproduce(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="The experiment; without one, all are listed.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Its folder.", show_default="runs/NAME")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Training text: files, folders, globs, hf:NAME or stdlib (the default)."),
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Test text. Default: held out of the training text.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Of scrolls: its tasks, by name (fetched from the hub) or as zip files. Of tasks: names of "
            "lm-evaluation-harness, such as ruler_vt, which needs no network."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each model.", show_default="3")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 1,
    paper_size: Annotated[
        bool,
        typer.Option(
            "--paper-size", help="Run nothing: print the commands at the paper's size, and what they want."
        ),
    ] = False,
) -> None:
    """Run an experiment of the paper at a size for a CPU, and write its page.

    Writes page.md beside what each command leaves. The same command goes on where it was broken off. Settings
    of its recipes follow as --name value, such as --training.steps 1000 (of scrolls, of the training on text
    and not of the fine-tuning).
    """
    from bipe.data.sources import file_sizes
    from bipe.registry import choose
    from bipe.storage import write_whole
    from bipe.training.shipped import recipes_folder
    from bipe_cli.experiments import EXPERIMENTS
    from bipe_cli.paper_size import PAPER_SIZE
    from bipe_cli.steps import Setup

    if name is None:
        for key, experiment in EXPERIMENTS.items():
            typer.echo(f"{key:14} {experiment.title}")
        return
    experiment = choose("experiment", EXPERIMENTS, name)
    if paper_size:
        if context.args:
            raise ValueError(f"--paper-size runs nothing and reads no settings; got {context.args[0]}.")
        commands = PAPER_SIZE[name]
        typer.echo(f"# {experiment.title}: {experiment.hardware}")
        if any("LLAMA" in command for command in commands):
            typer.echo("# LLAMA stands for the folder or the hub's name of LLaMA's tokenizer.")
        typer.echo("\n".join(commands))
        return
    if experiment.needs_test and not test:
        raise ValueError(f"{name} trains and tests models apart: name test text with --test.")
    for option, given in {
        "data": data,
        "test": test,
        "tasks": tasks,
        "seeds": seeds,
        "settings": context.args,
    }.items():
        if given and option not in experiment.takes:
            what = f"--{option}" if option != "settings" else given[0]
            raise ValueError(f"{name} does not read {what}: leave it out.")
    for source in (*(data or ()), *(test or ())):
        file_sizes(source)  # an error now, and not after training
    folder = out or Path("runs") / name
    setup = Setup(
        folder,
        recipes_folder(),
        data or ["stdlib"],
        test or [],
        workers,
        seeds or 3,
        tasks or [],
        context.args,
    )
    lanes = experiment.lanes(setup)
    record, is_begun = folder / "cpu_seconds", folder.is_dir() and any(folder.iterdir())
    folder.mkdir(parents=True, exist_ok=True)
    earlier, before = _seconds_of(record) if is_begun else 0.0, _seconds_of_children()
    seconds = None
    try:
        _run(lanes, workers)
    finally:
        if earlier is not None:
            seconds = earlier + _seconds_of_children() - before
            write_whole(record, f"{seconds:.1f}\n")
    _write_page(experiment, lanes, folder, seconds)
    typer.echo(folder / "page.md")


def _run(lanes: "Sequence[Sequence[Step]]", workers: int) -> None:
    """Do the steps, several lists of them at a time; what a step has left already is kept."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    failed = Event()
    with ThreadPoolExecutor(workers) as pool:
        followed = [pool.submit(_follow, lane, failed, workers) for lane in lanes]
        try:
            for done in as_completed(followed):
                done.result()
        except BaseException:
            failed.set()  # steps under way end, or are ended by the same Ctrl-C; no other is begun
            raise


def _seconds_of_children() -> float:
    """The processor time of all commands that ended, those of their own workers with them."""
    times = os.times()
    return times.children_user + times.children_system


def _seconds_of(record: Path) -> float | None:
    """What earlier runs of the command took, or None where that is not known."""
    try:
        return float(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _follow(lane: "Sequence[Step]", failed: Event, workers: int) -> None:
    for step in _taken(lane):
        if failed.is_set():
            return
        if not step.is_done:
            typer.echo(f"$ {step}", err=True)
            step.remember()  # first, for what it leaves is whole, and a record without it means nothing
            _do(step, workers)


def _taken(lane: "Sequence[Step]") -> "Iterator[Step]":
    """The steps of a list up to the one that makes the others needless."""
    for step in lane:
        yield step
        if step.is_last:
            return


def _do(step: "Step", workers: int) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "bipe_cli", *step.arguments]
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    if step.rows is None:
        status = subprocess.run(command, check=False, env=environment).returncode
    else:
        draft = step.rows.with_suffix(".draft")
        draft.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "w", encoding="utf-8") as file:
            status = subprocess.run(command, stdout=file, check=False, env=environment).returncode
        if status == 0:
            draft.replace(step.rows)
    if status in (-2, 130):
        raise KeyboardInterrupt
    if status:
        raise RuntimeError(f"This command failed with status {status}: {step}")


def _write_page(
    experiment: "Experiment", lanes: "Sequence[Sequence[Step]]", folder: Path, seconds: float | None
) -> None:
    from bipe.report.experiment import write_experiment

    steps = [step for lane in lanes for step in _taken(lane)]
    rows = [row for step in steps for row in step.measured]
    comparisons = [
        Path(step.arguments[step.arguments.index("--out") + 1])
        for step in steps
        if step.arguments[0] == "compare"
    ]
    write_experiment(
        folder / "page.md",
        experiment.title,
        experiment.claim,
        comparisons,
        rows,
        [str(step) for step in steps],
        seconds,
    )
