"""The learning rate of each scheme, from trials."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

from bipe.training.history import read_history

from .runs import Job, RunAll
from .settings import Comparison

Say = Callable[[str], None]

TIE = 0.02
"""Trials whose perplexities differ by less than this share say nothing of the whole runs."""


def pick_rates(settings: Comparison, out: Path, run_all: RunAll, say: Say) -> dict[str, float]:
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
    return {scheme: best_rate(by_rate) for scheme, by_rate in found.items()}


def best_rate(by_rate: dict[float, float]) -> float:
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
