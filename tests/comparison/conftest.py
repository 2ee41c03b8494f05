import random
from pathlib import Path
from typing import Any

import pytest

from bipe.comparison import Comparison, compare

WORDS = [
    "the",
    "cat",
    "dog",
    "saw",
    "ran",
    "to",
    "of",
    "a",
    "red",
    "house",
    "and",
    "then",
    "it",
    "was",
    "old",
]

SMALL: dict[str, Any] = {
    "schemes": ["rope", "bipe-rope", "bipe-alibi-auto"],
    "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24},
    "training": {"steps": 4, "batch_size": 2, "warmup_steps": 1, "evaluate_every": 2},
    "learning_rates": [1e-3, 1e-2],
    "sweep_steps": 2,
    "evaluation": {"lengths": [16, 32, 64], "max_windows": 40, "validation_blocks": 3},
}
SCHEMES = SMALL["schemes"]

few_windows = pytest.mark.filterwarnings("ignore:Only .* windows:UserWarning")


def text(seed: int, sentences: int) -> str:
    """Sentences of 3 to 9 words, some of them ended by a newline."""
    draw = random.Random(seed)
    parts = []
    for _ in range(sentences):
        parts.append(" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) + "." + draw.choice([" ", "\n"]))
    return "".join(parts)


def settings(folder: Path, **changes: Any) -> Comparison:
    data = {"train": [str(folder / "train")], "vocab_size": 300, "train_length": 16}
    return Comparison.model_validate({**SMALL, "data": data, "test": [str(folder / "test.txt")], **changes})


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three training documents and one to test on."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "train").mkdir()
    for seed in range(3):
        (folder / "train" / f"{seed}.txt").write_text(text(seed, 120))
    (folder / "test.txt").write_text(text(9, 150))
    return folder


@pytest.fixture(scope="session")
def finished(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a finished comparison, and what it said on the way."""
    said: list[str] = []
    out = tmp_path_factory.mktemp("compare") / "run"
    with pytest.warns(UserWarning, match="windows"):
        compare(settings(texts), out, say=said.append)
    return out, said


@pytest.fixture(scope="module")
def trained(finished):
    return finished[0] / "runs" / "bipe-rope-0"
