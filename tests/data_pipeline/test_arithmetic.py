"""Arithmetic problems: right, distributed as told, and never in two splits."""

import random
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from bipe import TokenSet
from bipe.data.arithmetic import (
    EOS,
    EQUALS,
    PAD,
    SYMBOLS,
    ArithmeticBlocks,
    arithmetic_tokenizer,
    longest,
    solve_backwards,
    split_of,
)

PROBLEMS = 3000


@dataclass(frozen=True)
class Field:
    """A number modulo 11, computed by Python's own reading of an expression."""

    value: int

    def __add__(self, other: "Field") -> "Field":
        return Field((self.value + other.value) % 11)

    def __sub__(self, other: "Field") -> "Field":
        return Field((self.value - other.value) % 11)

    def __mul__(self, other: "Field") -> "Field":
        return Field(self.value * other.value % 11)

    def __truediv__(self, other: "Field") -> "Field":
        if not other.value:
            raise ZeroDivisionError
        found = [number for number in range(11) if number * other.value % 11 == self.value]
        return Field(found[0])


def value_of(expression: list[str]) -> int:
    python = " ".join(f"Field({token})" if token.isdigit() else token for token in expression)
    return eval(python, {"Field": Field}).value


def texts(steps: list[list[int]]) -> list[list[str]]:
    return [[SYMBOLS[token] for token in step] for step in steps]


def problems(operators: int, count: int = PROBLEMS) -> list[list[list[str]]]:
    return [texts(solve_backwards(random.Random(n), operators)) for n in range(count)]


def is_even(counts: Counter[Any], choices: int) -> bool:
    """Whether counts of equally likely choices could be chance, at one in a thousand."""
    return len(counts) == choices and chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("operators", [1, 3, 6, 12])
def test_every_step_has_the_value_of_the_answer(operators: int) -> None:
    for steps in problems(operators, 500):
        answer = int(steps[-1][0])
        assert len(steps) == operators + 1
        assert [sum(token in "+-*/" for token in step) for step in steps] == list(range(operators, -1, -1))
        assert {value_of(step) for step in steps} == {answer}


def brackets_by_the_rule(left: str, operator: str, right: str) -> bool:
    """PAPER: where the left neighbour is `/`; where + or - stands beside `*`, before `/` or after `-`."""
    if left == "/":
        return True
    if operator in "+-":
        return left == "*" or right == "*" or right == "/" or left == "-"
    return False


def is_done(longer: list[str], shorter: list[str], place: int, bracketed: bool) -> bool:
    """Whether the shorter one is the longer one with the operation at a place done."""
    width = 5 if bracketed else 3
    operation = longer[place : place + width]
    if longer != shorter[:place] + operation + shorter[place + 1 :] or len(operation) < width:
        return False
    if bracketed and (operation[0], operation[-1]) != ("(", ")"):
        return False
    first, operator, second = operation[1:-1] if bracketed else operation
    if not (first.isdigit() and operator in "+-*/" and second.isdigit()):
        return False
    left = shorter[place - 1] if place else ""
    right = shorter[place + 1] if place + 1 < len(shorter) else ""
    worth = value_of([first, operator, second])
    return str(worth) == shorter[place] and brackets_by_the_rule(left, operator, right) == bracketed


def test_a_step_does_one_operation_with_brackets_by_the_rule() -> None:
    brackets = 0
    for longer, shorter in (pair for steps in problems(6, 500) for pair in pairwise(steps)):
        assert any(
            is_done(longer, shorter, place, len(longer) - len(shorter) == 4) for place in range(len(shorter))
        )
        brackets += len(longer) - len(shorter) == 4
    assert brackets > 500


def test_answers_operators_and_first_numbers_are_distributed_as_told() -> None:
    one = problems(1, 20_000)
    assert is_even(Counter(steps[-1][0] for steps in one), 11)
    # A retry draws number and operator again: what is left is even over the operations that are possible,
    # once for each answer; of a zero in a product or quotient, the free number is even too.
    by_answer = {answer: [steps[0] for steps in one if steps[-1] == [answer]] for answer in SYMBOLS[10:]}
    for answer, operations in by_answer.items():
        possible = 11 + 11 + (11 + 1 if answer == "0" else 10 + 10)
        assert is_even(Counter((first, operator) for first, operator, _ in operations), possible)
    free = [second for first, operator, second in by_answer["0"] if (first, operator) == ("0", "*")]
    assert is_even(Counter(free), 11)
    assert is_even(
        Counter(second for first, operator, second in by_answer["0"] if (first, operator) == ("0", "/")), 10
    )


