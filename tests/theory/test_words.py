"""Words with the states that they lead to, against the automaton itself."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from bipe.comparison.automata import AutomatonRun, is_right
from bipe.models.modeling import BipeForCausalLM
from bipe.theory.binfa import counting, random_binfa
from bipe.theory.words import AutomatonWords, Reader, random_words, telling_binfa
from bipe_cli.main import app, run

SYMBOLS = ("a", "b", ".")


@pytest.mark.parametrize("seed", range(10))
def test_classes_are_the_sets_of_states(seed: int) -> None:
    draw = random.Random(seed)
    binfa = random_binfa(draw, draw.randint(1, 4), draw.randint(1, 4), density=0.4)
    reader = Reader(binfa)
    words = random_words(np.random.default_rng(seed), 5, 30, 3, 2, 6)
    for word, classes in zip(words, reader.read(words), strict=True):
        expected = binfa.run([SYMBOLS[number] for number in word])
        for place, number in enumerate(classes):
            outer, inner = reader.sets[number]
            assert (outer == expected.outer[place]).all() and (inner == expected.inner[place]).all()


def test_counting_has_a_class_for_each_pair() -> None:
    assert Reader(counting(3, "a", ".", "b")).classes == 9


def test_segments_are_as_long_as_asked() -> None:
    words = random_words(np.random.default_rng(0), 2000, 64, 3, 2, 5)
    lengths = np.concatenate([np.diff(np.flatnonzero(word == 2), prepend=-1) for word in words])
    counts = np.bincount(lengths, minlength=6)
    assert counts[0] == 0 and len(counts) == 6
    # The last whole segment is a little shorter than others, since longer ones are cut.
    assert np.allclose(counts[1:] / counts.sum(), 0.2, atol=0.01)
    letters = np.bincount(words[words != 2], minlength=2)
    assert np.allclose(letters / letters.sum(), 0.5, atol=0.01)


def test_a_telling_automaton_still_tells_at_the_end() -> None:
    chosen = [Reader(telling_binfa(seed, 3, 3, length=128, tries=100)) for seed in range(3)]
    words = random_words(np.random.default_rng(1), 300, 128, 3, 2, 12)
    for reader in chosen:
        shares = np.bincount(reader.read(words)[:, -1]) / 300
        assert shares.max() < 0.7
    again = Reader(telling_binfa(0, 3, 3, length=128, tries=100))
    assert (again.following == chosen[0].following).all()


def test_a_label_stands_behind_what_it_is_of() -> None:
    reader = Reader(counting(2, "a", ".", "b"))
    words = AutomatonWords(reader, 5, words=4, length=10, seed=3)
    item = words[1]
    assert item["input_ids"].shape == item["labels"].shape == (11,)
    assert item["labels"][0] == -100
    assert item["labels"][1:].tolist() == reader.read(item["input_ids"][None].numpy())[0, :-1].tolist()
    other = AutomatonWords(reader, 5, words=4, length=10, seed=4)
    assert not torch.equal(other[1]["input_ids"], item["input_ids"])


class Knowing(BipeForCausalLM):
    """Tells what the automaton tells."""

    reader: Reader

    def forward(self, input_ids, use_cache=None):
        classes = torch.from_numpy(self.reader.read(input_ids.numpy()))
        return type("Output", (), {"logits": torch.nn.functional.one_hot(classes, self.reader.classes)})


def test_what_is_right_is_counted() -> None:
    run = AutomatonRun("bipe-rope", 2, 8)
    reader = Reader(counting(2, "a", ".", "b"))
    model = Knowing(run.config(reader))
    model.reader = reader
    words = AutomatonWords(reader, 5, words=250, length=10, seed=3)
    assert is_right(model, words).shape == (250, 10) and is_right(model, words).all()
    words.classes[7, 4] += 1
    assert is_right(model, words).nonzero().shape == (250 * 10 - 1, 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 12}, "multiple of 8"),
        ({"states": 0}, "states must be at least 1"),
        ({"longer": 10}, "longer must be at least length"),
        ({"learning_rates": ()}, "a learning rate"),
        ({"scheme": "rpoe"}, "Unknown scheme 'rpoe'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AutomatonRun(**{"scheme": "rope", "states": 2, "width": 8, **settings}).config(
            Reader(counting(2, *"a."))
        )


def test_the_command_learns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["theory", "learn", "--out", str(tmp_path / "run"), "--states", "2", "--width", "16", "--json"]
    command += ["--steps", "120", "--layers", "2", "--length", "16", "--longer", "64"]
    command += ["--learning-rates", "1e-6,1e-2"]
    assert run(app, command) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in printed.splitlines()]
    overall = {row["length"]: row for row in rows if row["protocol"] == "words"}
    assert set(overall) == {16, 64} and overall[16]["learning_rate"] == 1e-2
    assert overall[16]["low"] <= overall[16]["value"] <= overall[16]["high"]
    assert overall[16]["value"] > overall[16]["most_frequent"] + 0.1
    placed = {row["length"]: row for row in rows if row["protocol"] == "from_segment"}
    assert set(placed) == {0, 8}
    assert sum(row["tokens"] for row in placed.values()) <= overall[64]["tokens"] == 64_000
    assert run(app, command) == 0  # finished runs are loaded
    assert capsys.readouterr().out == printed
    assert run(app, [*command, "--learning-rates", "fast"]) == 2
    assert "--learning-rates takes positive numbers" in capsys.readouterr().err
