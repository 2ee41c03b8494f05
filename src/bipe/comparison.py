"""Several schemes trained alike on the same text, measured at growing lengths, and reported."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Subset
from transformers import PreTrainedTokenizerBase

from bipe.data import (
    PackedBlocks,
    encode,
    hold_out_tails,
    load_documents,
    load_tokenizer,
    pack,
    split_documents,
    token_bytes,
    train_tokenizer,
)
from bipe.evaluation.base import Run
from bipe.evaluation.length_curve import (
    PROTOCOLS,
    Curve,
    load_curves,
    paired_differences,
    save_curves,
    scores,
    window_losses,
)
from bipe.models import SCHEMES, BipeConfig
from bipe.registry import choose
from bipe.report import append_record, read_records, write_report
from bipe.segmentation import TokenSet
from bipe.segmentation.statistics import fitting_lengths, mean_tokens_per_segment, segment_statistics
from bipe.training.environment import describe_environment
from bipe.training.recipe import DataSettings, ModelSettings, Settings, TrainingSettings
from bipe.training.run_folder import first_difference
from bipe.training.train import train_model

Say = Callable[[str], None]


class EvaluationSettings(Settings):
    """How the trained models are measured."""

    lengths: list[Annotated[int, Field(ge=2)]] | None = None
    """Context lengths in tokens; null for 1, 2, 4, 8 and 16 times the training length."""
    protocols: list[str] = Field(default=["same_targets", "blocks"], min_length=1)
    """How the test text is cut."""
    max_windows: int | None = Field(default=256, ge=1)
    """Windows at each length at most, spread evenly; null for all."""
    validation_blocks: int = Field(default=128, ge=1)
    """Blocks of validation text at most, spread evenly."""


class Comparison(Settings):
    """All that decides a comparison; its runs differ in scheme, seed and learning rate alone."""

    schemes: list[str] = Field(default=["rope", "alibi", "bipe-rope", "bipe-alibi"], min_length=1)
    """Keys of `bipe.SCHEMES`."""
    seeds: int = Field(default=1, ge=1, le=1000)
    """Runs of each scheme, with the seeds 0, 1, ..."""
    rule: str = "paper"
    """The rule by which tokens end a segment."""
    data: DataSettings = Field(default_factory=lambda: DataSettings(train=["stdlib"]))
    """The training text; its validation text picks the learning rate."""
    test: list[str] | None = None
    """Where the test text comes from; null holds out whole documents of the training text, or the end of a
    single one."""
    model: ModelSettings = Field(default_factory=ModelSettings)
    """The size of the models."""
    training: TrainingSettings = Field(default_factory=lambda: TrainingSettings(steps=400))
    """The optimisation; its learning rate is replaced by each scheme's best."""
    learning_rates: list[Annotated[float, Field(gt=0, le=10)]] = Field(default=[1e-3, 3e-3], min_length=1)
    """Rates that are tried with each scheme; with one there is nothing to try."""
    sweep_steps: int = Field(default=100, ge=1)
    """Steps of each trial, on seed 0 with a schedule of its own."""
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)

    @property
    def lengths(self) -> list[int]:
        """The context lengths to test at, ascending."""
        chosen = self.evaluation.lengths or [factor * self.data.train_length for factor in (1, 2, 4, 8, 16)]
        return sorted(set(chosen))

    def check(self) -> None:
        """Check the names.

        Raises:
            ValueError: a scheme or protocol is unknown; the message lists the choices.
        """
        for scheme in self.schemes:
            choose("scheme", SCHEMES, scheme)
        for protocol in self.evaluation.protocols:
            choose("protocol", PROTOCOLS, protocol)
        if len(set(self.schemes)) < len(self.schemes):
            raise ValueError(f"Each scheme is compared once; got {', '.join(self.schemes)}.")


@dataclass(frozen=True)
class Corpus:
    """The text of a comparison as tokens.

    Attributes:
        train: documents, each `(n,)` int64.
        validation: the held-out ends of the training documents.
        test: documents.
        tokenizer: what cut them.
        token_bytes: `(V,)` int64, UTF-8 bytes of each token.
        tokens_per_segment: mean tokens in a segment of the training text, each capped at the training length.
    """

    train: list[Tensor]
    validation: list[Tensor]
    test: list[Tensor]
    tokenizer: PreTrainedTokenizerBase
    token_bytes: Tensor
    tokens_per_segment: float


