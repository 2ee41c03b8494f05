"""SCROLLS (Shaham et al. 2022, arXiv:2201.03533): long texts with questions, from the benchmark's files."""

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from bipe.plain import read_json

from .packing import IGNORED
from .tokens import opening_ids, plain_ids

HUB = "tau/scrolls"
BEFORE, AFTER = "Context:\n", "\n Please summarize this report:"
"""What stands around a text to be summarised, in BiPE's experiments; questions stand alone."""

Metric = Literal["exact_match", "f1", "rouge"]


@dataclass(frozen=True)
class Kind:
    """What a task of SCROLLS asks for.

    Attributes:
        metric: how it is judged.
        new_tokens: tokens of an answer at most, in BiPE's experiments.
    """

    metric: Metric
    new_tokens: int

    @property
    def around(self) -> tuple[str, str]:
        """What stands before and after the input."""
        return (BEFORE, AFTER) if self.metric == "rouge" else ("", "")


SCROLLS: dict[str, Kind] = {
    "contract_nli": Kind("exact_match", 200),
    "gov_report": Kind("rouge", 1000),
    "narrative_qa": Kind("f1", 200),
    "qasper": Kind("f1", 200),
    "qmsum": Kind("rouge", 1000),
    "quality": Kind("exact_match", 200),
    "summ_screen_fd": Kind("rouge", 1000),
}


@dataclass(frozen=True)
class Example:
    """A long text with what is asked of it.

    Attributes:
        id: its name in the benchmark.
        input: the text; of questions, with the question before it.
        outputs: right answers, none in the test split.
    """

    id: str
    input: str
    outputs: tuple[str, ...]


def read_scrolls(source: str, split: str) -> tuple[str, list[Example]]:
    """Read a split of a task.

    Args:
        source: a task's name, which is then fetched from the hub (`tau/scrolls`), or the path of its zip file
            or of a folder with its `.jsonl` files; the path's last part names the task.
        split: `train`, `validation` or `test`.

    Returns:
        The task's name, and its examples; lines with the same id are one with several answers.

    Raises:
        ValueError: there is no such task or split, or a line is not of the benchmark's form.
    """
    task = Path(source).name.removesuffix(".zip")
    if task not in SCROLLS:
        raise ValueError(f"Unknown task of SCROLLS {task!r}. Choose one of: {', '.join(SCROLLS)}.")
    path = Path(source)
    if not path.exists():
        if path.name != source:
            raise ValueError(f"There is no file or folder {source!r}.")
        path = _fetch(task)
    lines = _lines(path, f"{split}.jsonl")
    return task, _examples(lines, f"{path}, {split}")


def _fetch(task: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB, f"{task}.zip", repo_type="dataset"))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{task}.zip could not be fetched from {HUB} ({reason}). Download it and give its path."
        ) from error


def _lines(path: Path, name: str) -> list[str]:
    """The lines of a file in a folder or anywhere in a zip file."""
    if path.is_dir():
        if not (path / name).is_file():
            raise ValueError(f"{path} has no {name}.")
        return (path / name).read_text(encoding="utf-8-sig").split("\n")
    try:
        with zipfile.ZipFile(path) as archive:
            found = [
                member
                for member in archive.namelist()
                if Path(member).name == name and "__MACOSX" not in member
            ]
            if not found:
                raise ValueError(f"{path} has no {name}; it holds {', '.join(archive.namelist()[:5])}.")
            return archive.read(found[0]).decode("utf-8-sig").split("\n")
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is no zip file.") from None


def _examples(lines: Iterable[str], place: str) -> list[Example]:
    inputs: dict[str, str] = {}
    outputs: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(line, f"{place}, line {number}")
        inputs.setdefault(row["id"], row["input"])
        answers = outputs.setdefault(row["id"], [])
        if row.get("output") is not None:
            answers.append(row["output"])
    if not inputs:
        raise ValueError(f"{place} holds no example.")
    return [Example(name, text, tuple(outputs[name])) for name, text in inputs.items()]


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = read_json(line)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}.") from None
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("id", "input")):
        raise ValueError(f"{place} must be an object with the texts 'id' and 'input'.")
    if not isinstance(row.get("output"), str | None):
        raise ValueError(f"{place}: 'output' must be a text or null; got {type(row['output']).__name__}.")
    try:
        (row["input"] + (row.get("output") or "")).encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no tokenizer takes
        raise ValueError(f"{place} holds half of a surrogate pair, which is no text.") from None
    return row


def prompt_ids(task: str, text: str, tokenizer: PreTrainedTokenizerBase, room: int) -> tuple[list[int], bool]:
    """The ids of a prompt, and whether the end of its input was cut to make it fit.

    Args:
        task: a key of `SCROLLS`.
        text: an example's input.
        tokenizer: any tokenizer of transformers.
        room: tokens at most.

    Raises:
        ValueError: there is no room for a single token of the input, or the tokenizer has none for it.
    """
    before, after, ids = plain_ids(tokenizer, [*SCROLLS[task].around, text])
    before = opening_ids(tokenizer) + before
    left = room - len(before) - len(after)
    if left < 1:
        raise ValueError(f"A prompt of {task} does not fit in {room} tokens: take longer blocks or texts.")
    return before + ids[:left] + after, len(ids) > left


class ScrollsBlocks(Dataset[dict[str, Tensor]]):
    """Prompts with their answers, one a block, to fine-tune on; an example with several answers is several.

    An item is a dict of three tensors `(length,)` int64: `input_ids`; `attention_mask`, 0 on the padding at
    the end; `labels`, -100 on prompt and padding. An answer has at most the task's tokens and half the block,
    and ends with the eos; an input that is too long loses its end.

    Args:
        task: a key of `SCROLLS`.
        examples: what to train on.
        tokenizer: with an eos.
        length: tokens in a block.

    Raises:
        ValueError: the tokenizer has no eos, or there is no answer.
    """

    def __init__(
        self, task: str, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, length: int
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("An answer ends with the tokenizer's eos, and this one has none.")
        self.pairs = [(example.input, output) for example in examples for output in example.outputs]
        if not self.pairs:
            raise ValueError(f"These examples of {task} have no answers to learn.")
        self.task, self.tokenizer, self.length = task, tokenizer, length

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        text, output = self.pairs[index]
        eos = self.tokenizer.eos_token_id
        most = min(SCROLLS[self.task].new_tokens, self.length // 2)
        answer = [*plain_ids(self.tokenizer, [output])[0][:most], eos]
        prompt, _ = prompt_ids(self.task, text, self.tokenizer, self.length - len(answer))
        padding = self.length - len(prompt) - len(answer)
        return {
            "input_ids": torch.tensor(prompt + answer + [eos] * padding),
            "attention_mask": torch.tensor([1] * (self.length - padding) + [0] * padding),
            "labels": torch.tensor([IGNORED] * len(prompt) + answer + [IGNORED] * padding),
        }
