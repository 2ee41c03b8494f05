"""Several schemes trained alike on the same text, measured at growing lengths, and reported."""

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

from pydantic import ValidationError

from bipe.evaluation.base import Run
from bipe.evaluation.length_curve import paired_differences, scores
from bipe.evaluation.losses import Curve, load_curves
from bipe.evaluation.passkey import make_trial
from bipe.evaluation.tasks import KEYS_OF, separators_of
from bipe.evaluation.windows import without
from bipe.plain import first_difference, read_object
from bipe.records import append_record, read_records
from bipe.report.folder import read_scores
from bipe.report.html import write_report
from bipe.segmentation import segmenter_of
from bipe.storage import LOCK, discard_drafts, is_draft, sole_writer, write_whole
from bipe.training.history import read_history
from bipe.training.initial_model import check_recipe, configure

from .corpus import FILE, NAMES, Corpus, load_corpus, make_corpus
from .description import describe
from .pairs import pairs_of
from .runs import LOSSES, OTHER_SCORES, Job, RunAll, recipe_of, workers
from .settings import MARKER, Comparison

Say = Callable[[str], None]

ADDABLE = ("arms", "schemes", "seeds")
"""Settings that a comparison may get more of."""

REPORT_EVERY = 60
"""Seconds between reports of an unfinished comparison: drawing one takes some, and holds up the next run."""

HEADLINES = {"perplexity": ".1f", "accuracy": ".1%"}
"""Metrics that a run is summed up by, and how they are written."""

TIE = 0.02
"""Trials whose perplexities differ by less than this share say nothing of the whole runs."""


def compare(settings: Comparison, out: str | Path, *, processes: int = 1, say: Say = print) -> Path:
    """Train and measure every scheme with every seed, and write the report.

    A folder that an earlier call with the same settings left unfinished is continued; schemes and seeds may
    be added to it, and those that it has are kept. The learning rate of each scheme is the one with the
    lowest perplexity on the validation text, among the same few, or a lower one within 2 % of it; every run
    of the comparison sees the same blocks in the same order and starts from the same values in the parameters
    that it shares with the others.

    Args:
        settings: what to compare.
        out: the folder for everything that comes out; `scores.jsonl`, `summary.md` and `report.html` among
            it.
        processes: runs at a time, each in a process of its own if there are several; they share the cores.
        say: gets a line for each step of the work.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: the folder holds another comparison, or another process is at work in it, a name is
            unknown, or a length does not fit in the test text.
        RuntimeError: a loss stopped being finite; the other runs are measured and in the report.
        KeyboardInterrupt: after Ctrl-C; the same call goes on where this one stopped.
    """
    out = Path(out)
    settings.check()
    _agreed(settings, out)  # before there is a folder
    out.mkdir(parents=True, exist_ok=True)
    with sole_writer(out):
        discard_drafts(out)
        settings = _agreed(settings, out)
        if not (out / MARKER).exists():
            write_whole(out / MARKER, settings.model_dump_json(indent=1))
        jobs = _jobs(settings, out)
        say("Reading the text ...")
        try:
            make_corpus(settings, out, processes)
            corpus = load_corpus(out)
            _check_text(settings, corpus)
        except ValueError:
            _release(out)
            raise
        with workers(processes) as run_all:
            rates = _pick_rates(settings, out, run_all, say)
            # Only now are added schemes known to work; before, they would stand in the way of those there.
            write_whole(out / MARKER, settings.model_dump_json(indent=1))
            describe(settings, corpus, rates, out)
            jobs = [replace(job, learning_rate=rates[job.name]) for job in jobs]
            reported = -REPORT_EVERY
            failed: dict[str, str] = {}
            for number, (job, outcome) in enumerate(run_all(jobs), start=1):
                named = f"{job.name}, seed {job.seed}"
                place = f"[{number}/{len(jobs)}] {named}"
                if outcome.failure:
                    failed[named] = outcome.failure
                    say(f"{place}: {outcome.failure}")
                    continue
                _record_scores(settings, job, outcome.parameters)
                if time.monotonic() >= reported + REPORT_EVERY:
                    _report_so_far(out, say)
                    reported = time.monotonic()
                say(f"{place}: {_headline(out, job)}")
        if len(failed) < len(jobs):
            _record_differences(settings, out)
            write_report(out)
        if failed:
            reasons = " ".join(f"{named}: {reason}" for named, reason in failed.items())
            raise RuntimeError(f"{len(failed)} of {len(jobs)} runs have no result. {reasons}")
    return out / "report.html"