@dataclass(frozen=True)
class Job:
    """One training run of a comparison.

    Attributes:
        out: the comparison's folder.
        folder: the run's folder, relative to it.
        scheme: its scheme.
        seed: its seed.
        learning_rate: its learning rate.
        steps: its optimiser steps.
        measure: whether the length curves are measured afterwards.
    """

    out: Path
    folder: str
    scheme: str
    seed: int
    learning_rate: float
    steps: int
    measure: bool


def compare(settings: Comparison, out: str | Path, *, workers: int = 1, say: Say = print) -> Path:
    """Train and measure every scheme with every seed, and write the report.

    A folder that an earlier call with the same settings left unfinished is continued. The learning rate of
    each scheme is the one with the lowest perplexity on the validation text, among the same few; every run
    of the comparison sees the same blocks in the same order and starts from the same values in the
    parameters that it shares with the others.

    Args:
        settings: what to compare.
        out: the folder for everything that comes out; `scores.jsonl`, `summary.md` and `report.html` among
            it.
        workers: runs at a time, each in a process of its own if there are several; they share the cores.
        say: gets a line for each step of the work.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: the folder holds another comparison, a name is unknown, or a length does not fit in the
            test text.
        RuntimeError: a loss stopped being finite.
        KeyboardInterrupt: after Ctrl-C; the same call goes on where this one stopped.
    """
    settings.check()
    out = Path(out)
    _claim(settings, out)
    corpus = _corpus(settings, out, say)
    _check_lengths(settings, corpus)
    with _pool(workers) as run_all:
        rates = _pick_rates(settings, out, run_all, say)
        _describe(settings, corpus, rates, out)
        jobs = [
            Job(
                out,
                f"runs/{scheme}-{seed}",
                scheme,
                seed,
                rates[scheme],
                settings.training.steps,
                measure=True,
            )
            for seed, scheme in product(range(settings.seeds), settings.schemes)
        ]
        for number, (job, parameters) in enumerate(run_all(jobs), start=1):
            _record_scores(settings, job, parameters)
            write_report(out)
            say(f"[{number}/{len(jobs)}] {job.scheme}, seed {job.seed}: {_headline(out, job)}")
    _record_differences(settings, out)
    write_report(out)
    return out / "report.html"


def _claim(settings: Comparison, out: Path) -> None:
    """Make `out` the folder of this comparison, or find that it is.

    More seeds may be added to a comparison; all else decides what comes out.
    """
    here = settings.model_dump(mode="json", exclude={"seeds"})
    marker = out / "comparison.json"
    if marker.exists():
        if difference := first_difference(json.loads(marker.read_text(encoding="utf-8")), here):
            raise ValueError(
                f"{out} holds another comparison: {difference}. Choose another folder with --out."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} exists and is no folder of a comparison. Choose an empty or a new one with --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(here, indent=1), encoding="utf-8")


def _corpus(settings: Comparison, out: Path, say: Say) -> Corpus:
    """The text as tokens: made once, and read again from the folder."""
    done = out / "corpus.safetensors"
    if not done.exists():
        say("Reading and cutting the text ...")
        _make_corpus(settings, out)
    return _load_corpus(out, settings.rule, settings.data.train_length)


def _make_corpus(settings: Comparison, out: Path) -> None:
    data = settings.data
    train = load_documents(data.train, limit=data.max_documents)
    if settings.test is None:
        train, test = split_documents(train)
    else:
        test = load_documents(settings.test, limit=data.max_documents)
    if data.tokenizer is None:
        tokenizer = train_tokenizer((document.text for document in train), data.vocab_size)
    else:
        tokenizer = load_tokenizer(data.tokenizer)
    tokenizer.save_pretrained(out / "tokenizer")
    encoded = encode(train, tokenizer)
    if data.validation is None:
        encoded, validation = hold_out_tails(encoded)
    else:
        validation = encode(load_documents(data.validation, limit=data.max_documents), tokenizer)
    parts = {"train": encoded, "validation": validation, "test": encode(test, tokenizer)}
    tensors = {}
    for name, documents in parts.items():
        tensors[name] = torch.cat(documents).int()
        tensors[f"{name}_lengths"] = torch.tensor([len(document) for document in documents])
    # Renamed into place, so that a broken-off call leaves no half of it.
    save_file(tensors, str(out / "corpus.draft"))
    os.replace(out / "corpus.draft", out / "corpus.safetensors")


@lru_cache(maxsize=1)
def _load_corpus(out: Path, rule: str, train_length: int) -> Corpus:
    tensors = load_file(str(out / "corpus.safetensors"))
    parts = {
        name: list(tensors[name].long().split(tensors[f"{name}_lengths"].tolist()))
        for name in ("train", "validation", "test")
    }
    tokenizer = load_tokenizer(str(out / "tokenizer"))
    segmenter = TokenSet.from_tokenizer(tokenizer, rule=rule)
    mean = mean_tokens_per_segment(parts["train"], segmenter, cap=train_length)
    return Corpus(**parts, tokenizer=tokenizer, token_bytes=token_bytes(tokenizer), tokens_per_segment=mean)


