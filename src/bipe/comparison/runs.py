"""One run of a comparison: train, then measure."""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from bipe.evaluation.arithmetic import answered_right
from bipe.evaluation.base import Run
from bipe.evaluation.length_curve import TASK as CURVE_TASK
from bipe.evaluation.length_curve import scores
from bipe.evaluation.losses import Curve, NotFinite, load_curves, save_curves, window_losses
from bipe.evaluation.tasks import TASKS, TaskOptions, separators_of
from bipe.models.checkpoint import Checkpoint
from bipe.records import write_records
from bipe.report.folder import LOSSES, SCORES, read_scores
from bipe.storage import discard_drafts
from bipe.training.history import Measure
from bipe.training.initial_model import configure
from bipe.training.material import Arithmetic
from bipe.training.recipe import Recipe, TrainingSettings
from bipe.training.train import train_model
from bipe.training.trainer import TrainingDiverged

from .corpus import Corpus, load_corpus
from .settings import Comparison


@dataclass(frozen=True)
class Job:
    """One training run of a comparison.

    Attributes:
        out: the comparison's folder.
        folder: the run's folder, relative to it.
        name: of its scheme or arm.
        seed: its seed.
        learning_rate: its learning rate.
        steps: its optimiser steps.
        measure: whether it is measured afterwards.
        settings: of the comparison that it belongs to; those in its folder may lack an arm that is new.
    """

    out: Path
    folder: str
    name: str
    seed: int
    learning_rate: float
    steps: int
    measure: bool
    settings: Comparison


RunAll = Callable[[Sequence[Job]], Iterator[tuple[Job, str]]]
"""Does jobs, and yields each, in order, with why it has no result; an empty text where all went well."""


def jobs_of(settings: Comparison, out: Path) -> list[Job]:
    """The runs, all names of a seed before the next seed; their rates are the first to be tried."""
    rate, steps = settings.learning_rates[0], settings.training.steps
    return [
        Job(out, f"runs/{name}-{seed}", name, seed, rate, steps, measure=True, settings=settings)
        for seed, name in product(range(settings.seeds), settings.names)
    ]