def _report_so_far(out: Path, say: Say) -> None:
    """A report of what there is; one that cannot be written holds up no run."""
    try:
        write_report(out)
    except ValueError as error:
        say(f"No report yet: {error}")


def _jobs(settings: Comparison, out: Path) -> list[Job]:
    """The runs, all names of a seed before the next seed; their rates are the first to be tried."""
    rate, steps = settings.learning_rates[0], settings.training.steps
    return [
        Job(out, f"runs/{name}-{seed}", name, seed, rate, steps, measure=True, settings=settings)
        for seed, name in product(range(settings.seeds), settings.names)
    ]


def _agreed(settings: Comparison, out: Path) -> Comparison:
    """The settings with what a comparison in this folder has already; nothing is written.

    Schemes and seeds may be added to a comparison; all else decides what comes out.

    Raises:
        ValueError: the folder is another comparison's, or none's, or a name or size is wrong.
    """
    settings = _with_those_there(settings, out)
    for job in _jobs(settings, out)[: len(settings.names)]:  # seeds change no recipe's sizes
        check_recipe(recipe_of(job))
    there = _settings_there(out)
    if there is None and out.exists():
        if not out.is_dir() or not all(path.name == LOCK or is_draft(path, MARKER) for path in out.iterdir()):
            raise ValueError(
                f"{out} exists and is no folder of a comparison. Choose an empty or a new one with --out."
            )
    elif there is not None:
        here = settings.model_dump(mode="json")
        grown = {name: here[name] for name in ADDABLE}
        if difference := first_difference(there.model_dump(mode="json") | grown, here):
            raise ValueError(
                f"{out} holds another comparison: {difference}. Choose another folder with --out."
            )
    return settings


def _settings_there(out: Path) -> Comparison | None:
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
    """The settings with the schemes, arms and seeds that a comparison in this folder has already.

    Raises:
        ValueError: an arm of the same name is another one there.
    """
    there = _settings_there(out)
    if there is None:
        return settings
    for name in there.arms.keys() & settings.arms.keys():
        if there.arms[name] != settings.arms[name]:
            raise ValueError(
                f"{out} holds another arm {name!r}. Give this one another name, or choose another folder "
                "with --out."
            )
    schemes = list(dict.fromkeys([*there.schemes, *settings.schemes]))
    seeds, arms = max(there.seeds, settings.seeds), {**there.arms, **settings.arms}
    return settings.model_copy(update={"schemes": schemes, "arms": arms, "seeds": seeds})


def _release(out: Path) -> None:
    """Give up the claim on a folder in which nothing was trained yet: the mended command can have it."""
    if (out / "sweep").exists() or (out / "runs").exists():
        return
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    for name in (FILE, NAMES, MARKER, LOCK):
        (out / name).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def _check_text(settings: Comparison, corpus: Corpus) -> None:
    """Refuse, before anything is trained, text or settings that a run or its report would stumble over."""
    length = settings.data.block_length
    corpus.material.blocks(length)
    corpus.validation_blocks(length, settings.evaluation.validation_blocks)
    segmenter_of(corpus.tokenizer, settings.rule)  # the report counts segments in any case
    for job in _jobs(settings, Path())[: len(settings.names)]:  # seeds change no config
        configure(recipe_of(job), corpus.material)
    if not corpus.test:
        return
    test = corpus.test
    if "without_separators" in settings.evaluation.protocols:
        test = without(test, separators_of(corpus.tokenizer))
    longest = max(len(document) for document in test)
    if settings.lengths[-1] > longest:
        raise ValueError(
            f"The longest length, {settings.lengths[-1]} tokens, does not fit in the test text, whose "
            f"longest document has {longest}. Ask for shorter --lengths or give longer --test documents."
        )
    text = max(corpus.test, key=len)[: settings.lengths[0]]  # of one that is long enough to be used
    for task in KEYS_OF.keys() & set(settings.tasks):
        for seed in range(20):  # some names and numbers take more tokens than others
            make_trial(text, corpus.tokenizer, KEYS_OF[task], random.Random(seed))


