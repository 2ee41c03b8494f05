"""A text that a tiny model can learn, the model, and runs of it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bipe.data.packing import PackedBlocks, pack
from bipe.models import BipeConfig
from bipe.training import TrainingSettings, train_model

VOCABULARY = 24
SEPARATOR = 5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_documents(seed: int, count: int = 6, tokens: int = 300) -> list[torch.Tensor]:
    """Tokens of which each follows from the one before it, but for one in eight."""
    generator = torch.Generator().manual_seed(seed)
    documents = []
    for _ in range(count):
        noise = torch.randint(1, VOCABULARY, (tokens,), generator=generator)
        is_noise = torch.rand(tokens, generator=generator) < 1 / 8
        ids = [int(noise[0])]
        for index in range(1, tokens):
            ids.append(int(noise[index]) if is_noise[index] else 1 + (ids[-1] * 7) % (VOCABULARY - 1))
        documents.append(torch.tensor(ids))
    return documents


@pytest.fixture(scope="session")
def blocks() -> PackedBlocks:
    return pack(make_documents(0), 16, eos_token_id=0)


@pytest.fixture(scope="session")
def validation_blocks() -> PackedBlocks:
    return pack(make_documents(1, count=2, tokens=100), 16, eos_token_id=0)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., BipeConfig]:
    def make(scheme: str = "bipe-rope", **fields: Any) -> BipeConfig:
        sizes = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_offset": 16,
            "eos_token_id": 0,
        }
        return BipeConfig.from_scheme(scheme, end_token_ids=[SEPARATOR], **{**sizes, **fields})

    return make


def settings(**changes):
    defaults = {"steps": 8, "batch_size": 4, "log_every": 1, "evaluate_every": 4, "checkpoint_every": 3}
    return TrainingSettings(**{**defaults, "learning_rate": 5e-3, "warmup_steps": 2, **changes})


def ignore(row):
    pass


def refuse(row):
    raise AssertionError(f"nothing should be trained, but there is {row}")


def interrupt_at(step):
    def on_progress(row):
        if row["step"] == step and "loss" in row:
            raise KeyboardInterrupt

    return on_progress


def crash_at(step):
    def on_progress(row):
        if row["step"] == step and "loss" in row:
            raise OSError("the power went out")

    return on_progress


def assert_same_weights(model, other):
    there = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, there[name]), name


@pytest.fixture
def fit(make_config, blocks, validation_blocks, tmp_path):
    """Train in a folder below the test's own, with dropout, so that random states matter."""

    def run(folder="run", config=None, on_progress=ignore, data=None, resume=True, seed=7, **changes):
        return train_model(
            config or make_config(attention_dropout=0.1),
            blocks if data is None else data,
            validation_blocks,
            settings(**changes),
            tmp_path / folder,
            seed=seed,
            resume=resume,
            on_progress=on_progress,
        )

    return run
