"""SCROLLS: answers written greedily, judged as the benchmark judges them, and its leaderboard's file."""

import csv
import json
import re
import string
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bipe.data.scrolls import SCROLLS, Example, prompt_ids
from bipe.models.modes import evaluating
from bipe.processes import gather, share

from .base import Run, Score
from .decoding import greedy
from .intervals import interval
from .segments import SegmentCount

ROUGES = ("rouge1", "rouge2", "rougeL")
LEADERBOARD = "scrolls_predictions.csv"
BATCH = {"cpu": 1, "cuda": 8}

Judged = dict[str, np.ndarray]
"""By name of a metric, `(examples,)` float64 between 0 and 100."""


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    examples: Sequence[Example],
    length: int,
) -> dict[str, str]:
    """What a model answers to each example, by the example's id.

    Args:
        model: any causal language model of transformers.
        tokenizer: its own, with an eos.
        task: a key of `SCROLLS`.
        examples: the questions.
        length: tokens of prompt and answer together; inputs that are too long lose their end, with a warning.

    Raises:
        ValueError: the length leaves no room for a prompt, or the tokenizer has no eos.
    """
    refuse_unanswerable(tokenizer, task, length)
    eos = cast("int", tokenizer.eos_token_id)
    room = _room(task, length)
    asked = [prompt_ids(task, example.input, tokenizer, room) for example in examples]
    if cut := sum(was_cut for _, was_cut in asked):
        warnings.warn(
            f"{cut} of {len(asked)} prompts of {task} exceed {room} tokens; the ends of their "
            "inputs were cut off.",
            stacklevel=2,
        )
    size, prompts = BATCH.get(model.device.type, 1), share([ids for ids, _ in asked])
    with evaluating(model):
        written = [
            cast("str", tokenizer.decode(row, skip_special_tokens=True)).strip()
            for start in range(0, len(prompts), size)
            for row in greedy(model, prompts[start : start + size], length - room, eos=eos, pad=eos)
        ]
    return {example.id: answer for example, answer in zip(examples, gather(written), strict=True)}


def refuse_unanswerable(tokenizer: PreTrainedTokenizerBase, task: str, length: int) -> None:
    """Tell before any question is asked what would keep `predict` from answering.

    Raises:
        ValueError: as `predict`.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("An answer ends with the tokenizer's eos, and this one has none.")
    prompt_ids(task, "", tokenizer, _room(task, length))


def _room(task: str, length: int) -> int:
    """Tokens of a prompt at most: what an answer leaves of the length, at least half."""
    return length - max(1, min(SCROLLS[task].new_tokens, length // 2))


def judge(task: str, examples: Sequence[Example], predictions: Mapping[str, str]) -> Judged:
    """How good each answer is, the best over the right ones.

    Args:
        task: a key of `SCROLLS`.
        examples: with their right answers.
        predictions: an answer for each example's id.
    """
    pairs = [(predictions[example.id], example.outputs) for example in examples]
    metric = SCROLLS[task].metric
    if metric == "rouge":
        rouges = [_rouge(answer, outputs) for answer, outputs in pairs]
        return {name: np.array([rouge[name] for rouge in rouges]) for name in ROUGES}
    compare = {"exact_match": exact_match, "f1": f1}[metric]
    return {
        metric: np.array([max(compare(answer, output) for output in outputs) for answer, outputs in pairs])
    }


def normalize(answer: str) -> list[str]:
    """The words of an answer in small letters, without punctuation and articles, as SQuAD compares them.

    >>> normalize("The cat's  hat, a hat!")
    ['cats', 'hat', 'hat']
    """
    small = "".join(character for character in answer.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", small).split()


def exact_match(answer: str, output: str) -> float:
    """100 where an answer is the right one but for case, punctuation and articles, else 0."""
    return 100.0 * (normalize(answer) == normalize(output))


def f1(answer: str, output: str) -> float:
    """The harmonic mean of precision and recall of words, from 0 to 100.

    >>> round(f1("hello there", "hello"), 1)
    66.7
    """
    words, wanted = normalize(answer), normalize(output)
    common = (Counter(words) & Counter(wanted)).total()
    return 200.0 * common / (len(words) + len(wanted)) if common else 0.0


def _rouge(answer: str, outputs: Sequence[str]) -> dict[str, float]:
    """For each ROUGE the best over the right answers, without stemming, as in the benchmark's own metric."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ValueError("Summaries are judged by rouge-score: pip install 'bipe[eval]'.") from None
    scored = [RougeScorer(ROUGES).score(output, answer) for output in outputs]
    return {name: 100.0 * max(one[name].fmeasure for one in scored) for name in ROUGES}


def score_scrolls(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    examples: Sequence[Example],
    predictions: Mapping[str, str],
    length: int,
    *,
    run: Run,
) -> list[Score]:
    """The benchmark's numbers of a task, from 0 to 100, with 95 % intervals (bootstrap over examples).

    Of summaries these are ROUGE-1, -2 and -L and the geometric mean of the three means, `rouge`.

    Args:
        model: who answered.
        tokenizer: its own.
        task: a key of `SCROLLS`.
        examples: with their right answers.
        predictions: an answer for each example's id.
        length: tokens of prompt and answer that there was room for.
        run: where the model comes from.
    """
    judged, counted, room = judge(task, examples, predictions), SegmentCount(model), _room(task, length)
    for example in examples:
        counted.add(torch.tensor([prompt_ids(task, example.input, tokenizer, room)[0]]))
    count = np.ones(len(examples))
    found = {
        name: interval(lambda total, many: total / many, values, count) for name, values in judged.items()
    }
    if set(judged) == set(ROUGES):
        columns = [judged[name] for name in ROUGES]
        found["rouge"] = interval(
            lambda one, two, longest, many: np.cbrt(one * two * longest) / many, *columns, count
        )
    return [
        Score(
            scheme=run.scheme,
            seed=run.seed,
            task="scrolls",
            protocol=task,
            length=length,
            metric=metric,
            value=value,
            low=low,
            high=high,
            tokens=sum(len(predictions[example.id].split()) for example in examples),
            windows=len(examples),
            tokens_per_segment=counted.tokens_per_segment,
            offsets_beyond_trained=counted.offsets_beyond_trained,
            steps=run.steps,
            parameters=model.num_parameters(),
        )
        for metric, (value, low, high) in found.items()
    ]


def write_predictions(
    folder: Path, task: str, split: str, predictions: Mapping[str, str], *, whole: bool = True
) -> Path:
    """Write the answers down, and the leaderboard's file once every task's test split is answered whole.

    Args:
        folder: of the answers to several tasks.
        task: a key of `SCROLLS`.
        split: that was answered.
        predictions: an answer by the example's id.
        whole: whether to every example of the split; if not, the file's name says to how many.

    Returns:
        The path of what was written last: `TASK-SPLIT.json`, such as `qasper-test.json`, of the first two
        `qasper-test-first-2.json`, or the leaderboard's file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task}-{split}{'' if whole else f'-first-{len(predictions)}'}.json"
    path.write_text(json.dumps(dict(predictions), indent=1, ensure_ascii=False), encoding="utf-8")
    tested = {name: folder / f"{name}-test.json" for name in SCROLLS}
    if path not in tested.values() or not all(answered.exists() for answered in tested.values()):
        return path
    with open(folder / LEADERBOARD, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("Task", "ID", "Prediction"))
        for name, answered in tested.items():
            answers = json.loads(answered.read_text(encoding="utf-8"))
            writer.writerows((name, key, answer) for key, answer in answers.items())
    return folder / LEADERBOARD
