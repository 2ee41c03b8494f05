"""A model trained on what a random two-level automaton reaches, and how often it is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bipe.evaluation.intervals import interval
from bipe.models.configuration import BipeConfig
from bipe.models.modeling import BipeForCausalLM
from bipe.theory.words import AutomatonWords, Reader, telling_binfa
from bipe.training.recipe import TrainingSettings
from bipe.training.train import train_model

TASK = "automaton"
MAX_OFFSET = 12
"""Tokens in a segment, at most."""
TRAINING_WORDS, VALIDATION_WORDS, TEST_WORDS = 50_000, 500, 1000
EVERY = 8
"""Segments that are told together."""
FEWEST = 5000
"""Symbols without which nothing is told of segments that far behind."""
HELD_OUT = 10**6
"""Seeds of words that are not trained on begin here."""


@dataclass(frozen=True)
class AutomatonRun:
    """One model and one automaton.

    Attributes:
        scheme: positional encoding.
        states: of each level of the automaton.
        width: hidden size; heads have 8 channels.
        seed: decides the automaton, the words and the model.
        layers: of the model.
        steps: of training, on 64 words each.
        learning_rates: each is tried, and the one with the most right answers on words held out is kept.
        length: symbols of a word that is trained on.
        longer: symbols of longer words to test on.
    """

    scheme: str
    states: int
    width: int
    seed: int = 0
    layers: int = 4
    steps: int = 2000
    learning_rates: Sequence[float] = (1e-3, 3e-3)
    length: int = 64
    longer: int = 256

    def __post_init__(self) -> None:
        for name in ("states", "width", "layers", "steps", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.width % 8:
            raise ValueError(f"width must be a multiple of 8, the channels of a head; got {self.width}.")
        if self.longer < self.length:
            raise ValueError(f"longer must be at least length, {self.length}; got {self.longer}.")
        if not self.learning_rates:
            raise ValueError("There must be a learning rate.")

    def config(self, reader: Reader) -> BipeConfig:
        """Of the model; its vocabulary has room for the symbols and for the classes that it tells."""
        return BipeConfig.from_scheme(
            self.scheme,
            end_token_ids=[len(reader.symbols) - 1],
            max_offset=self.length + 1 if self.scheme == "learned" else MAX_OFFSET,
            tokens_per_segment=(MAX_OFFSET + 1) / 2,
            vocab_size=max(len(reader.symbols), reader.classes),
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // 8,
            tie_word_embeddings=False,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )


def learn_automaton(run: AutomatonRun, out: Path) -> list[dict[str, Any]]:
    """Train a model to tell the states that are reached after each symbol, and measure how often it does.

    Args:
        run: what to train on what.
        out: folder; the same run goes on where it was broken off.

    Returns:
        Rows as `bipe.evaluation` has them, with the settings beside: the share of symbols after which the
        sets of outer and of inner states are right, in words as long as those trained on and in longer ones,
        and, with protocol `"from_segment"`, in the longer ones by the place of the segment, whose `length`
        is how many segments ended before it, at least.

    Raises:
        ValueError: the folder holds another run.
    """
    # Chosen on the longer words, at the end of which many automata have nothing to tell any more.
    reader = Reader(telling_binfa(run.seed, run.states, run.states, length=run.longer, max_offset=MAX_OFFSET))
    config = run.config(reader)

    def words(count: int, length: int, seed: int) -> AutomatonWords:
        return AutomatonWords(reader, MAX_OFFSET, count, length, seed)

    training = words(TRAINING_WORDS, run.length, run.seed)
    held_out = words(VALIDATION_WORDS, run.length, HELD_OUT + run.seed)
    tried: dict[float, tuple[float, BipeForCausalLM]] = {}
    for rate in run.learning_rates:
        settings = TrainingSettings(
            steps=run.steps,
            batch_size=64,
            learning_rate=rate,
            warmup_steps=run.steps // 20,
            weight_decay=0.01,
            checkpoint_every=max(1, run.steps // 4),
        )
        model = train_model(config, training, held_out, settings, out / f"rate-{rate:g}", seed=run.seed).model
        tried[rate] = (float(is_right(model, held_out).float().mean()), model)
    rate = max(tried, key=lambda rate: tried[rate][0])
    model = tried[rate][1]
    rows = []
    for length in dict.fromkeys((run.length, run.longer)):
        test = words(TEST_WORDS, length, 2 * HELD_OUT + run.seed)
        rows += _rows(run, reader, model, rate, test)
    return rows


@torch.no_grad()
def is_right(model: BipeForCausalLM, words: AutomatonWords, batch: int = 100) -> Tensor:
    """Whether a model is right after each symbol but the last, `(words, T)` bool."""
    found = []
    for start in range(0, len(words), batch):
        ids = torch.from_numpy(words.words[start : start + batch, :-1]).to(model.device)
        guessed = model(ids, use_cache=False).logits.argmax(dim=-1).cpu()
        found.append(guessed == torch.from_numpy(words.classes[start : start + batch, :-1]))
    return torch.cat(found)


def _rows(
    run: AutomatonRun, reader: Reader, model: BipeForCausalLM, rate: float, test: AutomatonWords
) -> list[dict[str, Any]]:
    right, classes = is_right(model, test).numpy(), test.classes[:, :-1]
    stop = len(reader.symbols) - 1
    ended = (test.words[:, :-1] == stop).cumsum(axis=1) - (test.words[:, :-1] == stop)
    shared = {
        "scheme": run.scheme,
        "seed": run.seed,
        "states": run.states,
        "classes": reader.classes,
        "most_frequent": float(np.bincount(classes.ravel()).max() / classes.size),
        "width": run.width,
        "layers": run.layers,
        "steps": run.steps,
        "learning_rate": rate,
        "parameters": model.num_parameters(),
        "task": TASK,
        "metric": "accuracy",
    }
    length = right.shape[1]
    chosen = {("words", length): np.ones_like(right)}
    if length == run.longer:
        for segments in range(0, int(ended.max()) + 1, EVERY):
            chosen["from_segment", segments] = (ended >= segments) & (ended < segments + EVERY)
    rows = []
    for (protocol, size), mask in chosen.items():
        counts = mask.sum(axis=1)
        if protocol != "words" and counts.sum() < FEWEST:
            continue
        value, low, high = interval(lambda hits, all_: hits / all_, (right & mask).sum(axis=1), counts)
        measured = {"protocol": protocol, "length": size, "value": value, "low": low, "high": high}
        rows.append({**shared, **measured, "tokens": int(counts.sum()), "windows": len(right)})
    return rows
