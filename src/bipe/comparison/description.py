"""What the report of a comparison says of its settings, its environment and its segments."""

import json
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bipe.plain import read_object
from bipe.segmentation import segmenter_of
from bipe.segmentation.statistics import fitting_lengths, mean_tokens_per_segment, segment_statistics
from bipe.training.environment import describe_environment
from bipe.training.material import Text

from .corpus import Corpus
from .pairs import pairs_of
from .settings import Comparison

FEW_DOCUMENTS = 20
"""Below that an interval over windows says little of documents that are not there."""

MOST_NAMED = 5
"""Test documents that the report names, the longest."""

BEGINNING = 256
"""Tokens by which a document of the test text is looked up in the training text."""


def describe(settings: Comparison, corpus: Corpus, rates: dict[str, float], out: Path) -> None:
    """Write `settings.json`, `environment.json` and, where there is test text, `segments.json`.

    Args:
        settings: of the comparison.
        corpus: what it trains and tests on.
        rates: the learning rate of each scheme or arm.
        out: the comparison's folder, where trials have left `sweep.json`.
    """
    environment = describe_environment()
    segmenter, length = segmenter_of(corpus.tokenizer, settings.rule), settings.data.block_length
    sweep = out / "sweep.json"
    tried = json.loads(sweep.read_text(encoding="utf-8")) if sweep.exists() else {}
    described = {
        "schemes": settings.names,
        "arms": {name: arm.model_dump(exclude_defaults=True) for name, arm in settings.arms.items()},
        "seeds": list(range(settings.seeds)),
        "train_length": settings.train_length,
        "lengths": settings.lengths,
        "tasks": settings.tasks,
        "steps": settings.training.steps,
        "batch_size": settings.training.batch_size,
        "protocols": settings.evaluation.protocols,
        "learning_rates": rates,
        "sweep_steps": min(settings.sweep_steps, settings.training.steps),
        "sweep": [
            {"scheme": name, "learning_rate": float(rate), "validation_perplexity": perplexity}
            for name, by_rate in tried.items()
            for rate, perplexity in by_rate.items()
        ],
        "data": _data(settings, corpus),
        "tokenizer": {"kind": _tokenizer_kind(settings), "vocab_size": len(corpus.tokenizer)},
        "rule": settings.rule,
        "tokens_per_segment": mean_tokens_per_segment(corpus.material.documents, segmenter, length),
        "model": settings.model.model_dump(exclude_none=True),
        "command": environment["command"],
        "notes": [*_notes(settings, corpus), *_other_makers(environment, out)],
    }
    (out / "settings.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    (out / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")
    if not corpus.test:
        return
    statistics = segment_statistics(corpus.test, segmenter, fitting_lengths(corpus.test, settings.lengths))
    segments = {
        "rule": settings.rule,
        "lengths": {str(length): found.to_dict() for length, found in statistics.items()},
    }
    (out / "segments.json").write_text(json.dumps(segments), encoding="utf-8")


def _tokenizer_kind(settings: Comparison) -> str:
    if settings.data.arithmetic is not None:
        return "the symbols of arithmetic"
    return settings.data.tokenizer or "byte-level BPE trained on the training text"


def _data(settings: Comparison, corpus: Corpus) -> dict[str, Any]:
    if not isinstance(text := corpus.material, Text):
        assert settings.data.arithmetic is not None, "there are no other kinds"
        return {"arithmetic": settings.data.arithmetic.model_dump(exclude_none=True)}
    parts = {"train": text.documents, "validation": text.validation, "test": corpus.test}
    return {
        "train": settings.data.train,
        "test": settings.test or ["held out of the training text"],
        **{f"{part}_tokens": sum(map(len, documents)) for part, documents in parts.items()},
        **{f"{part}_documents": len(parts[part]) for part in ("train", "test")},
        "longest_test_documents": [
            {"name": name, "tokens": tokens}
            for tokens, name in sorted(
                zip(map(len, corpus.test), corpus.test_names, strict=False), reverse=True
            )
        ][:MOST_NAMED],
    }


def _other_makers(environment: dict[str, Any], out: Path) -> list[str]:
    """What runs that are there already were made with, where that is not what is at work now."""
    notes = []
    for name in ("commit", "torch", "transformers", "device"):
        found = {read_object(path).get(name) for path in out.glob("runs/*/environment.json")}
        if others := sorted(map(str, found - {environment[name], None})):
            notes.append(f"Some runs were made with another {name}: {', '.join(others)}.")
    return notes


def _notes(settings: Comparison, corpus: Corpus) -> list[str]:
    notes = []
    for name in settings.names:
        heads = settings.model_of(name).num_attention_heads
        if settings.arm(name).scheme == "bipe-alibi" and settings.model_of(name).inter is None and heads < 8:
            notes.append(f"{name} has scale 96 on {heads} heads; the paper's slopes need at least 8 heads.")
    long_enough = sum(len(document) >= settings.lengths[-1] for document in corpus.test)
    if 0 < long_enough < FEW_DOCUMENTS:
        notes.append(
            f"All windows with {settings.lengths[-1]:,} tokens come from {long_enough} test "
            f"document{'' if long_enough == 1 else 's'}: the intervals are of such text, not of other texts."
        )
    if isinstance(corpus.material, Text) and (known := _known(corpus.test, corpus.material.documents)):
        notes.append(f"{known} of {len(corpus.test)} test documents are in the training text too.")
    chosen, every = len(pairs_of(settings)), comb(len(settings.names), 2)
    if "length-curve" in settings.tasks and chosen < every:
        notes.append(
            f"Paired differences are those of {chosen} of {every} pairs: each arm with the scheme that it "
            "changes, and schemes on tokens with those on segments that have the same encoding between them."
        )
    return notes


def _known(test: Sequence[Tensor], train: Sequence[Tensor]) -> int:
    """How many test documents go on as a training document does, whose end may be held out for validation."""
    by_beginning: dict[tuple[int, ...], list[Tensor]] = {}
    for document in train:
        by_beginning.setdefault(tuple(document[:BEGINNING].tolist()), []).append(document)
    alike = ((document, by_beginning.get(tuple(document[:BEGINNING].tolist()), ())) for document in test)
    return sum(any(torch.equal(document[: len(one)], one) for one in some) for document, some in alike)