def test_the_place_of_the_next_operation_is_uniform() -> None:
    places = Counter()
    for steps in problems(4, 4000):
        longer, shorter = steps[0], steps[1]
        found = {
            place
            for place in range(len(shorter))
            for bracketed in (True, False)
            if is_done(longer, shorter, place, bracketed)
        }
        numbers = [place for place, token in enumerate(shorter) if token.isdigit()]
        if len(found) == 1:
            places[numbers.index(found.pop())] += 1
    assert is_even(places, 4)


@pytest.mark.parametrize(
    ("operators", "mean", "most"), [(3, 21, 25), (6, 66, 85), (10, 164, 221), (15, 348, 481)]
)
def test_lengths_are_those_of_the_task(operators: int, mean: int, most: int) -> None:
    """PAPER 3a: means of 21, 66, 164 and 348 tokens, of at most 25 and 85 where the longest turns up."""
    lengths = [sum(map(len, steps)) + operators for steps in problems(operators)]
    assert abs(fmean(lengths) - mean) < 0.5 + 4 * stdev(lengths) / len(lengths) ** 0.5
    assert max(lengths) <= longest(operators) == most
    assert operators > 6 or max(lengths) == most


def test_splits_share_no_question_and_have_their_shares() -> None:
    asked = {
        split: {tuple(blocks.problem(n)[: blocks.problem(n).index(EQUALS)]) for n in range(400)}
        for split in ("train", "validation", "test")
        for blocks in [ArithmeticBlocks(2, split, 400)]
    }
    assert all(split_of(question) == split for split, questions in asked.items() for question in questions)
    drawn = Counter(split_of(solve_backwards(random.Random(n), 3)[0]) for n in range(PROBLEMS))
    assert all(
        abs(drawn[split] / PROBLEMS - share) < 0.02 for split, share in (("test", 0.05), ("validation", 0.05))
    )


def test_a_block_is_a_problem_its_end_and_padding() -> None:
    blocks = ArithmeticBlocks(3, "train", 50)
    for n in range(50):
        item, problem = blocks[n], blocks.problem(n)
        assert all(part.dtype == torch.int64 and part.shape == (26,) for part in item.values())
        ids, asked = item["input_ids"].tolist(), problem.index(EQUALS) + 1
        assert ids == problem + [EOS] + [PAD] * (25 - len(problem))
        assert item["attention_mask"].sum() == len(problem) + 1
        assert item["labels"].tolist() == [-100] * asked + problem[asked:] + [EOS] + [-100] * (
            25 - len(problem)
        )


def test_a_problem_depends_on_split_seed_and_index_alone() -> None:
    blocks = ArithmeticBlocks(6, "train", 100)
    longer = ArithmeticBlocks(6, "train", 1000)
    assert [blocks.problem(n) for n in (0, 99, 5)] == [longer.problem(n) for n in (0, 99, 5)]
    others = [ArithmeticBlocks(6, "train", 100, seed=1), ArithmeticBlocks(6, "test", 100)]
    assert all(other.problem(0) != blocks.problem(0) for other in others)
    with pytest.raises(IndexError):
        blocks.problem(100)


def test_problems_of_several_sizes_are_even() -> None:
    blocks = ArithmeticBlocks(4, "train", 2000, fewest_operators=2)
    assert blocks.length == 1 + longest(4)
    assert is_even(Counter(blocks.problem(n).count(EQUALS) for n in range(2000)), 3)
    for fewest in (0, 5):
        with pytest.raises(ValueError, match=f"1 operator or more.*got {fewest} to 4"):
            ArithmeticBlocks(4, "train", 10, fewest_operators=fewest)


def test_the_vocabulary_has_21_symbols_and_equals_ends_a_segment(tmp_path: Any) -> None:
    tokenizer = arithmetic_tokenizer()
    assert len(SYMBOLS) == len(tokenizer) == 21
    text = "( 5 - 10 ) / 6 = 6 / 6 = 1"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    segmenter = TokenSet.from_tokenizer(tokenizer, "equals")
    assert segmenter(torch.arange(21)[None]).nonzero()[:, 1].tolist() == [EOS, EQUALS]
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]
