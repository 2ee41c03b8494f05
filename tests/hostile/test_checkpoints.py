"""Checkpoints whose files were harmed: one clear error, or a result; never code, never a foreign traceback."""

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import Answer

HARMED = int(os.environ.get("BIPE_HARMED", "12"))
"""Mutations of each file, and a quarter as many values of each setting."""
VALUES: tuple[Any, ...] = (
    *(
        None,
        "x",
        -1,
        0,
        3,
        1.5,
        1e308,
        10**18,
        10**30,
        [],
        {},
        True,
        "../../etc/passwd",
        float("nan"),
        [1, 2],
    ),
    *(
        {"type": "rope"},
        {"type": 5},
        {"type": "../x"},
        {"type": "levels", "segmenters": [{}]},
        [[[]]],
        "é" * 9999,
    ),
)
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
)
Harmed = Callable[[], Path]


def generate(answer: Answer, folder: Path) -> tuple[int, str]:
    before = set(folder.parent.parent.rglob("*"))
    found = answer("generate", "--model", folder, "--prompt", "Some text.", "--max-new-tokens", "2")
    assert set(folder.parent.parent.rglob("*")) == before
    return found


def test_the_sound_one_works(answer: Answer, harmed: Harmed) -> None:
    assert generate(answer, harmed())[0] == 0


def settings(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))


def test_settings_of_any_kind_are_used_or_refused(answer: Answer, harmed: Harmed, checkpoint: Path) -> None:
    draw, refused = random.Random(0), 0
    for name in [*settings(checkpoint), "no_such_setting", "auto_map"]:
        for value in draw.sample(VALUES, min(len(VALUES), max(1, HARMED // 4))):
            folder = harmed()
            changed = {**settings(checkpoint), name: value}
            (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
            status, said = generate(answer, folder)
            refused += status != 0
            assert status == 0 or len(said) < 2000, (name, value)
    assert refused > 50


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("hidden_size", "wide", "hidden_size"),
        ("num_hidden_layers", 10**18, "num_hidden_layers"),
        ("vocab_size", -1, "vocab_size"),
        ("inter", {"type": "../../etc/passwd"}, "Unknown inter encoding '../../etc/passwd'"),
        ("segmenter", {"type": "token_set", "end_token_ids": [10**12]}, "1000000000000"),
        ("dtype", "x", "could not be read as a model"),
        ("model_type", ["bipe"], "could not be read as a model"),
        ("pad_token_id", 10**18, "could not be read as a model"),
    ],
)
def test_what_is_wrong_is_named(
    name: str, value: Any, said: str, answer: Answer, harmed: Harmed, checkpoint: Path
) -> None:
    folder = harmed()
    changed = {**settings(checkpoint), name: value}
    (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    status, found = generate(answer, folder)
    assert status == 2 and said in found


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Bits turned, an end cut off, something put in, a stretch of zeros, a stretch twice, a byte of the head."""
    harmed, place = bytearray(content), draw.randrange(len(content))
    kind = draw.randrange(6)
    if kind == 0:
        for _ in range(draw.choice((1, 3, 20))):
            harmed[draw.randrange(len(harmed))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del harmed[place:]
    elif kind == 2:
        harmed[place:place] = draw.randbytes(draw.choice((1, 8)))
    elif kind == 3:
        harmed[place : place + 16] = bytes(16)
    elif kind == 4:
        harmed[place:place] = harmed[place : place + 50]
    else:
        harmed[draw.randrange(min(len(harmed), 200))] = draw.randrange(256)
    return bytes(harmed)


@pytest.mark.filterwarnings("ignore")  # what libraries say of what they can still use
@pytest.mark.parametrize("file", FILES)
def test_bytes_of_any_kind_are_used_or_refused(
    file: str, answer: Answer, harmed: Harmed, checkpoint: Path
) -> None:
    draw = random.Random(file)
    for _ in range(HARMED):
        folder = harmed()
        (folder / file).write_bytes(mutated((checkpoint / file).read_bytes(), draw))
        generate(answer, folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_and_a_folder_in_its_place_are_named(
    file: str, answer: Answer, harmed: Harmed
) -> None:
    folder = harmed()
    (folder / file).unlink()
    status, said = generate(answer, folder)
    assert status == 2 and str(folder) in said
    (folder / file).mkdir()
    assert generate(answer, folder)[0] == 2


def test_weights_of_another_shape_or_kind_are_named(answer: Answer, harmed: Harmed, checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
        "mismatched": lambda weight: weight[:-1].contiguous(),
        "not all finite numbers": lambda weight: torch.full_like(weight, float("nan")),
        "missing": lambda weight: None,
    }
    for said, change in changes.items():
        for name in weights:
            kept = {key: weight for key, weight in weights.items() if key != name}
            if (changed := change(weights[name])) is not None:
                kept[name] = changed
            folder = harmed()
            save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
            status, found = generate(answer, folder)
            assert status == 2 and said in found and name in found
    folder = harmed()
    save_file({**weights, "more": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    status, found = generate(answer, folder)
    assert status == 2 and "unexpected more" in found


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_pickles_are_not_run(answer: Answer, harmed: Harmed, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    folder = harmed()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Trap(sprung)}))
    status, said = answer("generate", "--model", folder, "--prompt", "Some text.")
    assert status == 2 and "could not be read as a model" in said
    # Conversion does read pickled weights, of tensors alone.
    status, said = answer("convert", folder, tmp_path / "converted")
    assert status == 2 and not (tmp_path / "converted").exists()
    torch.save({"model.norm.weight": Trap(sprung)}, folder / "pytorch_model.bin")
    assert answer("convert", folder, tmp_path / "converted")[0] == 2
    assert not sprung.exists()


def test_code_beside_a_checkpoint_is_not_run(
    answer: Answer, harmed: Harmed, checkpoint: Path, tmp_path: Path
) -> None:
    folder, sprung = harmed(), tmp_path / "sprung"
    (folder / "modeling_bipe.py").write_text(f"open({str(sprung)!r}, 'w')\n", encoding="utf-8")
    named = {
        "AutoConfig": "modeling_bipe.BipeConfig",
        "AutoModelForCausalLM": "modeling_bipe.BipeForCausalLM",
    }
    for fields in ({"auto_map": named}, {"auto_map": named, "model_type": "other"}):
        changed = {**settings(checkpoint), **fields}
        (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        generate(answer, folder)
        answer("convert", folder, tmp_path / "converted" / str(len(fields)))
    assert not sprung.exists()
