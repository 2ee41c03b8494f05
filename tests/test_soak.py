"""Training, evaluating and generating again and again in one process: no error, and nothing piles up.

Two rounds of a few schemes here; `make soak` takes an hour and ten thousand generations over all schemes.
BIPE_SOAK_MINUTES, BIPE_GENERATIONS and BIPE_SOAK_SEED choose; BIPE_SOAK_REPORT names a file for a line a cycle.
"""

import gc
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from bipe import SCHEMES, BipeConfig, length_curve
from bipe.data import encode, pack, train_tokenizer
from bipe.data.documents import Document
from bipe.models.bounded_cache import BoundedCache
from bipe.models.checkpoint import Checkpoint, load_checkpoint
from bipe.models.completion import complete
from bipe.training import TrainingSettings, train_model

MINUTES = float(os.environ.get("BIPE_SOAK_MINUTES", "0"))
GENERATIONS = int(os.environ.get("BIPE_GENERATIONS", "40"))
SEED = int(os.environ.get("BIPE_SOAK_SEED", "0"))
FEW = ("rope", "bipe-rope", "bipe-alibi", "bipe-cope", "bipe3-alibi")
PROMPTS = 8
"""Generations of a cycle."""
GROWTH = 10 * 2**20
"""Bytes that the process may have grown from the second quarter of the cycles to the last."""
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "mat",
    "sat",
    "lay",
    "saw",
    "it",
    "there",
    "on",
    "beside",
    "and",
    "when",
    "never",
    "1",
    "27",
    "Mr.",
    "e.g.",
    "☃",
    "😀",
]


def some_text(draw: random.Random, words: int) -> str:
    return "".join(
        draw.choice(WORDS) + draw.choice((" ", " ", " ", " ", ". ", ".\n", "\n\n", "? "))
        for _ in range(words)
    )


def any_character(draw: random.Random) -> str:
    return chr(draw.choice((draw.randrange(0x80), draw.randrange(0xD800), draw.randrange(0xE000, 0x110000))))


def any_prompt(draw: random.Random, eos: str) -> str:
    """Text, noise, separators alone, one character, an end of text in the middle, a text longer than trained."""
    return draw.choice(
        (
            lambda: some_text(draw, draw.randint(1, 30)),
            lambda: "".join(any_character(draw) for _ in range(draw.randint(1, 60))),
            lambda: draw.randbytes(draw.randint(1, 60)).decode("latin-1"),
            lambda: draw.choice((".", "\n", " ", "\r\n", ". ", "\0")) * draw.randint(1, 40),
            lambda: any_character(draw),
            lambda: some_text(draw, 5) + eos * draw.randint(1, 3) + some_text(draw, 5),
            lambda: some_text(draw, 150),
        )
    )()


def check_generation(checkpoint: Checkpoint, draw: random.Random) -> int:
    """Continue a random prompt in a random way; how many tokens the prompt has."""
    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    prompt = any_prompt(draw, tokenizer.eos_token)
    try:
        BoundedCache(model)
        bounded = draw.random() < 0.5
    except ValueError:
        bounded = False
    pieces: list[str] = []
    temperature, new = draw.choice((0.0, 0.7, 2.0)), draw.randint(1, 24)
    text = complete(
        checkpoint,
        prompt,
        max_new_tokens=new,
        temperature=temperature,
        bounded_cache=bounded,
        on_piece=pieces.append,
    )
    assert "".join(pieces) == text
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    rows = [ids[0], ids[0, -draw.randint(1, ids.shape[1]) :]]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")
    out = model.generate(
        padded, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=tokenizer.eos_token_id
    )
    made = out[:, ids.shape[1] :]
    assert 1 <= made.shape[1] <= new and int(made.max()) < model.config.vocab_size
    # Each token is the likeliest, to rounding, of the text before it as a whole.
    for row, text_ids in zip(made, rows, strict=True):
        ends = (row == tokenizer.eos_token_id).nonzero()
        row = row[: int(ends[0]) + 1] if len(ends) else row
        whole = torch.cat((text_ids, row))[None]
        with torch.no_grad():
            logits = model(whole, use_cache=False).logits[0, len(text_ids) - 1 : -1]
        assert torch.isfinite(logits).all()
        chosen = logits.gather(1, row[:, None])[:, 0]
        assert (logits.max(dim=1).values - chosen < 1e-3).all(), prompt
    return ids.shape[1]