def _pick_rates(settings: Comparison, out: Path, run_all: RunAll, say: Say) -> dict[str, float]:
    """The learning rate of each scheme: the lowest of those with about the lowest validation perplexity."""
    if len(settings.learning_rates) == 1:
        return dict.fromkeys(settings.names, settings.learning_rates[0])
    steps = min(settings.sweep_steps, settings.training.steps)
    jobs = [
        Job(out, f"sweep/{name}-{rate!r}", name, 0, rate, steps, measure=False, settings=settings)
        for name, rate in product(settings.names, settings.learning_rates)
    ]
    found: dict[str, dict[float, float]] = {name: {} for name in settings.names}
    for number, (job, _) in enumerate(run_all(jobs), start=1):
        place = f"[rate {number}/{len(jobs)}] {job.name} at {job.learning_rate:g}"
        perplexity = _validation_perplexity(job)
        if perplexity is None:
            say(f"{place}: diverged")
        else:
            found[job.name][job.learning_rate] = perplexity
            say(f"{place}: validation perplexity {perplexity:.1f}")
    for scheme, by_rate in found.items():
        if not by_rate:
            raise RuntimeError(
                f"{scheme} diverged at every learning rate tried: give lower --learning_rates and another "
                "--out."
            )
    (out / "sweep.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return {scheme: _best_rate(by_rate) for scheme, by_rate in found.items()}


def _best_rate(by_rate: dict[float, float]) -> float:
    """The lowest rate within `TIE` of the best perplexity: high rates gain early and lose it later."""
    best = min(by_rate.values())
    return min(rate for rate, perplexity in by_rate.items() if perplexity <= best * (1 + TIE))


def _validation_perplexity(job: Job) -> float | None:
    """The perplexity after a job's last step, None where it diverged before."""
    rows = read_history(job.out / job.folder)
    last = [
        row["validation_perplexity"]
        for row in rows
        if "validation_perplexity" in row and row["step"] == job.steps
    ]
    return last[-1] if last else None


def _record_scores(settings: Comparison, job: Job, parameters: int) -> None:
    """Append the rows of a run that are not there yet."""
    path = job.out / "scores.jsonl"
    key = ("scheme", "seed", "protocol", "length", "metric")
    there = {tuple(row[name] for name in key) for row in read_scores(path)}
    rows = [
        row | {"scheme": job.name, "seed": job.seed, "steps": job.steps}
        for row in read_records(job.out / job.folder / OTHER_SCORES)
    ]
    if "length-curve" in settings.tasks:
        run, curves = Run(job.name, job.seed, job.steps), load_curves(job.out / job.folder / LOSSES)
        for protocol in settings.evaluation.protocols:
            rows += [score.to_dict() for score in scores(curves[protocol], run, protocol, parameters)]
    for row in rows:
        if tuple(row[name] for name in key) not in there:
            append_record(path, row)


def _headline(out: Path, job: Job) -> str:
    rows = [
        row
        for row in read_scores(out / "scores.jsonl")
        if (row["scheme"], row["seed"]) == (job.name, job.seed) and row["metric"] in HEADLINES
    ]
    first = min(rows, key=lambda row: list(HEADLINES).index(row["metric"]))
    metric, protocol = first["metric"], first["protocol"]
    found = ", ".join(
        f"{row['value']:{HEADLINES[metric]}} at {row['length']}"
        for row in rows
        if (row["metric"], row["protocol"]) == (metric, protocol)
    )
    return f"{metric} {found}"


def _record_differences(settings: Comparison, out: Path) -> None:
    """Compare the pairs of `pairs_of` on the same windows, where both have been measured."""
    if "length-curve" not in settings.tasks:
        return
    path = out / "differences.jsonl"
    path.unlink(missing_ok=True)
    for seed, (first, second) in product(range(settings.seeds), pairs_of(settings)):
        if not all((out / f"runs/{name}-{seed}" / LOSSES).exists() for name in (first, second)):
            continue
        one, two = (_curves(out, scheme, seed) for scheme in (first, second))
        for protocol in settings.evaluation.protocols:
            for row in paired_differences(one[protocol], two[protocol], settings.lengths[0]):
                append_record(
                    path, {"first": first, "second": second, "seed": seed, "protocol": protocol, **row}
                )


def _curves(out: Path, name: str, seed: int) -> dict[str, Curve]:
    return load_curves(out / f"runs/{name}-{seed}" / LOSSES)
