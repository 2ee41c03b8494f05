"""Arithmetic modulo 11, solved a step at a time: the paper's synthetic task.

The task is that of Feng et al. 2023 (arXiv:2305.15408): an expression, and after each `=` the same with one
operation done, down to the answer. It is built backwards from the answer, in numbers of the field.
"""

import random
from collections.abc import Sequence
from hashlib import blake2b
from multiprocessing import get_context
from typing import Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from .packing import IGNORED

MODULUS = 11
SYMBOLS = ("<pad>", "<cls>", "<eos>", "+", "-", "*", "/", "(", ")", "=", *map(str, range(MODULUS)))
"""The vocabulary: id by place. "10" is one token; `<cls>` is the task's, and occurs nowhere."""

PAD, _, EOS, PLUS, MINUS, TIMES, OVER, OPEN, CLOSE, EQUALS, ZERO = range(11)

Split = Literal["train", "validation", "test"]
BUCKETS: dict[Split, range] = {"test": range(1), "validation": range(1, 2), "train": range(2, 20)}
"""Which of twenty parts of all problems, by a checksum of what is asked, each split has."""

PIECE = 10_000
"""Problems that a process makes in one go."""

_INVERSES = (0, *(pow(number, -1, MODULUS) for number in range(1, MODULUS)))


def solve_backwards(draw: random.Random, operators: int) -> list[list[int]]:
    """A problem: its expressions as ids, from the one with so many operators down to the answer.

    From a uniform answer on, a uniform number of the expression is replaced by an operation with its value.

    >>> steps = solve_backwards(random.Random(1), 2)
    >>> [" ".join(SYMBOLS[token] for token in step) for step in steps]
    ['4 * 2 - 7', '8 - 7', '1']

    Args:
        draw: where chance comes from.
        operators: number of operations, at least 0.
    """
    expression = [ZERO + _below(draw, MODULUS)]
    steps = [expression]
    for _ in range(operators):
        numbers = [place for place, token in enumerate(expression) if token >= ZERO]
        place = numbers[_below(draw, len(numbers))]
        first, operator, second = _operation(draw, expression[place] - ZERO)
        operation = [ZERO + first, operator, ZERO + second]
        left = expression[place - 1] if place else EQUALS
        right = expression[place + 1] if place + 1 < len(expression) else EQUALS
        if needs_brackets(left, operator, right):
            operation = [OPEN, *operation, CLOSE]
        expression = expression[:place] + operation + expression[place + 1 :]
        steps.append(expression)
    return steps[::-1]


def _operation(draw: random.Random, value: int) -> tuple[int, int, int]:
    """Two numbers and an operator between them that make a value; number and operator are uniform."""
    while True:
        first, operator = _below(draw, MODULUS), PLUS + _below(draw, 4)
        if operator == PLUS:
            return first, operator, (value - first) % MODULUS
        if operator == MINUS:
            return first, operator, (first - value) % MODULUS
        if operator == TIMES and first:
            return first, operator, value * _INVERSES[first] % MODULUS
        if operator == TIMES and not value:
            return first, operator, _below(draw, MODULUS)
        if operator == OVER and first and value:
            return first, operator, first * _INVERSES[value] % MODULUS
        if operator == OVER and not first and not value:
            return first, operator, 1 + _below(draw, MODULUS - 1)


def _below(draw: random.Random, end: int) -> int:
    return int(draw.random() * end)  # a third of the time of randrange


def needs_brackets(left: int, operator: int, right: int) -> bool:
    """Whether an operation would be read otherwise between these neighbours (ids) without brackets."""
    additive = operator in (PLUS, MINUS)
    return left == OVER or (additive and (left in (TIMES, MINUS) or right in (TIMES, OVER)))


def longest(operators: int) -> int:
    """The most tokens that a problem with its solution can have, without the end of text.

    >>> longest(3), longest(6)
    (25, 85)
    """
    brackets = max(0, operators * (operators - 1))
    return (operators + 1) ** 2 + brackets + operators


