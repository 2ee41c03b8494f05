"""SCROLLS on a made-up set in the benchmark's own files; metrics against numbers computed by hand."""

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from bipe.data.scrolls import SCROLLS, Example, ScrollsBlocks, prompt_ids, read_scrolls
from bipe.data.tokens import train_tokenizer
from bipe.evaluation.base import Run
from bipe.evaluation.scrolls import exact_match, f1, judge, predict, score_scrolls, write_predictions
from bipe.models.checkpoint import load_checkpoint
from bipe.training import Recipe, load_recipe, train_recipe
from bipe.training.shipped import recipes_folder
from bipe_cli.main import app, run

SENTENCES = [
    "The cat sat on the mat.",
    "A dog ran to the old house.",
    "It was red, and it slept.",
    "Then the horse saw a bird.",
]


def rows(count: int, first: int = 0, answers: bool = True) -> list[dict[str, Any]]:
    """Questions with one or two answers each, in the benchmark's form."""
    made = []
    for n in range(first, first + count):
        text = f"Who was it?\n\n{' '.join(SENTENCES[(n + k) % 4] for k in range(6))}"
        for output in (["the cat", "cat"] if n % 2 else ["a dog"]) if answers else [None]:
            made.append({"id": f"q{n}", "pid": f"q{n}_0", "input": text, "output": output})
    return made


