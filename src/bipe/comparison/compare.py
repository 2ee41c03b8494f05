"""Several schemes trained alike on the same text, measured at growing lengths, and reported."""

import time
from dataclasses import replace
from itertools import product
from pathlib import Path

from bipe.evaluation.length_curve import paired_differences
from bipe.evaluation.passkey import draw_of, make_trial
from bipe.evaluation.tasks import KEYS_OF, TRIALS, separators_of
from bipe.evaluation.windows import without
from bipe.plain import first_difference
from bipe.records import Record, write_records
from bipe.report.folder import DIFFERENCES, SCORES, read_scores
from bipe.report.html import PAGE, SUMMARY, write_report
from bipe.segmentation import segmenter_of
from bipe.storage import discard_drafts, sole_writer, write_whole
from bipe.training.initial_model import configure

from .corpus import Corpus, load_corpus, make_corpus
from .description import describe
from .folder import agreed, release, settings_there
from .pairs import pairs_of
from .rates import Say, pick_rates
from .runs import Job, curves_of, jobs_of, recipe_of, workers
from .settings import MARKER, Comparison

REPORT_EVERY = 60
"""Seconds between reports of an unfinished comparison: drawing one takes some, and holds up the next run."""

HEADLINES = {"perplexity": ".1f", "accuracy": ".1%"}
"""Metrics that a run is summed up by, and how they are written."""


def compare(settings: Comparison, out: str | Path, *, processes: int = 1, say: Say = print) -> Path:
    """Train and measure every scheme with every seed, and write the report.

    A folder that an earlier call with the same settings left unfinished is continued. Schemes, arms and seeds
    are added to those that it has. Lengths, protocols and tasks may be others than there: what is trained
    already is measured by them and not trained again; what is not named stays as it is there.

    The learning rate of each scheme is the one with the lowest perplexity on the validation text, among the
    same few, or a lower one within 2 % of it. Every run of the comparison sees the same blocks in the same
    order and starts from the same values in the parameters that it shares with the others.

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
        RuntimeError: a loss is not finite; all else is measured and in the report.
        KeyboardInterrupt: after Ctrl-C; the same call goes on where this one stopped.
    """
    out = Path(out)
    agreed(settings, out)  # before there is a folder
    out.mkdir(parents=True, exist_ok=True)
    with sole_writer(out):
        discard_drafts(out)
        settings = agreed(settings, out)
        if not (out / MARKER).exists():
            write_whole(out / MARKER, settings.model_dump_json(indent=1))
        jobs = jobs_of(settings, out)
        say("Reading the text ...")
        try:
            make_corpus(settings, out, processes)
            corpus = load_corpus(out)
            _check_text(settings, corpus)
        except ValueError:
            release(out)
            raise
        with workers(processes) as run_all:
            rates = pick_rates(settings, out, run_all, say)
            # Only now are added schemes known to work; before, they would stand in the way of those there.
            _measured_otherwise(settings, out, say)
            write_whole(out / MARKER, settings.model_dump_json(indent=1))
            describe(settings, corpus, rates, out)
            jobs = [replace(job, learning_rate=rates[job.name]) for job in jobs]
            reported = -REPORT_EVERY
            failed: dict[str, str] = {}
            for number, (job, failure) in enumerate(run_all(jobs), start=1):
                named = f"{job.name}, seed {job.seed}"
                place = f"[{number}/{len(jobs)}] {named}"
                _record_scores(job)
                if failure:
                    failed[named] = failure
                elif time.monotonic() >= reported + REPORT_EVERY:
                    _report_so_far(out, say)
                    reported = time.monotonic()
                say(f"{place}: {failure or _headline(out, job)}")
        if read_scores(out / SCORES):
            _record_differences(settings, out)
            write_report(out)
        if failed:
            reasons = " ".join(f"{named}: {reason}" for named, reason in failed.items())
            raise RuntimeError(f"{len(failed)} of {len(jobs)} runs are not measured in full. {reasons}")
    return out / PAGE


def _measured_otherwise(settings: Comparison, out: Path, say: Say) -> None:
    """Where the models of this folder were measured otherwise, forget what came out; the runs have it."""
    there = settings_there(out)
    assert there is not None, "claimed before"
    before, now = (
        {"lengths": one.lengths, "protocols": one.curve_protocols, "tasks": one.tasks}
        for one in (there, settings)
    )
    difference = first_difference(before, now)
    if difference and (out / "runs").exists():
        say(f"Scores are collected anew, since evaluation.{difference}.")
        for name in (SCORES, DIFFERENCES, PAGE, SUMMARY):
            (out / name).unlink(missing_ok=True)


def _report_so_far(out: Path, say: Say) -> None:
    """A report of what there is; one that cannot be written holds up no run."""
    try:
        write_report(out)
    except ValueError as error:
        say(f"No report yet: {error}")


def _check_text(settings: Comparison, corpus: Corpus) -> None:
    """Refuse, before anything is trained, text or settings that a run or its report would stumble over."""
    length = settings.data.block_length
    corpus.material.blocks(length)
    corpus.validation_blocks(length, settings.evaluation.validation_blocks)
    segmenter_of(corpus.tokenizer, settings.rule)  # the report counts segments in any case
    for job in jobs_of(settings, Path())[: len(settings.names)]:  # seeds change no config
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
        keys = KEYS_OF[task]
        for number in range(settings.evaluation.problems or TRIALS):  # some take more tokens than others
            make_trial(text, corpus.tokenizer, keys, draw_of(keys, number))


def _record_scores(job: Job) -> None:
    """Put what was measured of a run in place of what there is of it."""
    path = job.out / SCORES
    there = read_scores(path)
    mine = [row for row in there if (row["scheme"], row["seed"]) == (job.name, job.seed)]
    rows = [row for row in read_scores(job.out / job.folder / SCORES) if row["task"] in job.settings.tasks]
    if rows != mine:
        others = [row for row in there if row not in mine]
        write_records(path, others + rows)


def _headline(out: Path, job: Job) -> str:
    rows = [
        row
        for row in read_scores(out / SCORES)
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
    rows: list[Record] = []
    for seed, (first, second) in product(range(settings.seeds), pairs_of(settings)):
        one, two = (curves_of(out / f"runs/{name}-{seed}", settings.lengths) for name in (first, second))
        for protocol in (name for name in settings.curve_protocols if name in one and name in two):
            pair = {"first": first, "second": second, "seed": seed, "protocol": protocol}
            found = paired_differences(one[protocol], two[protocol], settings.lengths[0])
            rows += [pair | row for row in found]
    write_records(out / DIFFERENCES, rows)