def split_of(question: Sequence[int]) -> Split:
    """The split that a problem belongs to, by the text before its first `=`; so splits share no question."""
    part = blake2b(bytes(question), digest_size=4).digest()
    bucket = int.from_bytes(part, "little") % 20
    return next(split for split, buckets in BUCKETS.items() if bucket in buckets)


class ArithmeticBlocks(Dataset[dict[str, Tensor]]):
    """Problems with their solutions, one a block, each made when it is asked for; the same ones every time.

    An item is a dict of three tensors `(T,)` int64, T the longest problem and the end of text: `input_ids`;
    `attention_mask`, 0 on the padding at the end; `labels`, -100 on padding and on the question with its `=`.

    >>> blocks = ArithmeticBlocks(3, "test", 10)
    >>> " ".join(SYMBOLS[token] for token in blocks.problem(0))
    '( 4 + 4 ) / 5 * 10 = 8 / 5 * 10 = 6 * 10 = 5'

    Args:
        operators: number of operations in each problem.
        split: which problems.
        size: number of problems.
        fewest_operators: where given, problems have from so many operations on, uniformly.
        seed: decides the problems of a split.
        made: what `rows` gave for all of them; None to make each when it is asked for.

    Raises:
        ValueError: numbers of operations that are below 1 or in the wrong order.
    """

    def __init__(
        self,
        operators: int,
        split: Split,
        size: int,
        *,
        fewest_operators: int | None = None,
        seed: int = 0,
        made: Tensor | None = None,
    ) -> None:
        fewest = operators if fewest_operators is None else fewest_operators
        if not 1 <= fewest <= operators:
            raise ValueError(
                f"Problems have 1 operator or more, and the fewest come first; got {fewest} to {operators}."
            )
        self.operators = range(fewest, operators + 1)
        self.split: Split = split
        self.size = size
        self.seed = seed
        self.made = made
        self.length = longest(operators) + 1

    def __len__(self) -> int:
        return self.size

    def problem(self, index: int) -> list[int]:
        """The ids of a problem with its solution, without the end of text."""
        if self.made is not None:
            return list(self.made[range(self.size)[index]].numpy().tobytes().rstrip(bytes([PAD])))
        draw = random.Random(f"{self.split} {self.seed} {range(self.size)[index]}")
        operators = self.operators[_below(draw, len(self.operators))]
        while True:
            steps = solve_backwards(draw, operators)
            if split_of(steps[0]) == self.split:
                return [token for step in steps for token in (*step, EQUALS)][:-1]

    def rows(self, processes: int = 1) -> Tensor:
        """All problems at once, `(n, T - 1)` uint8, padded at the end.

        Args:
            processes: that share the work.
        """
        indices = range(len(self))
        if processes == 1:
            return self._rows(indices)
        with get_context("spawn").Pool(processes) as pool:
            pieces = [indices[start : start + PIECE] for start in indices[::PIECE]]
            return torch.cat(pool.map(self._rows, pieces, chunksize=1))

    def _rows(self, indices: range) -> Tensor:
        rows = torch.zeros(len(indices), self.length - 1, dtype=torch.uint8)
        for row, index in zip(rows, indices, strict=True):
            problem = self.problem(index)
            row[: len(problem)] = torch.tensor(problem, dtype=torch.uint8)
        return rows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = [*self.problem(index), EOS]
        ids, mask, labels = torch.full((3, self.length), PAD)
        ids[: len(tokens)] = torch.tensor(tokens)
        mask[: len(tokens)] = 1
        labels.copy_(ids)
        labels[: tokens.index(EQUALS) + 1] = IGNORED
        labels[len(tokens) :] = IGNORED
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def arithmetic_tokenizer() -> PreTrainedTokenizerFast:
    """The task's vocabulary of 21 as a tokenizer, which wants a space between two symbols.

    >>> tokenizer = arithmetic_tokenizer()
    >>> tokenizer("10 / 6 =")["input_ids"], tokenizer.decode([20, 6, 16, 9])
    ([20, 6, 16, 9], '10 / 6 =')
    """
    backend = Tokenizer(models.WordLevel({symbol: token for token, symbol in enumerate(SYMBOLS)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", cls_token="<cls>", eos_token="<eos>"
    )
