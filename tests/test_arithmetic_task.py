"""Arithmetic as a task: who is right, and how sure that is."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from scipy.stats import norm
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from bipe import BipeConfig, BipeForCausalLM
from bipe.data.arithmetic import EOS, EQUALS, PAD, ZERO, ArithmeticBlocks, arithmetic_tokenizer, longest
from bipe.evaluation import arithmetic
from bipe.evaluation.arithmetic import answered_right, answers, score_arithmetic, trained_operators
from bipe.evaluation.base import Run
from bipe.models.checkpoint import Checkpoint
from bipe.models.completion import complete
from bipe_cli.main import app, run

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.5,
}


def random_model(scheme: str = "bipe-rope", seed: int = 0) -> BipeForCausalLM:
    torch.manual_seed(seed)
    tokenizer = arithmetic_tokenizer()
    return BipeForCausalLM(
        BipeConfig.from_scheme(
            scheme, tokenizer, rule="equals", max_offset=64, max_position_embeddings=86, **SIZES
        )
    ).eval()


def answers_with(model: BipeForCausalLM, blocks: ArithmeticBlocks, *written: list[int]) -> list[bool]:
    """Score a model that writes these ids after the questions, in turn."""

    def generate(ids: Tensor, attention_mask: Tensor, **settings: Any) -> Tensor:
        for row, mask, n in zip(ids, attention_mask, range(len(ids)), strict=True):
            question = blocks.problem(n)[: blocks.problem(n).index(EQUALS) + 1]
            assert row[mask.bool()].tolist() == question
            assert row[~mask.bool()].tolist() == [PAD] * (len(row) - len(question))
        assert not settings["do_sample"]
        width = max(map(len, written))
        assert settings["max_new_tokens"] >= width
        rows = [row + [PAD] * (width - len(row)) for row in written]
        return torch.cat((ids, torch.tensor(rows)), dim=1)

    model.generate = generate  # pyright: ignore[reportAttributeAccessIssue]
    return answered_right(model, blocks).tolist()


def test_right_is_who_writes_the_answer_before_the_end() -> None:
    blocks = ArithmeticBlocks(3, "test", 7)
    problems = [blocks.problem(n) for n in range(7)]
    rest = [problem[problem.index(EQUALS) + 1 :] for problem in problems]
    wrong = ZERO + (problems[1][-1] - ZERO + 1) % 11
    found = answers_with(
        random_model(),
        blocks,
        [*rest[0], EOS],
        [*rest[1][:-1], wrong, EOS],
        rest[2],  # no end
        [rest[3][-1], EOS],  # no steps
        [wrong, EQUALS, rest[4][-1], EOS, wrong, EOS],  # what follows the end does not count
        [EOS],  # nothing
        [*rest[6], EQUALS, EOS],  # another symbol before the end
    )
    assert found == [True, False, False, True, True, False, False]


@pytest.mark.parametrize("scheme", ["bipe-rope", "alibi", "sinusoidal"])
def test_decoding_in_a_batch_is_decoding_one_by_one(scheme: str) -> None:
    """The oracle reads a problem without padding and without a cache, and takes the likeliest symbol."""
    blocks = ArithmeticBlocks(2, "test", 60)
    # Random weights rarely end, so the end is made likelier.
    model = random_model(scheme)
    with torch.no_grad():
        model.lm_head.weight[EOS] += model.lm_head.weight[ZERO:].mean(dim=0) * 3
    expected, shortest = [], min(blocks.problem(n).index(EQUALS) + 1 for n in range(60))
    for n in range(60):
        problem = blocks.problem(n)
        row = problem[: problem.index(EQUALS) + 1]
        last = len(row) + blocks.length - shortest  # as many as the longest solution of the shortest question
        while len(row) < last and row[-1] != EOS:
            with torch.no_grad():
                row = [*row, int(model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax())]
        expected.append(row[-2] if row[-1] == EOS else None)
    assert 5 < sum(answer is not None for answer in expected) < 55
    problems = [blocks.problem(n) for n in range(60)]
    assert answers(model, problems, blocks.length) == expected
    right = [answer == problem[-1] for answer, problem in zip(expected, problems, strict=True)]
    assert answered_right(model, blocks).tolist() == right


def test_a_checkpoints_own_settings_of_generation_do_not_count() -> None:
    blocks, model = ArithmeticBlocks(2, "test", 20), random_model()
    problems = [blocks.problem(n) for n in range(20)]
    expected = answers(model, problems, blocks.length)
    assert model.generation_config is not None
    model.generation_config.update(
        num_beams=4, repetition_penalty=1.7, num_return_sequences=2, no_repeat_ngram_size=2
    )
    assert answers(model, problems, blocks.length) == expected


def test_scores_have_a_wilson_interval_and_say_what_they_were_measured_on() -> None:
    model = random_model()
    blocks = ArithmeticBlocks(3, "test", 40)
    right = int(answered_right(model, blocks).sum())
    (score,) = score_arithmetic(model, [3], 40, run=Run("bipe-rope", seed=2, steps=7))
    assert (score.task, score.protocol, score.metric, score.length) == ("arithmetic", "greedy", "accuracy", 3)
    assert (score.seed, score.steps, score.windows) == (2, 7, 40)
    z, share = norm.ppf(0.975), right / 40
    middle = (share + z**2 / 80) / (1 + z**2 / 40)
    half = z / (1 + z**2 / 40) * (share * (1 - share) / 40 + z**2 / 6400) ** 0.5
    assert score.value == share
    assert (score.low, score.high) == pytest.approx((max(0, middle - half), middle + half), abs=1e-9)
    tokens = [len(blocks.problem(n)) for n in range(40)]
    assert score.tokens_per_segment == pytest.approx(sum(tokens) / (40 * 4))
    assert score.offsets_beyond_trained == 0


def test_longer_problems_are_solved_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """transformers would remind of the trained length, once a process."""
    cast("Any", transformers_logging.warning_once).cache_clear()
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        score_arithmetic(random_model(), [8], 4, run=Run("bipe-rope"))
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_offsets_longer_than_the_trained_ones_are_counted() -> None:
    model = random_model()
    model.config.max_trained_offset = 4
    model = BipeForCausalLM(model.config)
    blocks = ArithmeticBlocks(3, "test", 40)
    (score,) = score_arithmetic(model, [3], 40, run=Run("bipe-rope"))
    longer = total = 0
    for n in range(40):
        offset = 0
        for token in blocks.problem(n):
            longer, total = longer + (offset > 4), total + 1
            offset = 0 if token == EQUALS else offset + 1
    assert score.offsets_beyond_trained == pytest.approx(longer / total)


def test_any_language_model_of_the_vocabulary_is_scored() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=21, num_key_value_heads=4, max_position_embeddings=longest(3) + 1, **SIZES
    )
    model = LlamaForCausalLM(config).eval()
    assert trained_operators(model) == 3
    (score,) = score_arithmetic(model, [1], 20, run=Run("llama"))
    assert score.tokens_per_segment is score.offsets_beyond_trained is None


def test_what_cannot_be_scored_is_refused() -> None:
    model = random_model()
    assert trained_operators(model) == 6
    with pytest.raises(ValueError, match="1 operator or more"):
        score_arithmetic(model, [0], 10, run=Run("rope"))
    other = LlamaForCausalLM(LlamaConfig(vocab_size=30, max_position_embeddings=100, **SIZES))
    with pytest.raises(ValueError, match="vocabulary of 21 symbols and this model one of 30"):
        score_arithmetic(other, [3], 10, run=Run("rope"))
    with pytest.raises(ValueError, match="Training blocks of 100 tokens"):
        trained_operators(other)


def test_a_prompt_of_other_symbols_is_refused() -> None:
    checkpoint = Checkpoint(Path(), random_model(), arithmetic_tokenizer())
    with pytest.raises(ValueError, match="cannot be cut into tokens of this model"):
        complete(checkpoint, "12 + 3 =")
    assert complete(checkpoint, "2 + 3 =", max_new_tokens=2).startswith("2 + 3 =")


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("length-curve", ["--data", "text.txt", "--lengths", "8"]),
        ("passkey", ["--data", "text.txt", "--lengths", "64"]),
        ("scrolls", ["--data", "qasper", "--lengths", "64"]),
        pytest.param(
            "harness",
            ["--tasks", "hellaswag", "--lengths", "64"],
            marks=pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-evaluation-harness"),
        ),
    ],
)
def test_tasks_of_text_refuse_a_model_of_arithmetic(
    task: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("Some text of words. " * 200)
    Path("qasper").mkdir()
    Path("qasper/validation.jsonl").write_text('{"id": "a", "input": "What is it?", "output": "It."}\n')
    random_model().save_pretrained("solver")
    arithmetic_tokenizer().save_pretrained("solver")
    assert run(app, ["evaluate", task, "--model", "solver", *more]) == 2
    assert "The text cannot be cut into tokens of this tokenizer: WordLevel" in capsys.readouterr().err


def test_a_model_that_fails_is_left_in_its_own_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(arithmetic, "answers", fail)
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    model.device = torch.device("cpu")
    with pytest.raises(MemoryError):
        answered_right(cast("Any", model), ArithmeticBlocks(2, "test", 3))
    assert model.training and model[0].training and not model[1].training


def test_long_solutions_are_written_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def count(model: Any, problems: Any, most: int) -> list[int | None]:
        sizes.append(len(problems))
        return [None] * len(problems)

    monkeypatch.setattr(arithmetic, "answers", count)
    model = torch.nn.Dropout()
    model.device = torch.device("cpu")
    blocks = ArithmeticBlocks(20, "test", 50)
    answered_right(cast("Any", model), blocks)
    assert sum(sizes) == 50 and max(sizes) * blocks.length <= 20_000 < 50 * blocks.length