def _check_lengths(settings: Comparison, corpus: Corpus) -> None:
    longest = max(len(document) for document in corpus.test)
    if settings.lengths[-1] > longest:
        raise ValueError(
            f"The longest length, {settings.lengths[-1]} tokens, does not fit in the test text, whose "
            f"longest document has {longest}. Ask for shorter --lengths or give longer --test documents."
        )


@contextmanager
def _pool(workers: int) -> Iterator[Callable[[Sequence[Job]], Iterator[tuple[Job, int]]]]:
    """A function that does jobs and yields each with its result, here or in `workers` processes."""
    if workers <= 1:
        yield lambda jobs: ((job, _do(job)) for job in jobs)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        yield lambda jobs: zip(jobs, pool.map(_do, jobs), strict=True)


def _do(job: Job) -> int:
    """Train, and measure if asked to; return the number of parameters."""
    settings = Comparison.model_validate(
        json.loads((job.out / "comparison.json").read_text(encoding="utf-8")) | {"seeds": 1}
    )
    corpus = _load_corpus(job.out, settings.rule, settings.data.train_length)
    config = _config(settings, corpus, job.scheme)
    eos, length = cast("int | None", corpus.tokenizer.eos_token_id), settings.data.train_length
    trained = train_model(
        config,
        pack(corpus.train, length, eos),
        _spread(pack(corpus.validation, length, eos), settings.evaluation.validation_blocks),
        settings.training.model_copy(
            update={
                "learning_rate": job.learning_rate,
                "steps": job.steps,
                "warmup_steps": min(settings.training.warmup_steps, job.steps // 5),
            }
        ),
        job.out / job.folder,
        seed=job.seed,
    )
    losses = job.out / job.folder / "losses.safetensors"
    if job.measure and not losses.exists():
        curves = {
            protocol: window_losses(
                trained.model,
                corpus.test,
                settings.lengths,
                protocol,
                token_bytes=corpus.token_bytes,
                max_windows=settings.evaluation.max_windows,
            )
            for protocol in settings.evaluation.protocols
        }
        draft = losses.with_suffix(".draft")
        save_curves(draft, curves)
        os.replace(draft, losses)
    return trained.model.num_parameters()


def _spread(blocks: PackedBlocks, most: int) -> Subset[Any]:
    """At most so many blocks, spread evenly."""
    count = min(most, len(blocks))
    return Subset(blocks, [index * len(blocks) // count for index in range(count)])


def _config(settings: Comparison, corpus: Corpus, scheme: str) -> BipeConfig:
    model = settings.model.model_dump(exclude={"max_offset"}, exclude_none=True)
    length = settings.data.train_length
    return BipeConfig.from_scheme(
        scheme,
        corpus.tokenizer,
        rule=settings.rule,
        max_offset=settings.model.max_offset or length,
        tokens_per_segment=corpus.tokens_per_segment,
        max_position_embeddings=length,
        **model,
    )


def _pick_rates(
    settings: Comparison, out: Path, run_all: Callable[[Sequence[Job]], Iterator[tuple[Job, int]]], say: Say
) -> dict[str, float]:
    """The learning rate of each scheme with the lowest validation perplexity."""
    if len(settings.learning_rates) == 1:
        return dict.fromkeys(settings.schemes, settings.learning_rates[0])
    jobs = [
        Job(out, f"sweep/{scheme}-{rate:g}", scheme, 0, rate, settings.sweep_steps, measure=False)
        for scheme, rate in product(settings.schemes, settings.learning_rates)
    ]
    found: dict[str, dict[float, float]] = {scheme: {} for scheme in settings.schemes}
    for number, (job, _) in enumerate(run_all(jobs), start=1):
        perplexity = _validation_perplexity(job)
        found[job.scheme][job.learning_rate] = perplexity
        place = f"[rate {number}/{len(jobs)}] {job.scheme} at {job.learning_rate:g}"
        say(f"{place}: validation perplexity {perplexity:.1f}")
    (out / "sweep.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return {scheme: min(by_rate, key=lambda rate: by_rate[rate]) for scheme, by_rate in found.items()}


def _validation_perplexity(job: Job) -> float:
    rows = read_records(job.out / job.folder / "history.jsonl")
    return [row["validation_perplexity"] for row in rows if "validation_perplexity" in row][-1]


def _record_scores(settings: Comparison, job: Job, parameters: int) -> None:
    """Append the rows of a run that are not there yet."""
    path = job.out / "scores.jsonl"
    key = ("scheme", "seed", "protocol", "length", "metric")
    there = {tuple(row[name] for name in key) for row in read_records(path)}
    curves = load_curves(job.out / job.folder / "losses.safetensors")
    for protocol in settings.evaluation.protocols:
        for score in scores(curves[protocol], Run(job.scheme, job.seed, job.steps), protocol, parameters):
            row = score.to_dict()
            if tuple(row[name] for name in key) not in there:
                append_record(path, row)


def _headline(out: Path, job: Job) -> str:
    rows = [
        row
        for row in read_records(out / "scores.jsonl")
        if (row["scheme"], row["seed"], row["metric"]) == (job.scheme, job.seed, "perplexity")
    ]
    protocol = rows[0]["protocol"]
    found = ", ".join(f"{row['value']:.1f} at {row['length']}" for row in rows if row["protocol"] == protocol)
    return f"perplexity {found}"


def _record_differences(settings: Comparison, out: Path) -> None:
    """Compare each scheme on tokens with each on segments, on the same windows."""
    on_segments = [scheme for scheme in settings.schemes if SCHEMES[scheme].segmenter == "token_set"]
    pairs = [(one, two) for one in settings.schemes if one not in on_segments for two in on_segments]
    path = out / "differences.jsonl"
    path.unlink(missing_ok=True)
    for seed, (first, second) in product(range(settings.seeds), pairs):
        one, two = (_curves(out, scheme, seed) for scheme in (first, second))
        for protocol in settings.evaluation.protocols:
            for row in paired_differences(one[protocol], two[protocol], settings.lengths[0]):
                append_record(
                    path, {"first": first, "second": second, "seed": seed, "protocol": protocol, **row}
                )


def _curves(out: Path, scheme: str, seed: int) -> dict[str, Curve]:
    return load_curves(out / f"runs/{scheme}-{seed}/losses.safetensors")


def _describe(settings: Comparison, corpus: Corpus, rates: dict[str, float], out: Path) -> None:
    """Write what the report says of settings, environment and segments."""
    environment = describe_environment()
    sweep = out / "sweep.json"
    tried = json.loads(sweep.read_text(encoding="utf-8")) if sweep.exists() else {}
    described = {
        "schemes": settings.schemes,
        "seeds": list(range(settings.seeds)),
        "train_length": settings.data.train_length,
        "lengths": settings.lengths,
        "steps": settings.training.steps,
        "batch_size": settings.training.batch_size,
        "protocols": settings.evaluation.protocols,
        "learning_rates": rates,
        "sweep_steps": settings.sweep_steps,
        "sweep": [
            {"scheme": scheme, "learning_rate": float(rate), "validation_perplexity": perplexity}
            for scheme, by_rate in tried.items()
            for rate, perplexity in by_rate.items()
        ],
        "data": {
            "train": settings.data.train,
            "test": settings.test or ["held out of the training text"],
            **{
                f"{part}_tokens": sum(map(len, getattr(corpus, part)))
                for part in ("train", "validation", "test")
            },
            **{f"{part}_documents": len(getattr(corpus, part)) for part in ("train", "test")},
        },
        "tokenizer": {
            "kind": settings.data.tokenizer or "byte-level BPE trained on the training text",
            "vocab_size": len(corpus.tokenizer),
        },
        "rule": settings.rule,
        "tokens_per_segment": corpus.tokens_per_segment,
        "model": settings.model.model_dump(exclude_none=True),
        "command": environment["command"],
        "notes": _notes(settings, corpus),
    }
    (out / "settings.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    (out / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")
    segmenter = TokenSet.from_tokenizer(corpus.tokenizer, rule=settings.rule)
    statistics = segment_statistics(corpus.test, segmenter, fitting_lengths(corpus.test, settings.lengths))
    segments = {
        "rule": settings.rule,
        "lengths": {str(length): found.to_dict() for length, found in statistics.items()},
    }
    (out / "segments.json").write_text(json.dumps(segments), encoding="utf-8")


def _notes(settings: Comparison, corpus: Corpus) -> list[str]:
    notes = []
    heads = settings.model.num_attention_heads
    if "bipe-alibi" in settings.schemes and heads < 8:
        notes.append(f"bipe-alibi has scale 96 on {heads} heads; the paper's slopes need at least 8 heads.")
    long_enough = sum(len(document) >= settings.lengths[-1] for document in corpus.test)
    if long_enough == 1:
        notes.append("All windows come from one test document: the intervals say nothing about other texts.")
    return notes