def write_task(folder: Path, task: str) -> Path:
    """A task's zip file as the hub has it."""
    path = folder / f"{task}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split, made in {
            "train": rows(6),
            "validation": rows(4, 6),
            "test": rows(3, 10, answers=False),
        }.items():
            archive.writestr(f"{task}/{split}.jsonl", "".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([" ".join(SENTENCES) * 20 + " Context: Please summarize this report:"], 320)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A small model fine-tuned on a task by a recipe."""
    folder = tmp_path_factory.mktemp("scrolls")
    tokenizer.save_pretrained(folder / "tokenizer")
    recipe = Recipe.model_validate(
        {
            "scheme": "bipe-rope",
            "data": {
                "scrolls": {"task": str(write_task(folder, "qasper"))},
                "tokenizer": str(folder / "tokenizer"),
                "train_length": 96,
            },
            "model": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "intermediate_size": 48,
            },
            "training": {"steps": 60, "batch_size": 4, "learning_rate": 1e-2},
        }
    )
    train_recipe(recipe, folder / "run", on_progress=lambda row: None)
    return folder


def test_lines_of_one_id_are_one_example_with_several_answers(tmp_path: Path) -> None:
    path = write_task(tmp_path, "qasper")
    task, examples = read_scrolls(str(path), "train")
    assert task == "qasper"
    assert [example.id for example in examples] == [f"q{n}" for n in range(6)]
    assert [example.outputs for example in examples[:2]] == [("a dog",), ("the cat", "cat")]
    assert examples[0].input.startswith("Who was it?\n\nThe cat sat")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    assert read_scrolls(str(tmp_path / "qasper"), "train") == (task, examples)
    assert all(example.outputs == () for example in read_scrolls(str(path), "test")[1])


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    path = write_task(tmp_path, "qasper")
    for source, split, message in (
        ("qasperr", "train", "Unknown task of SCROLLS 'qasperr'. Choose one of: contract_nli, gov_report"),
        (str(tmp_path / "no" / "qasper.zip"), "train", "There is no file or folder"),
        (str(path), "dev", r"has no dev\.jsonl; it holds qasper/train\.jsonl"),
    ):
        with pytest.raises(ValueError, match=message):
            read_scrolls(source, split)
    (tmp_path / "quality").mkdir()
    for content, message in (
        ("{", "line 1 is not JSON"),
        ('{"id": "a", "input": "a \\ud83d b"}', "line 1 holds half of a surrogate pair"),
        ('{"id": 3, "input": "x"}', "line 1 must be an object with the texts"),
        ('{"id": "a", "input": "x", "output": ["y"]}', "'output' must be a text or null; got list"),
        ("\n", "holds no example"),
    ):
        (tmp_path / "quality" / "train.jsonl").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_scrolls(str(tmp_path / "quality"), "train")
    (tmp_path / "qmsum.zip").write_text("no zip")
    with pytest.raises(ValueError, match="is no zip file"):
        read_scrolls(str(tmp_path / "qmsum.zip"), "train")


def test_the_hub_is_asked_for_the_tasks_zip_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, name: str, *, repo_type: str) -> str:
        asked.append((repo, name, repo_type))
        return str(write_task(tmp_path, "quality"))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    task, examples = read_scrolls("quality", "validation")
    assert (task, len(examples)) == ("quality", 4)
    assert asked == [("tau/scrolls", "quality.zip", "dataset")]

    def fail(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(
        ValueError, match=r"quality\.zip could not be fetched from tau/scrolls \(no network\)"
    ):
        read_scrolls("quality", "validation")


@pytest.mark.parametrize("task", SCROLLS)
def test_prompts_are_the_papers_and_lose_the_end_of_their_input(task: str, tokenizer: Any) -> None:
    text = "It was red. " * 30
    ids, cut = prompt_ids(task, text, tokenizer, 1000)
    summary = task in ("gov_report", "summ_screen_fd", "qmsum")
    whole = f"Context:\n{text}\n Please summarize this report:" if summary else text
    assert (tokenizer.decode(ids), cut) == (whole, False)
    ids, cut = prompt_ids(task, text, tokenizer, 60)
    assert (len(ids), cut) == (60, True)
    kept = tokenizer.decode(ids)
    assert kept.startswith("Context:\nIt was red." if summary else "It was red.")
    assert kept.endswith("\n Please summarize this report:") == summary
    with pytest.raises(ValueError, match="does not fit in 0 tokens"):
        prompt_ids(task, text, tokenizer, 0)


def test_blocks_learn_the_answer_and_the_end(tokenizer: Any, tmp_path: Path) -> None:
    task, examples = read_scrolls(str(write_task(tmp_path, "qasper")), "train")
    blocks = ScrollsBlocks(task, examples, tokenizer, 80)
    assert len(blocks) == 9
    item = blocks[1]
    learned = item["labels"] != -100
    assert tokenizer.decode(item["labels"][learned]) == "the cat<|endoftext|>"
    last = int(learned.nonzero().max())
    assert item["attention_mask"].tolist() == [1] * (last + 1) + [0] * (79 - last)
    prompt = item["input_ids"][: int(learned.nonzero().min())].tolist()
    assert tokenizer.decode(prompt) == examples[1].input[: len(tokenizer.decode(prompt))]
    assert all(part.shape == (80,) for part in item.values())
    short = ScrollsBlocks(task, examples, tokenizer, 20)[1]
    assert short["attention_mask"].all()
    assert tokenizer.decode(short["labels"][short["labels"] != -100]) == "the cat<|endoftext|>"
    with pytest.raises(ValueError, match="no answers to learn"):
        ScrollsBlocks(task, [Example("a", "x", ())], tokenizer, 80)


def test_an_answer_longer_than_half_a_block_is_cut_and_ends(tokenizer: Any) -> None:
    answer = "the old house and " * 20
    item = ScrollsBlocks("qasper", [Example("a", "Who was it? " * 9, (answer,))], tokenizer, 40)[0]
    learned = item["labels"][item["labels"] != -100].tolist()
    assert learned == [*tokenizer(answer)["input_ids"][:20], tokenizer.eos_token_id]
    assert item["labels"].shape == (40,) and item["attention_mask"].all()


def test_words_are_compared_without_case_punctuation_and_articles() -> None:
    assert exact_match("The Cat!", "a cat") == 100
    assert exact_match("cats", "cat") == 0
    # 2 common words of 3 and 4: 2 * 2 / (3 + 4)
    assert f1("red old house", "the red house, big tree") == pytest.approx(100 * 4 / 7)
    assert f1("red red", "red") == pytest.approx(100 * 2 / 3)
    assert f1("", "red") == f1("the", "red") == 0


def test_metrics_are_the_numbers_of_the_benchmarks_own_example() -> None:
    """The three predictions, and the numbers, stand in the docstring of the benchmark's metric."""
    examples = [
        Example("a", "", ("exact match example",)),
        Example("b", "", ("hello", "hi there")),
        Example("c", "", ("commander kenobi",)),
    ]
    said = {"a": "exact match example", "b": "hello there", "c": "general kenobi"}
    found = {
        task: {name: values.mean() for name, values in judge(task, examples, said).items()}
        for task in SCROLLS
    }
    for task in ("gov_report", "qmsum", "summ_screen_fd"):
        assert found[task] == pytest.approx(
            {"rouge1": 72.2222, "rouge2": 33.3333, "rougeL": 72.2222}, abs=1e-4
        )
    for task in ("contract_nli", "quality"):
        assert found[task] == pytest.approx({"exact_match": 33.3333}, abs=1e-4)
    for task in ("narrative_qa", "qasper"):
        assert found[task] == pytest.approx({"f1": 72.2222}, abs=1e-4)


class FewParameters:
    def num_parameters(self) -> int:
        return 7


def test_a_summarys_score_is_the_geometric_mean_of_the_means(tokenizer: Any) -> None:
    examples = [Example(str(n), "", ("red old house",)) for n in range(3)]
    said = {"0": "red old house", "1": "red old tree", "2": "a house"}
    # ROUGE-1: 1, 2/3 and 2 * 1/2 * 1/3 / (1/2 + 1/3) = 2/5; ROUGE-2: 1, 1/2 and 0; ROUGE-L as ROUGE-1.
    one, two = 100 * (1 + 2 / 3 + 2 / 5) / 3, 100 * (1 + 1 / 2 + 0) / 3
    model: Any = FewParameters()
    scores = score_scrolls(model, tokenizer, "qmsum", examples, said, 64, run=Run("rope", 1, 9))
    found = {score.metric: score.value for score in scores}
    expected = {"rouge1": one, "rouge2": two, "rougeL": one, "rouge": (one * two * one) ** (1 / 3)}
    assert found == pytest.approx(expected)
    assert all(score.low <= score.value <= score.high for score in scores)
    assert {(score.task, score.protocol, score.length, score.windows) for score in scores} == {
        ("scrolls", "qmsum", 64, 3)
    }


def test_the_leaderboards_file_has_every_answer_of_all_tasks(tmp_path: Path) -> None:
    answers = {"q1": 'a "quoted", answer\nof two lines', "q2": ""}
    for number, task in enumerate(SCROLLS, start=1):
        path = write_predictions(tmp_path / "out", task, "test", answers)
        assert path.name == ("scrolls_predictions.csv" if number == len(SCROLLS) else f"{task}-test.json")
    with open(tmp_path / "out" / "scrolls_predictions.csv", encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["Task", "ID", "Prediction"]
    assert table[1:] == [[task, key, answer] for task in SCROLLS for key, answer in answers.items()]


def test_the_leaderboards_file_has_nothing_of_other_splits_and_of_a_part(tmp_path: Path) -> None:
    first, *others = SCROLLS
    for task in others:
        write_predictions(tmp_path, task, "test", {"q": "right"})
    path = write_predictions(tmp_path, first, "validation", {"v": "other split"})
    assert path.name == f"{first}-validation.json"
    path = write_predictions(tmp_path, first, "test", {"q": "part"}, whole=False)
    assert path.name == f"{first}-test-first-1.json"
    assert not (tmp_path / "scrolls_predictions.csv").exists()
    write_predictions(tmp_path, first, "test", {"q": "right"})
    whole = (tmp_path / "scrolls_predictions.csv").read_bytes()
    write_predictions(tmp_path, first, "train", {"t": "other split"})
    write_predictions(tmp_path, first, "test", {"q": "part"}, whole=False)
    assert (tmp_path / "scrolls_predictions.csv").read_bytes() == whole
    assert whole.count(b"right") == len(SCROLLS)


def test_summaries_may_have_a_thousand_tokens_and_answers_two_hundred() -> None:
    """As in BiPE's experiments."""
    summaries = {"gov_report", "summ_screen_fd", "qmsum"}
    assert {task: kind.new_tokens for task, kind in SCROLLS.items()} == {
        task: 1000 if task in summaries else 200 for task in SCROLLS
    }


def test_the_papers_fine_tuning() -> None:
    recipe = load_recipe(recipes_folder() / "scrolls/paper.yaml")
    training = recipe.training
    assert recipe.data.train_length == 8192
    assert (training.steps, training.warmup_steps, training.learning_rate) == (5000, 50, 1e-5)
    assert training.batch_size * training.gradient_accumulation * 8 == 64


def test_the_whole_way_from_fine_tuning_to_scores(trained: Path, capsys: Any) -> None:
    checkpoint = load_checkpoint(trained / "run")
    command = ["evaluate", "scrolls", "--model", str(trained / "run"), "--data", str(trained / "qasper.zip")]
    command += ["--lengths", "240"]
    out = ["--out", str(trained / "answers")]
    assert run(app, [*command, *out, "--json"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    answers = json.loads((trained / "answers" / "qasper-validation.json").read_text())
    task, examples = read_scrolls(str(trained / "qasper.zip"), "validation")
    assert list(answers) == [example.id for example in examples]
    best = [max(f1(answers[e.id], output) for output in e.outputs) for e in examples]
    assert row["value"] == pytest.approx(sum(best) / len(best))
    assert (row["metric"], row["protocol"], row["length"]) == ("f1", "qasper", 240)
    assert row["value"] > 30, "sixty steps teach two answers"
    prompts = [prompt_ids(task, e.input, checkpoint.tokenizer, 120)[0] for e in examples]
    ends = set(checkpoint.model.config.segmenter["end_token_ids"])
    segments = sum(sum(id in ends for id in ids) + (ids[-1] not in ends) for ids in prompts)
    assert row["tokens_per_segment"] == pytest.approx(sum(map(len, prompts)) / segments)
    assert row["offsets_beyond_trained"] == 0
    # Read anew without batch, padding and cache.
    prompt, _ = prompt_ids(task, examples[0].input, checkpoint.tokenizer, 120)
    written: list[int] = []
    while len(written) < 120 and (not written or written[-1] != checkpoint.tokenizer.eos_token_id):
        with torch.no_grad():
            logits = checkpoint.model(torch.tensor([prompt + written]), use_cache=False).logits
        written.append(int(logits[0, -1].argmax()))
    assert answers["q6"] == str(checkpoint.tokenizer.decode(written, skip_special_tokens=True)).strip()

    assert run(app, [*command, *out, "--split", "test"]) == 0
    assert capsys.readouterr().out == ""
    assert set(json.loads((trained / "answers" / "qasper-test.json").read_text())) == {"q10", "q11", "q12"}
    assert run(app, [*command, *out, "--split", "test", "--max-windows", "2"]) == 0
    assert set(json.loads((trained / "answers" / "qasper-test-first-2.json").read_text())) == {"q10", "q11"}


def test_cut_inputs_are_told_of(trained: Path) -> None:
    checkpoint = load_checkpoint(trained / "run")
    task, examples = read_scrolls(str(trained / "qasper.zip"), "validation")
    with pytest.warns(UserWarning, match="4 of 4 prompts of qasper exceed 15 tokens"):
        assert len(predict(checkpoint.model, checkpoint.tokenizer, task, examples, 30)) == 4


def test_wrong_use_is_one_line(trained: Path, capsys: Any) -> None:
    command = ["evaluate", "scrolls", "--model", str(trained / "run")]
    for more, message in (
        ([], "SCROLLS needs its tasks: give --data"),
        (["--data", "qaspr"], "Unknown task of SCROLLS 'qaspr'"),
        (["--data", str(trained / "qasper.zip"), "--lengths", "30,60"], "answered at one length; got 2"),
        (["--data", str(trained / "qasper.zip"), "--split", "dev"], "has no dev.jsonl"),
        (["--data", str(trained / "qasper.zip"), "--split", "test"], "give --out to keep the answers"),
        (["--data", str(trained / "qasper.zip"), "--tasks", "piqa"], "--tasks is an option of harness"),
        (["--data", str(trained / "qasper.zip"), "--out", __file__], "test_scrolls.py is a file"),
    ):
        assert run(app, [*command, *more]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="give its folder as start, or a tokenizer"):
        train_recipe(
            Recipe.model_validate(
                {"scheme": "rope", "data": {"scrolls": {"task": "qasper"}}, "training": {"steps": 1}}
            ),
            trained / "other",
        )
