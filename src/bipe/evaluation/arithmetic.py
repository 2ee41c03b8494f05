"""Arithmetic problems solved by a model, a step at a time, greedily."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bipe.data.arithmetic import EOS, EQUALS, PAD, SYMBOLS, ArithmeticBlocks, longest
from bipe.models.modes import evaluating
from bipe.processes import gather, share

from .base import Run, Score
from .decoding import greedy
from .shares import Questions

TASK = "arithmetic"
TOKENS = {"cpu": 20_000, "cuda": 160_000}
"""Of solutions that are written at a time, by device: their cache is what fills its memory."""


def score_arithmetic(
    model: PreTrainedModel, operators: Sequence[int], problems: int, *, run: Run
) -> list[Score]:
    """The share of test problems whose final answer is right, for each number of operations.

    The model gets a question with its `=` and writes on greedily; it is right if the symbol before the end of
    text is the answer, whatever stands before it. Low and high are a Wilson interval; with 1 or 2
    operations few questions differ, and it is too narrow.

    Args:
        model: any causal language model of transformers with the task's vocabulary.
        operators: numbers of operations.
        problems: of each, the first so many of the test split.
        run: where the model comes from.

    Raises:
        ValueError: the model has another vocabulary, or a number of operations is below 1.
    """
    if model.config.vocab_size != len(SYMBOLS):
        raise ValueError(
            f"Arithmetic has a vocabulary of {len(SYMBOLS)} symbols and this model one of "
            f"{model.config.vocab_size}: train one with data.arithmetic."
        )
    return [_score(model, ArithmeticBlocks(count, "test", problems), count, run) for count in operators]


def _score(model: PreTrainedModel, blocks: ArithmeticBlocks, operators: int, run: Run) -> Score:
    texts = [torch.tensor(blocks.problem(index)) for index in range(len(blocks))]
    asked = Questions(TASK, "greedy", operators, texts, model, run)
    return asked.score("accuracy", int(answered_right(model, blocks).sum()))


def answered_right(model: PreTrainedModel, blocks: ArithmeticBlocks) -> Tensor:
    """Whether the model's final answer to each problem is right, `(problems,)` bool.

    Args:
        model: in evaluation mode meanwhile.
        blocks: the problems.
    """
    size = max(1, TOKENS.get(model.device.type, TOKENS["cpu"]) // blocks.length)
    solved = share([blocks.problem(index) for index in range(len(blocks))])
    found: list[bool] = []
    with evaluating(model):
        for start in range(0, len(solved), size):
            some = solved[start : start + size]
            found += [
                answer == problem[-1]
                for problem, answer in zip(some, answers(model, some, blocks.length), strict=True)
            ]
    return torch.tensor(gather(found))


def answers(model: PreTrainedModel, problems: Sequence[Sequence[int]], most: int) -> list[int | None]:
    """What stands before the end of text, None where the model writes no end within the longest solution."""
    asked = [problem[: problem.index(EQUALS) + 1] for problem in problems]
    rows = greedy(model, asked, most - min(map(len, asked)), eos=EOS, pad=PAD)
    # An answer that ends at once has the question's own last symbol before its end.
    return [[EQUALS, *row][-2] if row[-1] == EOS else None for row in rows]


def trained_operators(model: PreTrainedModel) -> int:
    """The number of operations whose problems are as long as the model's training blocks."""
    blocks = model.config.max_position_embeddings
    found = [count for count in range(1, 101) if longest(count) + 1 == blocks]
    if not found:
        raise ValueError(
            f"Training blocks of {blocks} tokens are those of no number of operations: give --lengths."
        )
    return found[0]
