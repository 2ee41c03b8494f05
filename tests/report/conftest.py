"""A run folder with invented numbers, as `bipe compare` leaves it: tested is how they are shown."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bipe.report.html import write_report

LENGTHS = (128, 256, 512, 1024)
SEEDS = (0, 1)
SCHEMES = ("rope", "sinusoidal", "bipe-rope")
GROWTH = {"rope": 0.12, "sinusoidal": 3.1, "bipe-rope": 0.02}
MakeRun = Callable[..., Path]


def score_rows(schemes: Sequence[str] = SCHEMES, seeds: Sequence[int] = SEEDS) -> list[dict[str, Any]]:
    """Perplexities that grow differently with length; those of an unknown scheme grow a little."""
    rows: list[dict[str, Any]] = []
    for number, scheme in enumerate(schemes):
        for seed in seeds:
            common = {"scheme": scheme, "seed": seed, "task": "length-curve", "tokens": 20480, "windows": 320}
            common |= {"tokens_per_segment": 14.25, "offsets_beyond_trained": 0.015, "steps": 700}
            common |= {"parameters": 3_000_000 + number}
            for protocol in ("same_targets", "blocks"):
                for n, length in enumerate(LENGTHS):
                    value = (60 + number + 0.5 * seed) * math.exp(GROWTH.get(scheme, 0.05) * n)
                    place = common | {"protocol": protocol, "length": length}
                    rows.append(place | _measured("perplexity", value))
                    rows.append(place | _measured("bits_per_byte", math.log2(value) / 3.4))
            context = {
                "protocol": "same_targets",
                "length": LENGTHS[-1],
                "value": 256,
                "low": 256,
                "high": 256,
            }
            rows.append(common | {"metric": "effective_context"} | context)
    return rows


def _measured(metric: str, value: float) -> dict[str, Any]:
    return {"metric": metric, "value": value, "low": 0.97 * value, "high": 1.03 * value}


def difference_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for seed in SEEDS:
        for length, value in zip(LENGTHS, (0.0, 0.1, 0.2, 0.3), strict=True):
            common = {"first": "rope", "second": "bipe-rope", "seed": seed, "protocol": "same_targets"}
            common |= {"length": length, "base_length": LENGTHS[0], "windows": 320}
            interval = {"value": value, "low": value - 0.05, "high": value + 0.05}
            rows.append(common | interval | {"metric": "log_perplexity"})
            if length > LENGTHS[0]:
                rows.append(common | interval | {"metric": "log_perplexity_growth"})
    return rows


def settings(schemes: Sequence[str] = SCHEMES) -> dict[str, Any]:
    return {
        "schemes": list(schemes),
        "seeds": list(SEEDS),
        "train_length": 128,
        "lengths": list(LENGTHS),
        "steps": 700,
        "protocols": ["same_targets", "blocks"],
        "learning_rates": dict.fromkeys(schemes, 0.002),
        "sweep": [
            {"scheme": scheme, "learning_rate": rate, "validation_perplexity": perplexity}
            for scheme in schemes
            for rate, perplexity in ((0.001, 140.25), (0.002, 121.5))
        ],
        "data": {
            "train": [f"books/{n}.txt" for n in range(12)],
            "test": ["books/test.txt"],
            "train_tokens": 3_412_345,
            "test_tokens": 121_345,
            "train_documents": 12,
            "test_documents": 1,
        },
        "tokenizer": {"kind": "byte-level BPE", "vocab_size": 4096},
        "rule": "paper",
        "model": {"hidden_size": 192, "num_hidden_layers": 4},
        "command": "bipe compare --data books --out run",
        "notes": ["The test text is one book."],
    }


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def history_rows(end: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(50, 701, 50):
        rows.append({"step": step, "loss": 5.0, "learning_rate": 0.002, "tokens_per_second": 9000.0})
        perplexity = end * (1 + 9 * math.exp(-step / 120))
        loss = {"validation_loss": math.log(perplexity), "validation_perplexity": perplexity}
        rows.append({"step": step} | loss)
    return rows


def segment_statistics() -> dict[str, Any]:
    counts = [0, *(round(1e4 * math.exp(-(((n - 12) / 6) ** 2))) for n in range(1, 40))]
    entry = {"mean": 12.5, "p50": 12, "p99": 26, "max": 39, "segments": sum(counts), "histogram": counts}
    return {"rule": "paper", "lengths": {str(length): entry for length in LENGTHS}}


def write_run(folder: Path, schemes: Sequence[str] = SCHEMES) -> Path:
    write_lines(folder / "scores.jsonl", score_rows(schemes))
    write_lines(folder / "differences.jsonl", difference_rows())
    for number, scheme in enumerate(schemes):
        for seed in SEEDS:
            write_lines(folder / "runs" / f"{scheme}-{seed}" / "history.jsonl", history_rows(60 + number))
    environment = {"python": "3.11.7", "torch": "2.13.0+cpu", "processor": "2 cores"}
    for name, content in (
        ("settings", settings(schemes)),
        ("environment", environment),
        ("segments", segment_statistics()),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    return lambda schemes: write_run(tmp_path / "run", schemes)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose report is written; not to be changed."""
    folder = write_run(tmp_path_factory.mktemp("reported") / "run")
    write_report(folder)
    return folder


@pytest.fixture
def scores() -> list[dict[str, Any]]:
    return score_rows()