@contextmanager
def workers(count: int) -> Iterator[RunAll]:
    """A function that does jobs here, or in `count` processes that share the cores."""
    if count <= 1:
        yield lambda jobs: ((job, run(job)) for job in jobs)
        return
    threads = max(1, (os.cpu_count() or 1) // count)
    with ProcessPoolExecutor(count, get_context("spawn"), _prepare, (threads, _accelerators())) as pool:
        yield lambda jobs: _run_in(pool, count, jobs)


def _accelerators() -> list[str]:
    """The names of the accelerators that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(n) for n in range(torch.cuda.device_count())] if named is None else named.split(",")


def _prepare(threads: int, accelerators: Sequence[str]) -> None:
    """Set up a worker: its share of the cores, an accelerator of its own, and warnings in one line."""
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    torch.set_num_threads(threads)
    if len(accelerators) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = accelerator_of(_worker_number(), accelerators)
    warnings.formatwarning = lambda message, *_: f"bipe: warning: {message}\n"


def _end_with(parent: Any) -> None:
    """End this process as soon as the one that it works for has ended, however that came."""
    wait_for([parent.sentinel])
    os._exit(1)


def _worker_number() -> int:
    """Counted from 1 in the pool, over all its life."""
    return int(re.split("[-:]", current_process().name)[-1])


def accelerator_of(worker: int, accelerators: Sequence[str]) -> str:
    """The accelerator of a worker, which is counted from 1.

    >>> [accelerator_of(worker, ["0", "3"]) for worker in (1, 2, 3)]
    ['0', '3', '0']
    """
    return accelerators[(worker - 1) % len(accelerators)]


def _run_in(pool: ProcessPoolExecutor, count: int, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
    """Yield the jobs in order; none waits inside the pool, where Ctrl-C would not reach it."""
    futures: list[Future[str]] = []
    yielded = 0
    while yielded < len(jobs):
        while len(futures) < len(jobs) and sum(not future.done() for future in futures) < count:
            futures.append(pool.submit(run, jobs[len(futures)]))
        if futures[yielded].done():
            yield jobs[yielded], futures[yielded].result()
            yielded += 1
        else:
            wait([future for future in futures if not future.done()], return_when=FIRST_COMPLETED)


def run(job: Job) -> str:
    """Train, and measure if asked to. A model that diverges is told of and stops no other."""
    try:
        _train_and_measure(job)
    except (TrainingDiverged, NotFinite) as error:
        return str(error)
    return ""


def _train_and_measure(job: Job) -> None:
    settings = job.settings
    corpus, length = load_corpus(job.out), settings.data.block_length
    recipe = recipe_of(job)
    folder = job.out / job.folder
    trained = train_model(
        configure(recipe, corpus.material),
        corpus.material.blocks(length),
        corpus.validation_blocks(length, settings.evaluation.validation_blocks),
        recipe.training,
        folder,
        seed=job.seed,
        measure=_accuracy(corpus) if job.measure else None,
    )
    corpus.tokenizer.save_pretrained(folder)
    if job.measure:
        _measure(job, corpus, Checkpoint(folder, trained.model, corpus.tokenizer))


def _accuracy(corpus: Corpus) -> Measure | None:
    """What is measured of arithmetic while a model is trained: the share of problems answered right."""
    if not isinstance(corpus.material, Arithmetic):
        return None
    blocks = corpus.material.validation_blocks()
    return lambda model: {"validation_accuracy": float(answered_right(model, blocks).float().mean())}


def _measure(job: Job, corpus: Corpus, checkpoint: Checkpoint) -> None:
    """Leave all scores in the run's folder; what was measured at the same lengths is not measured again.

    Raises:
        NotFinite: a loss is not; the scores of other protocols and tasks are left all the same.
    """
    settings, folder, failures = job.settings, checkpoint.directory, list[NotFinite]()
    discard_drafts(folder)
    curves = curves_of(folder, settings.lengths)
    for protocol in settings.curve_protocols:
        if protocol in curves:
            continue
        try:
            curves[protocol] = window_losses(
                checkpoint.model,
                corpus.test,
                settings.lengths,
                protocol,
                token_bytes=corpus.token_bytes,
                max_windows=settings.evaluation.max_windows,
                separators=separators_of(corpus.tokenizer) if protocol == "without_separators" else (),
            )
        except NotFinite as error:
            failures.append(error)
        else:
            save_curves(folder / LOSSES, curves)
    run, parameters = Run(job.name, job.seed, job.steps), checkpoint.model.num_parameters()
    rows = [
        score.to_dict()
        for protocol in settings.curve_protocols
        if protocol in curves
        for score in scores(curves[protocol], run, protocol, parameters)
    ]
    rows += _answers(settings, corpus, checkpoint)
    named = {"scheme": job.name, "seed": job.seed, "steps": job.steps}
    write_records(folder / SCORES, (row | named for row in rows))
    if failures:
        raise failures[0]


def curves_of(folder: Path, lengths: Sequence[int]) -> dict[str, Curve]:
    """The curves in a run's folder by protocol, without those of other lengths, whose windows differ."""
    curves = load_curves(folder / LOSSES) if (folder / LOSSES).exists() else {}
    return {protocol: curve for protocol, curve in curves.items() if list(curve) == list(lengths)}


def _answers(settings: Comparison, corpus: Corpus, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """The rows of tasks beside length curves, those asked for first; none that are of other lengths."""
    rows: dict[str, list[dict[str, Any]]] = {task: [] for task in settings.tasks if task != CURVE_TASK}
    for row in read_scores(checkpoint.directory / SCORES):
        if row["task"] != CURVE_TASK:
            rows.setdefault(row["task"], []).append(row)
    rows = {
        task: some if {row["length"] for row in some} == {*settings.lengths} else []
        for task, some in rows.items()
    }
    options = TaskOptions(
        lengths=settings.lengths, max_windows=settings.evaluation.problems, documents=corpus.test
    )
    for task in settings.tasks:
        if task != CURVE_TASK and not rows[task]:
            rows[task] = [score.to_dict() for score in TASKS[task](checkpoint, options)]
    return [row for some in rows.values() for row in some]


def recipe_of(job: Job) -> Recipe:
    """The job as a recipe; a trial is the beginning of the run that it stands for.

    A schedule of its own would end a trial before rates differ: in `results/first_length_curves.md` two rates
    tie after 100 such steps, and after 500 have perplexities of 162 and 141.
    """
    settings = job.settings
    full = settings.training
    training = full.model_dump() | {
        "learning_rate": job.learning_rate,
        "steps": min(job.steps, full.steps),
        "warmup_steps": min(full.warmup_steps, full.steps // 5),
        "schedule_steps": full.schedule_steps if job.measure else full.schedule_steps or full.steps,
    }
    arm = settings.arm(job.name)
    return Recipe(
        scheme=arm.scheme,
        rule=arm.rule or settings.rule,
        seed=job.seed,
        data=settings.data,
        model=settings.model_of(job.name),
        training=TrainingSettings(**training),
    )