def one_cycle(scheme: str, folder: Path, draw: random.Random, tokenizer: PreTrainedTokenizerBase) -> int:
    """Train, evaluate and generate once; the longest prompt in tokens."""
    texts = [some_text(draw, 300) for _ in range(3)]
    documents = encode([Document(str(index), text) for index, text in enumerate(texts)], tokenizer)
    blocks = pack(documents, 32, tokenizer.eos_token_id)
    config = BipeConfig.from_scheme(
        scheme,
        tokenizer,
        rule="sentence/paragraph" if scheme.startswith("bipe3") else "paper",
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_offset=32,
        tokens_per_segment=8.0,
    )
    settings = TrainingSettings(
        steps=6, batch_size=4, learning_rate=3e-3, checkpoint_every=3, evaluate_every=3
    )
    train_model(
        config, blocks, blocks, settings, folder, seed=draw.randrange(2**31), on_progress=lambda row: None
    )
    tokenizer.save_pretrained(folder)
    checkpoint = replace(load_checkpoint(folder), tokenizer=tokenizer)
    rows = length_curve(checkpoint.model, [torch.cat(documents)], [8, 32, 128], max_windows=64)
    assert all(row.value == row.value and row.value > 0 for row in rows)
    longest = max(check_generation(checkpoint, draw) for _ in range(PROMPTS))
    shutil.rmtree(folder)
    return longest


def held() -> dict[str, int]:
    """What this process holds."""
    gc.collect()
    process = psutil.Process()
    return {
        "rss": process.memory_info().rss,
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
        "files": process.num_fds(),
        "threads": process.num_threads(),
    }


def report(row: dict[str, Any]) -> None:
    if path := os.environ.get("BIPE_SOAK_REPORT"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def schemes() -> Iterator[str]:
    return cycle(sorted(SCHEMES) if MINUTES else FEW)


@pytest.mark.filterwarnings("ignore:Only .* windows of")
@pytest.mark.filterwarnings("ignore:.*has been trained only up to")
def test_cycles_of_training_evaluating_and_generating_leave_nothing_behind(tmp_path: Path) -> None:
    draw, begun, rows = random.Random(SEED), time.monotonic(), []
    a_round = len(SCHEMES) if MINUTES else len(FEW)
    # One for all cycles: what a tokenizer has cached, the tokenizers library keeps when it is gone.
    tokenizer = train_tokenizer([some_text(draw, 300) for _ in range(3)], 300)
    for number, scheme in enumerate(schemes()):
        whole = number % a_round == 0 and number >= 2 * a_round
        if whole and number * PROMPTS >= GENERATIONS and time.monotonic() >= begun + 60 * MINUTES:
            break
        longest = one_cycle(scheme, tmp_path / "run", draw, tokenizer)
        rows.append({"cycle": number, "scheme": scheme, "longest_prompt": longest, **held()})
        report(
            {**rows[-1], "seconds": round(time.monotonic() - begun, 1), "generations": (number + 1) * PROMPTS}
        )
    for name in ("tensors", "files", "threads"):
        after_first, last = (rows[place][name] for place in (a_round - 1, -1))
        assert last <= after_first, (name, after_first, last)
    if MINUTES:
        quarter = len(rows) // 4
        early, late = (
            median(row["rss"] for row in part) for part in (rows[quarter : 2 * quarter], rows[-quarter:])
        )
        assert late - early < GROWTH, (early, late)
    assert not any(tmp_path.iterdir())
