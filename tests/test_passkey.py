"""Keys told in a text: what is asked, and who finds them."""

import random
import re
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from tokenizers import Tokenizer, models, normalizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bipe import BipeConfig, BipeForCausalLM
from bipe.data.tokens import train_tokenizer
from bipe.evaluation.base import Run
from bipe.evaluation.passkey import NAMES, Trial, answer, make_trial, score_passkey
from bipe.models.extension import extension_of

TEXT = "The cat sat on the mat. It saw 12 dogs there, and 7890 birds.\nThen it slept. " * 60


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([TEXT + " The pass key is 12."], 330)


@pytest.fixture(scope="module")
def ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    return torch.tensor(tokenizer(TEXT)["input_ids"])


def model_of(scheme: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> PreTrainedModel:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.3,
    }
    torch.manual_seed(seed)
    if scheme == "llama":
        return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=4, **sizes)).eval()
    return BipeForCausalLM(BipeConfig.from_scheme(scheme, tokenizer, max_offset=64, **sizes)).eval()


def trial_of(
    ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase, keys: int, seed: int, length: int = 300
) -> Trial:
    return make_trial(ids[:length], tokenizer, keys, random.Random(seed))


@pytest.mark.parametrize("seed", range(20))
def test_one_key_is_told_once_and_asked_for_at_the_end(
    ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    trial = trial_of(ids, tokenizer, 1, seed)
    text = tokenizer.decode(trial.prompt)
    assert len(trial.prompt) == 300
    assert text.endswith("\nThe pass key is")
    told = re.findall(r"\nThe pass key is (\d{5})\.\n", text)
    choices = [tokenizer.decode(choice) for choice in trial.choices]
    assert [f" {number}" for number in told] == choices[:1]
    assert len(set(choices)) == 10
    # Without key and question it is the end of the text.
    needle = tokenizer(f"\nThe pass key is {told[0]}.\n")["input_ids"]
    rest = trial.prompt.tolist()[: -len(tokenizer("\nThe pass key is")["input_ids"])]
    (place,) = [n for n in range(len(rest)) if rest[n : n + len(needle)] == needle]
    filler = rest[:place] + rest[place + len(needle) :]
    assert filler == ids[300 - len(filler) : 300].tolist()


def test_keys_stand_at_all_places(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
    places = []
    for seed in range(200):
        text = tokenizer.decode(trial_of(ids, tokenizer, 1, seed).prompt)
        places.append(text.index("The pass key") / len(text))
    counts = torch.histc(torch.tensor(places), bins=4, min=0, max=1)
    assert counts.min() > 30


def test_a_key_continues_the_question_with_a_tokenizer_that_marks_beginnings() -> None:
    """As Llama-2's: what it is given starts with a mark of its own, which no key in running text has."""
    characters = sorted({*TEXT, *"Thepasskeyisofthe0123456789.\n▁"} | set("".join(NAMES)))
    backend = Tokenizer(models.BPE({c: n for n, c in enumerate(characters)}, []))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    trial = make_trial(torch.zeros(200, dtype=torch.int64), tokenizer, 1, random.Random(0))
    row, key = trial.prompt.tolist(), trial.choices[0]
    assert any(row[n : n + len(key)] == key for n in range(len(row))), "as it was told"
    assert tokenizer.convert_ids_to_tokens(key)[0] == "▁"
    assert len(key) == 6


@pytest.mark.parametrize("seed", range(20))
def test_of_several_keys_the_one_asked_for_is_the_right_one(
    ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    trial = trial_of(ids, tokenizer, 4, seed)
    text = tokenizer.decode(trial.prompt)
    told = dict(re.findall(r"\nThe pass key of the (\w+) is (\d{5})\.\n", text))
    assert len(trial.prompt) == 300
    assert len(told) == 4
    assert set(told) <= set(NAMES)
    asked = re.search(r"\nThe pass key of the (\w+) is$", text)
    assert asked is not None
    choices = [tokenizer.decode(choice) for choice in trial.choices]
    assert choices[0] == f" {told[asked[1]]}"
    assert {f" {number}" for number in told.values()} <= set(choices)


def likelihoods(model: PreTrainedModel, prompt: list[int], choices: list[list[int]]) -> list[float]:
    """Each key after the prompt, read anew without a cache, a token at a time."""
    found = []
    for choice in choices:
        total, row = 0.0, list(prompt)
        for token in choice:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].double()
            total += float(logits.log_softmax(-1)[token])
            row.append(token)
        found.append(total)
    return found


@pytest.mark.parametrize("scheme", ["bipe-rope", "alibi", "bipe-alibi", "xpos", "sinusoidal", "llama"])
def test_answers_are_those_of_reading_each_choice_anew(
    ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase, scheme: str
) -> None:
    model = model_of(scheme, tokenizer)
    for seed in range(6):
        trial = trial_of(ids, tokenizer, 1, seed, 60)
        expected = likelihoods(model, trial.prompt.tolist(), trial.choices)
        for first in range(len(trial.choices)):
            choices = [trial.choices[first], *trial.choices[:first], *trial.choices[first + 1 :]]
            _, likeliest = answer(model, Trial(trial.prompt, choices))
            assert likeliest == (expected[first] == max(expected))


@torch.no_grad()
@pytest.mark.parametrize("method", ["dynamic", "longrope"])
@pytest.mark.parametrize("scheme", ["rope", "bipe-rope"])
def test_a_model_without_a_cache_is_read_whole(
    ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase, scheme: str, method: str
) -> None:
    """As one whose rotation depends on the length of the text."""
    original = 40 if scheme == "rope" else 4
    config = extension_of(model_of(scheme, tokenizer).config, method, 2.0, original=original).config
    torch.manual_seed(0)
    model = BipeForCausalLM(config).eval()
    trial = trial_of(ids, tokenizer, 1, 1, 60)
    whole = [
        torch.log_softmax(
            model(input_ids=torch.tensor([trial.prompt.tolist() + choice[:-1]]), use_cache=False).logits[0],
            -1,
        )[-len(choice) :][range(len(choice)), choice]
        for choice in trial.choices
    ]
    likelihoods = [float(found.sum()) for found in whole]
    for first in range(len(trial.choices)):
        choices = [trial.choices[first], *trial.choices[:first], *trial.choices[first + 1 :]]
        assert answer(model, Trial(trial.prompt, choices))[1] == (likelihoods[first] == max(likelihoods))


def test_writing_the_key_is_writing_each_of_its_tokens(
    ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = model_of("bipe-rope", tokenizer)
    trial = trial_of(ids, tokenizer, 1, 3, 80)
    generated: Any = model.generate(  # pyright: ignore[reportCallIssue]
        trial.prompt[None], max_new_tokens=3, do_sample=False, pad_token_id=0
    )
    written = generated[0, 80:].tolist()
    assert answer(model, Trial(trial.prompt, [written, *trial.choices[1:]]))[0]
    assert answer(model, Trial(trial.prompt, [written[:1], *trial.choices[1:]]))[0]
    wrong = [*written[:2], (written[2] + 1) % len(tokenizer)]
    assert not answer(model, Trial(trial.prompt, [wrong, *trial.choices[1:]]))[0]


def test_scores_say_how_often_and_how_sure(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
    model = model_of("bipe-rope", tokenizer)
    rows = score_passkey(model, tokenizer, [ids], [128, 64], keys=1, trials=9, run=Run("bipe-rope", 1, 5))
    assert [(row.length, row.metric) for row in rows] == [
        (length, metric) for length in (64, 128) for metric in ("accuracy", "choice_accuracy")
    ]
    assert {(row.task, row.seed, row.steps, row.windows) for row in rows} == {("passkey", 1, 5, 9)}
    for row in rows:
        interval = binomtest(round(row.value * 9), 9).proportion_ci(method="wilson")
        assert (row.low, row.high) == (interval.low, interval.high)
        assert row.tokens == 9 * row.length
        assert row.tokens_per_segment is not None and 3 < row.tokens_per_segment < 25
    several = score_passkey(model, tokenizer, [ids], [128], keys=3, trials=4, run=Run("bipe-rope"))
    assert {(row.task, row.protocol) for row in several} == {("multikey", "1 of 3")}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """The trials so far; every fourth key is written, and every second one found the likeliest."""
    trials: list[Trial] = []

    def answered(model: PreTrainedModel, trial: Trial) -> tuple[bool, bool]:
        trials.append(trial)
        return len(trials) % 4 == 0, len(trials) % 2 == 0

    monkeypatch.setattr("bipe.evaluation.passkey.answer", answered)
    return trials


@pytest.mark.usefixtures("asked")
def test_accuracy_is_of_writing_and_choice_accuracy_of_choosing(
    ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = model_of("rope", tokenizer)
    rows = score_passkey(model, tokenizer, [ids], [64], keys=1, trials=8, run=Run("rope"))
    assert {row.metric: row.value for row in rows} == {"accuracy": 0.25, "choice_accuracy": 0.5}


def test_lengths_share_the_keys_of_a_trial_and_the_end_of_its_text(
    asked: list[Trial], tokenizer: PreTrainedTokenizerBase
) -> None:
    model, text = model_of("rope", tokenizer), torch.arange(320)  # a token says its place
    score_passkey(model, tokenizer, [text], [128, 64], keys=1, trials=3, run=Run("rope"))
    short, long = asked[:3], asked[3:]
    assert [len(trial.prompt) for trial in asked] == [64] * 3 + [128] * 3
    assert [trial.choices for trial in short] == [trial.choices for trial in long]
    question = len(tokenizer("\nThe pass key is")["input_ids"])
    for trials in (short, long):  # from the first end of a long text to the last, evenly
        assert [int(trial.prompt[-question - 1]) for trial in trials] == [127, 223, 319]


def test_what_has_no_room_is_refused(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
    model = model_of("rope", tokenizer)
    with pytest.raises(ValueError, match=r"Telling and asking for 4 keys takes .* got 40"):
        score_passkey(model, tokenizer, [ids], [40], keys=4, trials=2, run=Run("rope"))
    with pytest.raises(ValueError, match="does not fit in any test document"):
        score_passkey(model, tokenizer, [ids[:100]], [128], keys=1, trials=2, run=Run("rope"))
